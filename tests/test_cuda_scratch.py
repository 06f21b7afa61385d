"""Scratch of the CUDA gradients of maps and boxes: bounded for every shape, decided from shapes
alone. The launcher and these tests ask the same class, csrc/cuda/launch_map_and_box_gradient.h."""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from cases import CROSSING, INSIDE, make
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

LEAST = 16 << 20  # bytes that scratch may always have

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


@pytest.fixture(scope="module")
def grid() -> dict[Shape, Scratch]:
    asked = ((True, False), (False, True), (True, True))
    shapes = [
        Shape(*each) for each in itertools.product(NUM_ROIS, OUTPUT_SIZES, MAP_SIZES, TYPES, asked)
    ]
    process = subprocess.run(
        [compile_program("scratch.cpp", ADDRESS)],
        input="\n".join(shape.line() for shape in shapes),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    return {
        shape: Scratch(*map(int, line.split())) for shape, line in zip(shapes, lines, strict=True)
    }


def test_scratch_is_at_most_16_mib_or_the_gradients_asked_for(
    grid: dict[Shape, Scratch],
) -> None:
    for shape, scratch in grid.items():
        assert 0 <= scratch.bytes <= max(LEAST, shape.of_maps + shape.of_boxes), shape


def test_the_grid_reaches_both_bounds_and_each_way_to_keep_them(
    grid: dict[Shape, Scratch],
) -> None:
    used = [scratch.bytes for scratch in grid.values()]
    assert 0 in used and max(used) > LEAST
    assert any(LEAST / 2 < each <= LEAST for each in used)
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
    """Else a gradient's bits would depend on whether another one is asked for."""
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
            Job(case, replace(variant, scratch=scratch), (False, *asked)) for scratch in (0, LEAST)
        ]
        results = run(runner, jobs, tmp_path)
        jobs[0].check(results[0])
        for name, first in results[0].items():
            torch.testing.assert_close(first, results[1][name], rtol=0, atol=0)
