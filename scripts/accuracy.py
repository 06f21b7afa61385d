#!/usr/bin/env python3
"""Measures the error of the pooled tensor in units in the last place, and torchvision's error.

    python scripts/accuracy.py                     a table in Markdown
    python scripts/accuracy.py --json rows.json --device cuda

An error is the distance from the float64 reference (`sa_roi_align_reference`) on the same inputs,
divided by the spacing of the result's dtype at that value; a correctly rounded result has an error
of at most 0.5. Features and probability maps are positive, so every sum is well conditioned
(condition number 1). Boxes are inside the feature map and exact in float16, because torchvision's
kernels need boxes in the dtype of the features. The cases cover the readers that layout, number of
channels and number of boxes select.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor

from shape_roi_align import _C, roi_align, sa_roi_align, sa_roi_align_reference

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
HEIGHT, WIDTH, BINS = 50, 68, 7


class Reading(NamedTuple):
    layout: str
    channels: int
    num_boxes: int  # per image

    def __str__(self) -> str:
        return f"{self.layout}, {self.channels} channels, {self.num_boxes} boxes"


READINGS = [
    Reading(layout, channels, num_boxes)
    for layout in ("contiguous", "channels_last")
    for channels in (3, 64)
    for num_boxes in (4, 256)
]


class Row(NamedTuple):
    dtype: str
    reading: str
    operator: str
    max_ulp: float
    rms_ulp: float


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of ``dtype`` at each of the float64 ``values``, in float64."""
    limits = torch.finfo(dtype)
    _, exponent = torch.frexp(values.abs().clamp(min=limits.tiny))
    return torch.ldexp(torch.full_like(values, limits.eps), exponent - 1)


def make_inputs(reading: Reading, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features [2, C, H, W] in [0.5, 1.5], boxes [2 L, 5] in multiples of 1/16, maps [2 L, 28, 28]
    in [0.125, 1]; all exact in ``dtype``."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    features = (uniform(2, reading.channels, HEIGHT, WIDTH) + 0.5).to(dtype)
    if reading.layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    num_rois = 2 * reading.num_boxes
    size = torch.tensor([WIDTH - 1.0, HEIGHT - 1.0], dtype=torch.float64)
    corners = uniform(num_rois, 2) * size * 0.6
    extents = (1 + uniform(num_rois, 2) * (size - corners - 1)).floor()
    images = torch.arange(num_rois)[:, None] % 2
    rois = torch.cat([images, corners, corners + extents], 1)
    rois[:, 1:] = (rois[:, 1:] * 16).floor() / 16
    maps = (0.125 + 0.875 * uniform(num_rois, 28, 28)).to(dtype)
    return features, rois, maps


def errors(result: Tensor, expected: Tensor) -> Tensor:
    return (result.double() - expected).abs() / ulp(expected, result.dtype)


def operators(dtype: torch.dtype) -> dict[str, Callable[..., Tensor]]:
    """Operators by name: (features, rois, maps) -> pooled. The last two do not read the maps."""
    box_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "sa_roi_align": lambda x, rois, maps: sa_roi_align(x, rois.to(box_dtype), maps, BINS, 1, 2),
        "roi_align": lambda x, rois, maps: roi_align(x, rois.to(box_dtype), BINS, 1, 2),
        "torchvision.ops.roi_align": lambda x, rois, maps: torchvision.ops.roi_align(
            x, rois.to(x.dtype), BINS, 1, 2
        ),
    }


def measure(reading: Reading, dtype: torch.dtype, device: str, repeats: int) -> Iterator[Row]:
    for name, pool in operators(dtype).items():
        found = []
        for seed in range(repeats):
            features, rois, maps = make_inputs(reading, dtype, seed)
            expected = sa_roi_align_reference(
                features.double(),
                rois,
                maps.double() if name == "sa_roi_align" else None,
                BINS,
                1,
                2,
            )
            assert isinstance(expected, Tensor)
            try:
                result = pool(features.to(device), rois.to(device), maps.to(device))
            except (NotImplementedError, RuntimeError) as error:
                if "not implemented for" not in str(error):
                    raise
                return  # torchvision's CPU kernels take no bfloat16
            found.append(errors(result.cpu(), expected).flatten())
        every = torch.cat(found)
        yield Row(
            str(dtype).removeprefix("torch."),
            str(reading),
            name,
            round(every.max().item(), 3),
            round(math.sqrt(every.square().mean().item()), 3),
        )


def worst(rows: list[Row]) -> list[Row]:
    """The largest maximum and the largest RMS over all readers."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.dtype, row.operator), []).append(row)
    return [
        Row(dtype, "all", operator, max(r.max_ulp for r in group), max(r.rms_ulp for r in group))
        for (dtype, operator), group in groups.items()
    ]


def print_table(rows: list[Row]) -> None:
    print("| dtype | reading | operator | max, ulp | RMS, ulp |")
    print("| --- | --- | --- | ---: | ---: |")
    for row in rows:
        print("|", " | ".join(map(str, row)), "|")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: %(default)s")
    parser.add_argument(
        "--repeats", type=int, default=3, help="random inputs per row; default: %(default)s"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the rows and a description of the machine"
    )
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    where = {
        "device": _C.cpu_capability() if on_cpu else torch.cuda.get_device_name(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    rows = [
        row
        for dtype in DTYPES
        for reading in READINGS
        for row in measure(reading, dtype, arguments.device, arguments.repeats)
    ]
    print_table(rows)
    print_table(worst(rows))
    if arguments.json:
        made = {"where": where, "rows": [row._asdict() for row in rows]}
        arguments.json.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
