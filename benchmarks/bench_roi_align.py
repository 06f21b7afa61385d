"""One feature map: sa_roi_align against plain RoIAlign and against torchvision's parts."""

import sys

from cases import SINGLE_LEVEL, SMOKE
from providers import SINGLE_LEVEL as PROVIDERS
from runner import run

if __name__ == "__main__":
    sys.exit(run("roi_align", SINGLE_LEVEL, PROVIDERS, SMOKE))
