"""Every CUDA kernel that csrc/cuda/launch.h can launch runs on the host for every kind of call.

The list of kernels is read from the compiled program, so a new kernel that no call reaches fails.
"""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from cases import CROSSING, INSIDE, NEGATIVE, NOT_FINITE, OUTSIDE, Case, make
from host_cuda.jobs import (
    ADDRESS,
    BF16,
    F16,
    F32,
    F64,
    ORDERS,
    SCALAR_TYPES,
    Job,
    Variant,
    compile_program,
    kernels_of,
    run_and_watch,
)

pytestmark = pytest.mark.slow

BASELINE = Path(__file__).parents[1] / "scripts" / "ptxas_baseline.tsv"

# Features and boxes. The types of maps go round: all kernels read any of them.
TYPES = ((F64, F64), (F32, F32), (F32, F64), (F16, F32), (F16, F64), (BF16, F32), (BF16, F64))
LAYOUTS = ("contiguous", "channels_last", "channels_last_unaligned")

# Two slabs of channels, the second with fewer than a warp has; a multiple of all vector widths.
RAGGED = 264
# As few as channels-last kernels accept, and a multiple of all vector widths.
FEW = 8

MANY = np.random.default_rng(0).uniform(0, 7, (1100, 4))  # more than a tile lists at once
TALL = ((1, -200.53, 2.54, 247.37, 10.07), (0, 3.56, -160.58, 8.03, 123.51))
KINDS = (
    make("fixed", INSIDE[:2] + CROSSING[2:], channels=FEW, map_aligned=True),
    make("adaptive", INSIDE[:2] + NEGATIVE[:1], channels=FEW, sampling_ratio=-1, aligned=True),
    make("not_finite", NOT_FINITE, channels=FEW, sampling_ratio=-1),
    make("outside", OUTSIDE, channels=FEW, aligned=True),
    make("no_boxes", (), channels=FEW),
    make("one_pixel", INSIDE, channels=FEW, sizes=((1, 1),), spatial_scales=(1 / 16,)),
    make("tall_and_wide", TALL, channels=FEW, output_size=(2, 1), sampling_ratio=-1),
    make("ragged_channels", INSIDE[:1] + CROSSING[1:2], channels=RAGGED, output_size=(2, 2)),
    make(
        "pyramid",
        INSIDE,
        channels=FEW,
        sizes=((9, 11), (5, 6), (3, 3)),
        spatial_scales=(1 / 2, 1 / 4, 1 / 8),
        levels=[2, 0, 1],
        map_size=None,
    ),
    make(
        "many_boxes",
        [(i % 3 == 0, x, y, x + w, y + h) for i, (x, y, w, h) in enumerate(MANY)],
        channels=FEW,
        sizes=((6, 7),),
        output_size=(1, 1),
        sampling_ratio=1,
        map_size=(1, 2),
    ),
    make(
        "bins_in_several_patches",
        ((0, 21.41, 18.27, 1.13, 0.43),),
        images=1,
        channels=FEW,
        sizes=((19, 23),),
        spatial_scales=(1.0,),
        output_size=(1, 1),
        sampling_ratio=33,
        map_size=(9, 3),
        aligned=True,
    ),
    make("far", INSIDE + CROSSING[:1], channels=2 * FEW, sampling_ratio=-1),
)


FAR_FACTOR = 1 << 23


def is_redundant(types: tuple[torch.dtype, torch.dtype], layout: str, case: Case) -> bool:
    if case.name == "many_boxes" and layout == "contiguous":
        return True  # its gradient of the features takes the same kernels
    # float64 boxes with other features: never uses vectors
    return types[1] == F64 != types[0] and layout == "channels_last_unaligned"


def variants_of(number: int, case: Case) -> list[Variant]:
    """All types in all layouts. The other settings of a call alternate."""
    both = [each for each in itertools.product(TYPES, LAYOUTS) if not is_redundant(*each, case)]
    return [
        Variant(
            *types,
            SCALAR_TYPES[i % 4],
            # the planes of an image of one pixel are channels that lie side by side
            "sliced" if layout == "contiguous" and case.name == "one_pixel" else layout,
            threads=32 if case.name == "many_boxes" else (64, 32, 256, 96, 32)[i % 5],
            blocks=(1 << 20, 3, 1)[i % 3],
            order=ORDERS[i // 2 % 3],
            wanted_blocks=(1, 512, 7, 40)[i // 3 % 4],
            few_boxes=(0, 32)[i // 2 % 2],
            far_factor=FAR_FACTOR if case.name == "far" else 1,
        )
        for i, (types, layout) in enumerate(both, start=number)
    ]


# (wanted_blocks, few_channels): tiles of many or of few pixels, several channels in a lane or one.
TILES = ((1, 0), (1, 32), (1 << 20, 0))


def variants_of_tiles(number: int, case: Case) -> list[Variant]:
    """The gradient of the features, with and without vectors."""
    types = [(feature, box) for feature, box in TYPES if feature == F64 or box == F32]
    return [
        Variant(
            *each,
            SCALAR_TYPES[i % 4],
            layout,
            threads=(32, 256, 96, 64, 224)[i % 5],
            blocks=(1 << 20, 3)[i % 2],
            order=ORDERS[i % 3],
            wanted_blocks=wanted_blocks,
            few_channels=few_channels,
            few_boxes=(0, 32)[i // 2 % 2],
            far_factor=FAR_FACTOR if case.name == "far" else 1,
        )
        for i, (each, layout, (wanted_blocks, few_channels)) in enumerate(
            itertools.product(types, LAYOUTS[1:], TILES), start=number
        )
    ]


@pytest.fixture(scope="module")
def runner() -> Path:
    return compile_program("runner.cpp", ADDRESS)


@pytest.mark.parametrize("number", range(len(KINDS)), ids=lambda i: KINDS[i].name)
def test_every_kernel_equals_the_oracle(number: int, runner: Path, tmp_path: Path) -> None:
    case = KINDS[number]
    # only the gradient of the features lists boxes
    asked = (True, False, False) if case.name == "many_boxes" else None
    jobs = [Job(case, variant, asked) for variant in variants_of(number, case)]
    of_features = [*[True] * len(case.features), False, False]
    jobs += [Job(case, variant, of_features) for variant in variants_of_tiles(number, case)]
    results, launched = run_and_watch(runner, jobs, tmp_path)
    for job, result in zip(jobs, results, strict=True):
        job.check(result)
    left_out = ()
    if case.name == "no_boxes":  # the only work is zeroing the gradients of the features
        left_out = ("forward", "touched_tiles", "map_and_box_gradient", "sum_shares", "transpose")
    elif case.name == "many_boxes":
        left_out = ("forward_bins_in_lanes", "map_and_box_gradient", "sum_shares", "transpose")
    elif case.name == "bins_in_several_patches":  # one bin: the gradient has channels innermost
        left_out = ("transpose",)
    elif case.name == "ragged_channels":
        left_out = ("1, 1, 4>",)  # one channel in a lane
    assert launched == {
        kernel for kernel in kernels_of(runner) if not any(name in kernel for name in left_out)
    }


def test_far_tensors_need_offsets_of_64_bits() -> None:
    case = KINDS[-1]
    (features,) = case.features
    for elements in (features.size, case.grad.size):
        assert elements * FAR_FACTOR > 2**31


def test_the_host_runs_the_kernels_that_nvcc_compiles(runner: Path) -> None:
    with BASELINE.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    architectures = {row["architecture"] for row in rows}
    assert architectures
    for architecture in architectures:
        compiled = {row["name"] for row in rows if row["architecture"] == architecture}
        assert compiled == kernels_of(runner)
