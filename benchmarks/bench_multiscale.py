"""A feature pyramid: MultiScaleSaRoIAlign against plain pooling and against torchvision's parts."""

import sys

from runner import MULTI_SCALE, run

if __name__ == "__main__":
    sys.exit(run(MULTI_SCALE))
