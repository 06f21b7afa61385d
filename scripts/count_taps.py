"""Prints the counts in benchmarks/cuda_prediction.md, from the boxes of the benchmark cases.

    python scripts/count_taps.py [--case NAME...]

Taps: distinct (bin, pixel) pairs; torchvision reads 4 * samples pixels per bin.
Pixels: distinct pixels that a box reads.
Sectors: 32-byte sectors that hold these pixels as float32, with columns innermost.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from cases import MULTI_SCALE, SINGLE_LEVEL, Case, level_of_boxes, make_inputs

PER_SECTOR = 8  # float32 in 32 bytes
CASES = {case.name: case for case in [*SINGLE_LEVEL, *MULTI_SCALE]}
PREDICTED = (
    "p3_7x7",
    "p2_7x7",
    "p3_14x14",
    "p2_14x14",
    "p2_1000_boxes_7x7",
    "p2_1000_boxes_14x14",
    "c4",
    "large_boxes",
    "six_boxes",
    "refine_inference",
    "refine_training",
)


def touched_by_bins(start: float, end: float, case: Case, size: int) -> tuple[list[set[int]], int]:
    """Rows or columns that each bin of a box reads, and samples per bin. In feature pixels."""
    offset = 0.5 if case.aligned else 0.0
    extent = end - start if case.aligned else max(end - start, 1.0)
    bin_size = extent / case.output_size
    samples = case.sampling_ratio if case.sampling_ratio > 0 else math.ceil(bin_size)
    bins = []
    for b in range(case.output_size):
        touched = set()
        for i in range(samples):
            at = start - offset + (b + (i + 0.5) / samples) * bin_size
            if -1 <= at <= size:
                at = min(max(at, 0.0), size - 1.0)
                touched |= {math.floor(at), math.ceil(at)}
        bins.append(touched)
    return bins, samples


def count(case: Case) -> str:
    """A row of the table."""
    inputs = make_inputs(
        case,
        dtype=torch.float32,
        device=torch.device("cpu"),
        memory_format=torch.contiguous_format,
    )
    taps = reads = pixels = sectors = 0
    boxes = torch.cat(inputs.boxes)
    for (x1, y1, x2, y2), level in zip(
        boxes.tolist(), level_of_boxes(case, boxes).tolist(), strict=True
    ):
        height, width, stride = case.levels[level]
        ys, samples_y = touched_by_bins(y1 / stride, y2 / stride, case, height)
        xs, samples_x = touched_by_bins(x1 / stride, x2 / stride, case, width)
        taps += sum(map(len, ys)) * sum(map(len, xs))
        reads += 4 * samples_y * samples_x * case.output_size**2
        rows, columns = set().union(*ys), set().union(*xs)
        pixels += len(rows) * len(columns)
        sectors += sum(len({(row * width + c) // PER_SECTOR for c in columns}) for row in rows)
    num_bins = case.output_size**2
    features = sum(level.numel() * level.itemsize for level in inputs.features) / 1e6
    output = case.num_rois * case.channels * num_bins * 4 / 1e6
    per_box = [f"{n / case.num_rois:.0f}" for n in (taps, reads, pixels, sectors)]
    megabytes = [f"{features:.0f}", f"{output:.0f}" if output >= 1 else f"{output:.1f}"]
    sizes = map(str, (case.num_rois, case.channels, num_bins))
    return f"| {' | '.join([case.name, *sizes, *per_box, *megabytes])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=PREDICTED, metavar="NAME")
    for name in parser.parse_args().case:
        print(count(CASES[name]), flush=True)


if __name__ == "__main__":
    main()
