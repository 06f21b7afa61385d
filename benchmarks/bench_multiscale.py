"""A feature pyramid: MultiScaleSaRoIAlign against plain RoIAlign and a torchvision composition."""

import sys

from runner import MULTI_SCALE, run

if __name__ == "__main__":
    sys.exit(run(MULTI_SCALE))
