"""A feature pyramid: MultiScaleSaRoIAlign against plain pooling and against torchvision's parts."""

import sys

from cases import MULTI_SCALE, SMOKE_MULTI_SCALE
from providers import MULTI_SCALE as PROVIDERS
from runner import run

if __name__ == "__main__":
    sys.exit(run("multiscale", MULTI_SCALE, PROVIDERS, SMOKE_MULTI_SCALE))
