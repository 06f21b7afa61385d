"""The photograph of examples/photograph/, and how the scripts of this folder save pictures."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "photograph"
FRONT, BEHIND = 1, 2  # ids in the label map of two mushrooms that grow into one another
ORANGE, BLUE = "#E69F00", "#56B4E9"  # Okabe and Ito's; colour-blind readers can tell them apart


@functools.cache
def read_photograph() -> tuple[Tensor, Tensor]:
    """The photograph, ``float32[1, 3, H, W]`` in [0, 1], and its label map, ``int32[1, H, W]``: the
    id of the mushroom at each pixel, 0 for the background."""
    with Image.open(FOLDER / "mushrooms.png") as file:
        image = torch.from_numpy(np.array(file)).movedim(2, 0)[None] / 255
    with Image.open(FOLDER / "objects.png") as file:
        objects = torch.from_numpy(np.array(file)).int()[None]
    return image, objects


def outline(axis: Axes, box: Iterable[float], color: str, width: float) -> None:
    """Draws a box (x1, y1, x2, y2)."""
    x1, y1, x2, y2 = box
    size = x2 - x1, y2 - y1
    axis.add_patch(Rectangle((x1, y1), *size, fill=False, edgecolor=color, linewidth=width))


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Save as a PNG without the program and version that matplotlib writes into it."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi, metadata={"Software": None})
    with Image.open(drawn) as picture:
        picture.convert("RGB").save(path, optimize=True)
    print(f"Wrote {path}.")
