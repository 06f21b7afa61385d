"""Placebo maps without the object's shape, to test whether the shape is what helps.

* ``"other"``: each box has the map of another box of its image.
* ``"mean"``: each map has its mean in all cells.
* ``"turned"``: each map is turned by 90 degrees.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrrcnn.base import Features
from mrrcnn.boxes import ImageShapes
from mrrcnn.model import MRRCNN

PLACEBOS = ("other", "mean", "turned")


def give_placebo(model: MRRCNN, kind: str) -> None:
    """Give placebo maps to the refining box head of ``model``, in training and inference."""
    refine = model.roi_heads.refine
    refine.box_roi_pool = PlaceboPool(refine.box_roi_pool, kind)  # type: ignore[assignment]


class PlaceboPool(nn.Module):
    """Applies ``pool`` to placebo maps. Has no parameters."""

    def __init__(self, pool: nn.Module, kind: str):
        super().__init__()
        if kind not in PLACEBOS:
            raise ValueError(f"kind must be one of {PLACEBOS}, got {kind!r}")
        self.pool = pool
        self.kind = kind

    def forward(
        self, x: Features, boxes: list[Tensor], prob_maps: Tensor, image_shapes: ImageShapes
    ) -> Tensor:
        """Same as ``MultiScaleSaRoIAlign``; prob_maps [K, M, M] of all images' boxes."""
        counts = [len(b) for b in boxes]
        return self.pool(x, boxes, placebo(prob_maps, counts, self.kind), image_shapes)


def placebo(maps: Tensor, counts: list[int], kind: str) -> Tensor:
    """Placebo maps [K, M, M].

    Args:
        maps: [K, M, M] of the boxes of all images.
        counts: boxes of each image. Of an image's n boxes, number i gets the map of number
            (i + n // 2) % n; a single box gets its map's mean.
    """
    means = maps.mean(dim=(1, 2), keepdim=True).expand_as(maps)
    if kind == "mean":
        return means
    if kind == "turned":
        return maps.rot90(dims=(1, 2))
    swapped = [
        m.roll(-(n // 2), dims=0) if n > 1 else mean
        for m, mean, n in zip(maps.split(counts), means.split(counts), counts, strict=True)
    ]
    return torch.cat(swapped) if swapped else maps
