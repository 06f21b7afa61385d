"""Draws box_on_photograph.png for detectors.md: a face under a soft ellipse.

python docs/box_on_photograph.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.cbook
import matplotlib.pyplot as plt
import numpy as np

from shape_roi_align.visualize import draw_box

BOX = (174, 60, 362, 330)  # x1, y1, x2, y2: the face in matplotlib's grace_hopper.jpg
CELLS = 28


def soft_ellipse(cells: int) -> np.ndarray:
    """``[cells, cells]``: 1 inside, falling to 0 at the edge of the box's ellipse."""
    across = (np.arange(cells) + 0.5) / cells * 2 - 1
    radius = np.hypot(across[:, None], across[None, :] * 1.2)
    return 1 / (1 + np.exp((radius - 0.95) / 0.05))


def main() -> None:
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        image = plt.imread(file, format="jpg")
    figure = draw_box(image, BOX, soft_ellipse(CELLS), 14, 1 / 8, 2, aligned=True)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=60)


if __name__ == "__main__":
    main()
