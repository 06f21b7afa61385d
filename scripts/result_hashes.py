#!/usr/bin/env python3
"""Hashes results, to compare releases of torch, machines and builds bit for bit.

    python scripts/result_hashes.py --output torch-2.10.json
    python scripts/result_hashes.py --compare torch-2.10.json

Runs 200 random calls for each instruction set of this processor, forward and backward, of every
dtype, layout and option. Inputs come from integer arithmetic in this file, so they do not depend on
the random number generators of torch or NumPy. --compare exits with 1 if a hash differs, and lists
instruction sets that only one of the two files has.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from instruction_sets import INSTRUCTION_SETS, run_under
from torch import Tensor

from shape_roi_align import _C, sa_roi_align

CASES = 200
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Numbers:
    """A linear congruential generator with the constants of MMIX (Knuth)."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        self.state = (6364136223846793005 * self.state + 1442695040888963407) % 2**64
        return low + (self.state >> 33) % (high - low + 1)

    def tensor(self, shape: tuple[int, ...], low: int, high: int) -> Tensor:
        """float64, multiples of 1/64 in [low / 64, high / 64]."""
        count = torch.Size(shape).numel()
        values = [self.integer(low, high) / 64 for _ in range(count)]
        return torch.tensor(values, dtype=torch.float64).view(shape)


def pool_case(case: int) -> list[Tensor]:
    """The output of a call, and the gradients of features, boxes and maps."""
    numbers = Numbers(case)
    dtype = DTYPES[case % 4]
    box_dtype = torch.float64 if numbers.integer(0, 3) == 0 else torch.float32
    images, channels = numbers.integer(1, 2), (1, 3, 8, 17, 40)[numbers.integer(0, 4)]
    height, width = numbers.integer(1, 13), numbers.integer(1, 19)
    bins = numbers.integer(1, 5), numbers.integer(1, 7)
    num_rois = numbers.integer(1, 12)
    x = numbers.tensor((images, channels, height, width), -128, 128).to(dtype)
    if numbers.integer(0, 1):
        x = x.contiguous(memory_format=torch.channels_last)
    images_of = [[float(numbers.integer(0, images - 1))] for _ in range(num_rois)]
    corners = numbers.tensor((num_rois, 4), -128, 64 * 20)
    rois = torch.cat([torch.tensor(images_of, dtype=torch.float64), corners], 1).to(box_dtype)
    maps = numbers.tensor((num_rois, numbers.integer(1, 8), numbers.integer(1, 9)), 0, 64)
    grad = numbers.tensor((num_rois, channels, *bins), -64, 64).to(dtype)
    maps = maps.to(dtype)
    leaves = [tensor.requires_grad_() for tensor in (x, rois, maps)]
    out = sa_roi_align(
        x,
        rois,
        maps,
        bins,
        (1.0, 0.5, 0.3)[numbers.integer(0, 2)],
        numbers.integer(-1, 3),
        aligned=numbers.integer(0, 1) == 1,
        map_aligned=numbers.integer(0, 1) == 1,
    )
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def hash_of(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1))
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def hashes_of_this_process() -> list[str]:
    return [hash_of(pool_case(case)) for case in range(CASES)]


def hashes_of(instruction_set: str) -> list[str] | None:
    """None if the processor does not support the instruction set."""
    made = json.loads(run_under(instruction_set, __file__, "--this-process"))
    return made["hashes"] if made["instruction_set"] == instruction_set else None


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    found = []
    for name in ours["hashes"].keys() & theirs["hashes"].keys():
        pairs = zip(ours["hashes"][name], theirs["hashes"][name], strict=True)
        cases = [case for case, (a, b) in enumerate(pairs) if a != b]
        if cases:
            found.append(f"{name}: cases {cases}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="a JSON file to write")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="what --output wrote")
    parser.add_argument("--this-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.this_process:
        made = {"instruction_set": _C.cpu_capability(), "hashes": hashes_of_this_process()}
        print(json.dumps(made))
        return
    found = {name: hashes_of(name) for name in INSTRUCTION_SETS}
    ours: dict[str, Any] = {
        "torch": torch.__version__,
        "hashes": {name: hashes for name, hashes in found.items() if hashes},
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(ours, indent=1) + "\n")
    print(f"torch {ours['torch']}: {CASES} calls on each of {', '.join(ours['hashes'])}")
    if arguments.compare:
        theirs = json.loads(arguments.compare.read_text())
        only = ours["hashes"].keys() ^ theirs["hashes"].keys()
        if only:
            print(f"not compared: {', '.join(sorted(only))}")
        different = differences(ours, theirs)
        print("\n".join(different) or f"the same bits as with torch {theirs['torch']}")
        sys.exit(bool(different))


if __name__ == "__main__":
    main()
