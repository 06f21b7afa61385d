"""Scratch of the CUDA gradients: bounded for every shape, decided from shapes alone. The launchers
and these tests use the same classes, in csrc/cuda/launch.h and launch_map_and_box_gradient.h.

The two jobs of a backward pass use scratch one after the other. A backward pass also copies the
output's gradient to channels innermost, and boxes, levels and maps that are not contiguous.
"""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from cases import CASES, CROSSING, INSIDE, make
from host_cuda.jobs import (
    ADDRESS,
    BF16,
    F16,
    F32,
    F64,
    SCALAR_TYPES,
    Job,
    Variant,
    compile_program,
    run,
)

pytestmark = pytest.mark.slow

MIN_SCRATCH = 16 << 20  # bytes that scratch may always have

NUM_ROIS = (0, 1, 2, 10, 100, 511, 512, 1000, 100_000, 3_000_000)
OUTPUT_SIZES = ((1, 1), (7, 7), (14, 14), (64, 64))
MAP_SIZES = ((1, 1), (28, 28), (112, 112), (800, 1333), (3000, 3000), (1, 9_000_000))
TYPES = tuple(itertools.product((F64, F32, F16, BF16), (F64, F32), (F64, F32, F16, BF16)))


class Shape(NamedTuple):
    num_rois: int
    output_size: tuple[int, int]
    map_size: tuple[int, int]
    types: tuple[torch.dtype, torch.dtype, torch.dtype]  # of features, boxes, maps
    asked: tuple[bool, bool]  # gradients of maps, of boxes

    def line(self) -> str:
        types = map(SCALAR_TYPES.index, self.types)
        sizes = (self.num_rois, 256, *self.output_size, *self.map_size)
        return " ".join(map(str, (*sizes, *types, *map(int, self.asked))))

    @property
    def of_maps(self) -> int:
        """Bytes of the gradient of the maps, if it is asked for."""
        height, width = self.map_size
        return self.asked[0] * self.num_rois * height * width * self.types[2].itemsize

    @property
    def of_boxes(self) -> int:
        return self.asked[1] * self.num_rois * 5 * self.types[1].itemsize


class Scratch(NamedTuple):
    bytes: int
    shares: int
    boxes: int  # of a pass
    cells: int  # of a map in a pass


