"""Means of masks over grid cells, by exact area: a cell border may cut a pixel.

Pixel i covers [i, i + 1] along an axis. The mean over a cell is the sum of the pixel values, each
times the fraction of the cell that the pixel covers. The sum is separable: rows @ window @
columns^T for each object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ._mask_sources import MaskSource

CHUNK_BYTES = 1 << 24  # windows and weights per chunk; a larger object is a chunk of its own


@dataclass
class GridAxis:
    """One axis of the grids of K objects, and the pixels that their cells read. CPU arrays."""

    offset: np.ndarray  # float64 [K] low edge of the first cell, in pixels, minus ``first``
    cell: np.ndarray  # float64 [K] length of a cell, in pixels
    cells: np.ndarray  # int64 [K]
    first: np.ndarray  # int64 [K] first pixel that is read
    pixels: np.ndarray  # int64 [K] number of pixels that are read

    @staticmethod
    def of_boxes(low: np.ndarray, high: np.ndarray, cells: int, limit: np.ndarray) -> GridAxis:
        """Boxes divided into ``cells`` equal cells. Pixels outside [0, limit) count as zero and are
        not read. Empty and non-finite boxes read no pixels."""
        good = np.isfinite(low) & np.isfinite(high) & (high > low)
        low, high = np.where(good, low, 0.0), np.where(good, high, 0.0)
        first = np.clip(np.floor(low), 0, limit).astype(np.int64)
        last = np.clip(np.ceil(high), 0, limit).astype(np.int64)
        return GridAxis(
            low - first, (high - low) / cells, np.full_like(first, cells), first, last - first
        )

    @staticmethod
    def of_grid(
        low: np.ndarray, high: np.ndarray, cells: int, limit: int
    ) -> tuple[GridAxis, np.ndarray]:
        """The cells that pixels [low, high) touch in one grid of ``cells`` cells over [0, limit],
        and the index of the first such cell."""
        begin, end = low * cells // limit, -(-high * cells // limit)
        cell = limit / cells
        offset = begin * cell - low
        return GridAxis(offset, np.full(len(low), cell), end - begin, low, high - low), begin

    @staticmethod
    def whole(cells: int, limit: int) -> GridAxis:
        """One grid of ``cells`` cells over all pixels [0, limit)."""
        return GridAxis.of_grid(np.array([0]), np.array([limit]), cells, limit)[0]

    def weights(self, objects: np.ndarray, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Fraction of each cell that each pixel covers: ``[B, most cells, most pixels]``."""
        cells, pixels = int(self.cells[objects].max()), int(self.pixels[objects].max())
        cell = self.cell[objects, None]
        ends = np.minimum(np.arange(cells + 1), self.cells[objects, None])  # padding: empty cells
        edges = (self.offset[objects, None] + cell * ends) / cell
        places = np.minimum(np.arange(pixels + 1), self.pixels[objects, None]) / cell
        # Edges and places are in units of a cell. In float64 a cell's weights sum to 1 even far
        # from the first cell.
        precision = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        edge, place = (torch.from_numpy(each).to(precision).to(device) for each in (edges, places))
        low = torch.maximum(edge[:, :-1, None], place[:, None, :-1])
        high = torch.minimum(edge[:, 1:, None], place[:, None, 1:])
        return high.sub_(low).clamp_(min=0).to(dtype)


def groups(y: GridAxis, x: GridAxis, itemsize: int) -> Iterator[np.ndarray]:
    """Groups the objects that have pixels by window size. Within a group, sides differ by less than
    a factor of two, so at most 3/4 of its memory is padding."""
    some = np.flatnonzero((y.pixels > 0) & (x.pixels > 0))
    sides = [np.ceil(np.log2(axis.pixels[some])) for axis in (y, x)]
    order = np.lexsort(sides)
    some, sides = some[order], [side[order] for side in sides]
    borders = np.flatnonzero((np.diff(sides[0]) != 0) | (np.diff(sides[1]) != 0)) + 1
    for group in np.split(some, borders):
        if not len(group):
            continue
        height, width = int(y.pixels[group].max()), int(x.pixels[group].max())
        rows, columns = int(y.cells[group].max()), int(x.cells[group].max())
        window = height * width * (8 + itemsize)  # as read (at most int64), and converted
        weights = (rows * height + columns * width) * 3 * 8  # ends and difference in float64
        count = max(1, CHUNK_BYTES // (window + weights + rows * width * itemsize))
        for start in range(0, len(group), count):
            yield group[start : start + count]


def mean_over_cells(
    source: MaskSource,
    objects: Tensor,
    y: GridAxis,
    x: GridAxis,
    group: np.ndarray,
    dtype: torch.dtype,
) -> Tensor:
    """Means ``[B, most cells along y, most cells along x]`` of the objects of one group. Grid k is
    on the mask of ``objects[k]``."""
    device = objects.device
    top, left = (torch.from_numpy(axis.first[group]).to(device) for axis in (y, x))
    size = int(y.pixels[group].max()), int(x.pixels[group].max())
    chosen = objects[torch.from_numpy(group).to(device)]
    window = source.windows(chosen, top, left, size).to(dtype)
    with torch.autocast(device.type, enabled=False):
        return y.weights(group, device, dtype) @ window @ x.weights(group, device, dtype).mT


def mean_over_grid(masks: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Means of ``masks[B, Hm, Wm]`` over the cells of one grid of ``size``: ``[B, *size]``. Nonzero
    bool and uint8 values count as 1."""
    weights = [
        None
        if limit % cells == 0
        else GridAxis.whole(cells, limit).weights(np.array([0]), masks.device, dtype)[0]
        for cells, limit in zip(size, masks.shape[1:], strict=True)
    ]
    masks_at_a_time = max(1, CHUNK_BYTES // (masks[:1].numel() * dtype.itemsize))
    if len(masks) <= masks_at_a_time:
        return _mean_over_grid(masks, size, weights, dtype)
    chunks = masks.split(masks_at_a_time)
    return torch.cat([_mean_over_grid(chunk, size, weights, dtype) for chunk in chunks])


def _mean_over_grid(
    masks: Tensor, size: tuple[int, int], weights: list[Tensor | None], dtype: torch.dtype
) -> Tensor:
    """``weights``: ``[cells, pixels]`` for y and for x; None if a cell is a whole number of pixels
    long."""
    if masks.dtype == torch.uint8:
        masks = masks != 0
    rows, columns = (limit // cells for cells, limit in zip(size, masks.shape[1:], strict=True))
    count = 1
    if weights[0] is not None:
        masks = weights[0] @ masks.to(dtype)
    elif rows > 1:
        # Sums of up to 255 ones fit into bytes; adding bytes is the fastest.
        as_bytes = masks.dtype == torch.bool and rows < 256
        masks = masks.view(torch.uint8) if as_bytes else masks.to(dtype)
        masks = masks.unflatten(1, (size[0], rows)).sum(2, dtype=masks.dtype)
        count *= rows
    masks = masks.to(dtype)
    if weights[1] is not None:
        masks = masks @ weights[1].mT
    elif columns > 1:
        masks = masks.unflatten(2, (size[1], columns)).sum(3)
        count *= columns
    return masks / count if count > 1 else masks
