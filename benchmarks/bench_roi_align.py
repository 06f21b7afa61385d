"""One feature map: sa_roi_align against plain RoIAlign and a torchvision composition."""

import sys

from runner import ROI_ALIGN, run

if __name__ == "__main__":
    sys.exit(run(ROI_ALIGN))
