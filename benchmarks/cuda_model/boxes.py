"""The boxes of a case: samples, the rows and columns they touch, the bins that read a row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cases import Case, level_of_boxes, make_inputs
from cuda_model.kernels import bin_extent
from shape_roi_align._C import sampling_points

Integers = NDArray[np.int64]
SECTOR = 32  # bytes


@dataclass(frozen=True)
class Axis:
    """The samples of a box along one axis."""

    bins: int
    samples: int  # per bin
    extent: float
    start: float
    size: int  # of the feature map
    bin: Integers  # of each sample inside the map, ascending
    at: NDArray[np.float64]  # coordinate of each, ascending
    low: Integers  # the two rows (or columns) that each reads
    high: Integers

    @classmethod
    def make(
        cls, points: dict[str, Any], edges: tuple[float, float], case: Case, size: int
    ) -> Axis:
        """points: of sampling_points; edges: of the box, feature pixels."""
        offset = 0.5 if case.aligned else 0.0
        extent = edges[1] - edges[0] if case.aligned else max(edges[1] - edges[0], 1.0)
        inside = points["inside"]
        at = points["coordinate"][inside]
        low = np.clip(np.floor(at), 0, size - 1).astype(np.int64)
        high = np.where(at >= size - 1, size - 1, np.minimum(low + 1, size - 1))
        return cls(
            case.output_size,
            points["samples_per_bin"],
            extent,
            edges[0] - offset,
            size,
            points["bin"][inside].astype(np.int64),
            at,
            low,
            high,
        )

    @property
    def most_touched(self) -> int:
        """bin_extent(...).touched"""
        spacing = self.extent / (self.bins * self.samples)
        return bin_extent(spacing, self.samples, abs(self.start) + self.extent)

    def taps_of_bins(self) -> Integers:
        """fill_touched: taps of each bin along this axis."""
        counts = np.zeros(self.bins, np.int64)
        for b in range(self.bins):
            of_bin = slice(*np.searchsorted(self.bin, [b, b + 1]))
            samples = of_bin.stop - of_bin.start
            if samples > 0:
                span = self.high[of_bin][-1] + 1 - self.low[of_bin][0]
                counts[b] = min(span, 2 * samples)
        return counts

    def touched(self) -> Integers:
        """The rows (or columns) that samples read, each once."""
        return np.unique(np.concatenate([self.low, self.high]))

    def bins_reading(self) -> tuple[Integers, Integers]:
        """bins_reading of every row (or column): first bin, and end."""
        lines = np.arange(self.size)
        first = np.searchsorted(self.at, lines - 1, "left")
        last = np.searchsorted(self.at, np.minimum(lines + 1, self.size), "right") - 1
        reads = first <= last
        if len(self.bin) == 0:
            return np.zeros(self.size, np.int64), np.zeros(self.size, np.int64)
        begin = np.where(reads, self.bin[np.minimum(first, len(self.bin) - 1)], 0)
        end = np.where(reads, self.bin[last] + 1, 0)
        return begin, end

    def samples_reading(self) -> Integers:
        """Samples that give a weight to every row (or column)."""
        counts = np.bincount(self.low, minlength=self.size)
        differs = self.high != self.low
        return counts + np.bincount(self.high[differs], minlength=self.size)


@dataclass(frozen=True)
class Box:
    image: int
    level: int
    y: Axis
    x: Axis

    def sectors(self, element_size: int) -> int:
        """Sectors of a plane that hold the pixels of the box, columns innermost."""
        rows, columns = self.y.touched(), self.x.touched()
        pixels = rows[:, None] * self.x.size + columns
        sector = pixels * element_size // SECTOR
        return int((np.diff(sector, axis=1) != 0).sum() + len(rows)) if len(columns) else 0


def make_box(case: Case, image: int, level: int, corners: tuple[float, ...]) -> Box:
    """corners: x1, y1, x2, y2 in image pixels."""
    height, width, stride = case.levels[level]
    points = sampling_points(
        corners,
        height=height,
        width=width,
        output_size=(case.output_size, case.output_size),
        spatial_scale=1 / stride,
        sampling_ratio=case.sampling_ratio,
        aligned=case.aligned,
    )
    x1, y1, x2, y2 = (corner / stride for corner in corners)
    y = Axis.make(points["y"], (y1, y2), case, height)
    x = Axis.make(points["x"], (x1, x2), case, width)
    return Box(image, level, y, x)


@cache
def boxes_of(case: Case) -> tuple[Box, ...]:
    """The boxes that benchmarks/cases.py draws."""
    inputs = make_inputs(
        case,
        dtype=torch.float32,
        device=torch.device("cpu"),
        memory_format=torch.contiguous_format,
    )
    return tuple(
        make_box(case, image, level, tuple(corners))
        for image, boxes in enumerate(inputs.boxes)
        for corners, level in zip(boxes.tolist(), level_of_boxes(case, boxes).tolist(), strict=True)
    )


def pixels_read(case: Case) -> int:
    """Different feature pixels that boxes read, over all images and levels."""
    total = 0
    boxes = boxes_of(case)
    for image in range(case.num_images):
        for level, (height, width, _) in enumerate(case.levels):
            read = np.zeros((height, width), bool)
            for box in boxes:
                if (box.image, box.level) == (image, level):
                    read[np.ix_(box.y.touched(), box.x.touched())] = True
            total += int(read.sum())
    return total
