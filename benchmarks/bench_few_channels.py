"""Crops of photographs, mask targets, small maps: sa_roi_align on few channels."""

import sys

from runner import FEW_CHANNELS, run

if __name__ == "__main__":
    sys.exit(run(FEW_CHANNELS))