def plan(of: str, lines: list[str]) -> list[list[int]]:
    """The answers of scratch.cpp, one per line."""
    process = subprocess.run(
        [compile_program("scratch.cpp", ADDRESS), of],
        input="\n".join(lines),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return [list(map(int, line.split())) for line in process.stdout.splitlines()]


@pytest.fixture(scope="module")
def grid() -> dict[Shape, Scratch]:
    asked = ((True, False), (False, True), (True, True))
    shapes = [
        Shape(*each) for each in itertools.product(NUM_ROIS, OUTPUT_SIZES, MAP_SIZES, TYPES, asked)
    ]
    answers = plan("maps", [shape.line() for shape in shapes])
    return {shape: Scratch(*answer) for shape, answer in zip(shapes, answers, strict=True)}


def test_scratch_is_at_most_16_mib_or_the_gradients_asked_for(
    grid: dict[Shape, Scratch],
) -> None:
    for shape, scratch in grid.items():
        assert 0 <= scratch.bytes <= max(MIN_SCRATCH, shape.of_maps + shape.of_boxes), shape


def test_the_grid_reaches_both_bounds_and_each_way_to_keep_them(
    grid: dict[Shape, Scratch],
) -> None:
    used = [scratch.bytes for scratch in grid.values()]
    assert 0 in used and max(used) > MIN_SCRATCH
    assert any(MIN_SCRATCH / 2 < each <= MIN_SCRATCH for each in used)
    assert any(1 < s.boxes < shape.num_rois for shape, s in grid.items())
    cells = [(shape.map_size[0] * shape.map_size[1], s.cells) for shape, s in grid.items()]
    assert any(some < all_cells for all_cells, some in cells)
    # Ten boxes are shared by 49 blocks where scratch allows it.
    few = [s.shares for shape, s in grid.items() if shape[:2] == (10, (7, 7))]
    assert set(few) > {1, 49}


def test_gradients_that_blocks_write_themselves_need_no_scratch(
    grid: dict[Shape, Scratch],
) -> None:
    same = [
        scratch.bytes
        for shape, scratch in grid.items()
        if shape.num_rois >= 512 and set(shape.types) in ({F32}, {F64})
    ]
    assert same and not any(same)


def test_the_number_of_shares_depends_on_shapes_and_not_on_which_gradients_are_asked_for(
    grid: dict[Shape, Scratch],
) -> None:
    """Otherwise a gradient's bits would depend on which other gradients are requested."""
    shares: dict[Shape, set[int]] = {}
    for shape, scratch in grid.items():
        shares.setdefault(shape._replace(asked=(True, True)), set()).add(scratch.shares)
    assert all(len(each) == 1 for each in shares.values())


@pytest.mark.parametrize("box_dtype", [F32, F64], ids=["f32 boxes", "f64 boxes"])
@pytest.mark.parametrize("map_dtype", [F64, F32, F16, BF16], ids=["f64", "f32", "f16", "bf16"])
@pytest.mark.parametrize("asked", [(True, True), (True, False), (False, True)], ids=str)
def test_results_do_not_depend_on_the_number_of_passes(
    asked: tuple[bool, bool],
    map_dtype: torch.dtype,
    box_dtype: torch.dtype,
    tmp_path: Path,
) -> None:
    """Passes over some of the boxes, and over some cells of one box's map."""
    runner = compile_program("runner.cpp", ADDRESS)
    variant = Variant(F32, box_dtype, map_dtype, "channels_last", 64, 1 << 20)
    several = make("several", INSIDE + CROSSING, channels=8, levels=[0] * 6, sampling_ratio=-1)
    one = make("one", INSIDE[2:], channels=8, map_size=(9, 13), sampling_ratio=-1)
    assert len(several.rois) == 6
    for case in (several, one):
        jobs = [
            Job(case, replace(variant, scratch=scratch), (False, *asked))
            for scratch in (0, MIN_SCRATCH)
        ]
        results = run(runner, jobs, tmp_path)
        jobs[0].check(results[0])
        for name, first in results[0].items():
            torch.testing.assert_close(first, results[1][name], rtol=0, atol=0)


class FeatureShape(NamedTuple):
    num_rois: int
    channels: int
    num_images: int
    size: tuple[int, int]  # of the first level; the second has half
    types: tuple[torch.dtype, torch.dtype]  # of features, boxes
    channels_innermost: bool
    asked: tuple[bool, bool]

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        height, width = self.size
        return self.size, ((height + 1) // 2, (width + 1) // 2)

    def line(self) -> str:
        types = map(SCALAR_TYPES.index, self.types)
        numbers = [self.num_rois, self.channels, self.num_images, *types, self.channels_innermost]
        for size, asked in zip(self.sizes, self.asked, strict=True):
            numbers += [*size, asked]
        return " ".join(str(int(number)) for number in numbers)

    @property
    def gradients(self) -> int:
        """Bytes of the requested gradients."""
        pixels = sum(h * w * a for (h, w), a in zip(self.sizes, self.asked, strict=True))
        return self.num_images * self.channels * pixels * self.types[0].itemsize


class FeatureScratch(NamedTuple):
    boxes: int
    images: int
    bits: int
    pixels_per_warp: int

    @property
    def bytes(self) -> int:
        return self.boxes + self.images + self.bits


@pytest.fixture(scope="module")
def feature_grid() -> dict[FeatureShape, FeatureScratch]:
    shapes = [
        FeatureShape(*each)
        for each in itertools.product(
            (0, 1, 32, 33, 1000, 5000, 100_000, 3_000_000),
            (1, 3, 32, 33, 256),
            (1, 2, 3_000_000),
            ((1, 1), (25, 42), (200, 336), (2048, 2048), (1, 60_000)),
            tuple(itertools.product((F64, F32, F16), (F64, F32))),
            (True, False),
            ((True, True), (False, True)),
        )
        if each[2] < 1000 or each[3] == (1, 1)  # millions of images have one pixel
    ]
    answers = plan("features", [shape.line() for shape in shapes])
    return {shape: FeatureScratch(*answer) for shape, answer in zip(shapes, answers, strict=True)}


def test_scratch_of_features_is_at_most_16_mib_or_the_gradients_asked_for(
    feature_grid: dict[FeatureShape, FeatureScratch],
) -> None:
    for shape, scratch in feature_grid.items():
        assert 0 <= scratch.bytes <= max(MIN_SCRATCH, shape.gradients), shape


def test_the_grid_of_features_reaches_both_bounds_and_both_ways_to_find_boxes(
    feature_grid: dict[FeatureShape, FeatureScratch],
) -> None:
    used = [scratch.bytes for scratch in feature_grid.values()]
    assert 0 in used and max(used) > MIN_SCRATCH
    assert any(MIN_SCRATCH / 2 < each <= MIN_SCRATCH for each in used)
    without = [(shape, s) for shape, s in feature_grid.items() if s.bytes == 0]
    assert any(shape.num_rois == 32 and shape.size == (25, 42) for shape, _ in without)
    assert any(shape.num_rois > 32 and shape.channels == 3 for shape, _ in without)
    assert any(0 < shape.num_rois <= 32 for shape, s in feature_grid.items() if s.bytes > 0)


def test_kernels_that_cannot_look_at_boxes_have_scratch(
    feature_grid: dict[FeatureShape, FeatureScratch],
) -> None:
    """Kernels for small tiles or float64 coordinates can; see can_check_boxes."""
    large = [
        scratch.bytes
        for shape, scratch in feature_grid.items()
        if shape.num_rois > 0 and F64 not in shape.types and scratch.pixels_per_warp > 1
    ]
    assert large and all(large)


# (few_boxes, scratch, wanted_blocks): bits for large tiles, bits for small tiles, no bits because
# boxes are few, no bits for lack of scratch.
LAUNCHES = (
    (0, MIN_SCRATCH, 1),
    (0, MIN_SCRATCH, 1 << 20),
    (1 << 20, MIN_SCRATCH, 1 << 20),
    (0, 0, 1),
)


@pytest.mark.parametrize("part", range(4))
def test_features_do_not_depend_on_how_tiles_find_their_boxes(part: int, tmp_path: Path) -> None:
    runner = compile_program("runner.cpp", ADDRESS)
    types = ((F32, F32), (F64, F64), (F16, F32), (F32, F64))
    layouts = ("channels_last", "contiguous", "channels_last_unaligned")
    rng = np.random.default_rng(part)
    low = rng.uniform(-3, 9, (1100, 2))
    many = make(
        "many",
        np.hstack([rng.integers(0, 2, (1100, 1)), low, low + rng.uniform(-1, 4, (1100, 2))]),
        channels=8,
        sizes=((6, 7),),
        spatial_scales=(1.0,),
        output_size=(1, 1),
        sampling_ratio=-1,
        aligned=part % 2 == 0,
        map_size=(1, 2),
    )
    jobs = []
    for number, case in enumerate([*CASES[part::4], many]):
        variant = Variant(
            *types[number % 4], F32, layouts[number % 3], (96, 32, 256)[number % 3], 1 << 20
        )
        of_features = [*[True] * len(case.features), False, False]
        for few_boxes, scratch, wanted_blocks in LAUNCHES:
            way = replace(
                variant, few_boxes=few_boxes, scratch=scratch, wanted_blocks=wanted_blocks
            )
            jobs.append(Job(case, way, of_features))
    results = run(runner, jobs, tmp_path)
    for job, first, *others in zip(
        jobs[:: len(LAUNCHES)],
        *(results[i :: len(LAUNCHES)] for i in range(len(LAUNCHES))),
        strict=True,
    ):
        for other in others:
            for name in first:
                if name.startswith("features"):
                    torch.testing.assert_close(
                        first[name], other[name], rtol=0, atol=0, msg=job.case.name
                    )
