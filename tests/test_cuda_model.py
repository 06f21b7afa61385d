"""The counting model of the CUDA kernels agrees with counts made by hand and with the C++ source.
benchmarks/cuda_prediction.md is up to date."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmark_modules import import_benchmarks

CUDA = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
MODULES = ("kernels", "boxes", "counts", "tiles", "machine", "page", "calls", "text")


@pytest.fixture(scope="module")
def model() -> Iterator[SimpleNamespace]:
    names = [f"cuda_model.{name}" for name in MODULES]
    with import_benchmarks("cases", *names) as modules:
        yield modules


@pytest.fixture
def grid(model: SimpleNamespace) -> object:
    """2 x 2 bins of 2 x 2 samples on 8 x 8 pixels."""
    return replace(
        model.cases.BOX_HEAD, levels=((8, 8, 1),), output_size=2, num_images=1, boxes_per_image=1
    )


# The source


def constants_of_the_source() -> dict[str, int]:
    source = "".join(path.read_text() for path in sorted(CUDA.rglob("*.*h")))
    pattern = r"\b(?:constexpr )?int(?:32|64)_t\s+(k[A-Z]\w+|wanted_blocks|copied)\s*=\s*([^;]+);"
    definitions = dict(re.findall(pattern, source))
    found: dict[str, int] = {}
    while True:
        before = len(found)
        for name, text in definitions.items():
            expression = re.sub(r"\bint(32|64)_t\b", "", text).replace("/", "//")
            if name not in found and re.fullmatch(r"[\w\s()+*/<-]+", expression):
                with contextlib.suppress(NameError, SyntaxError):  # not yet known; a template's
                    found[name] = eval(expression, {}, found)
        if len(found) == before:
            return found


def test_constants_are_those_of_the_source(model):
    source = constants_of_the_source()
    ours = model.kernels.CONSTANTS
    assert {name: source.get(name) for name in ours} == ours


def test_shared_memory_is_what_the_compiler_found(model):
    for (architecture, kernel), footprint in model.machine.read_baseline().items():
        if not any(each in kernel for each in (", double", "<double", "<unsigned long")):
            name, arguments = kernel.split("<")
            pixels = [1] if name.startswith("gather") and arguments.endswith(" 1>") else []
            counted = model.kernels.shared_bytes(name, *pixels)
            assert counted == pytest.approx(footprint.shared, abs=16), (architecture, kernel)


def test_every_kernel_of_a_case_has_a_footprint(model):
    for element_size in (4, 2):
        for channels_last in (True, False):
            case = replace(model.cases.BOX_HEAD, boxes_per_image=1, levels=((8, 8, 64),))
            for f in (
                model.counts.forward,
                model.counts.map_and_box_gradient,
                model.tiles.gather_feature_gradient,
            ):
                kernel = f(case, channels_last, element_size).kernel
                assert ("sm_90", kernel) in model.machine.read_baseline()


# Launches


@pytest.mark.parametrize(
    ("boxes", "shares", "bins"), [(1, 49, 1), (10, 49, 1), (100, 5, 10), (512, 1, 49)]
)
def test_few_boxes_are_shared_among_blocks(model, boxes, shares, bins):
    grid = model.kernels.make_box_grid(boxes, 256, 256, 49)
    assert (grid.shares, grid.max_bins, grid.size) == (shares, bins, boxes * shares)


def test_a_slab_fits_into_half_the_cache(model):
    """64 channels of two images of 100 x 168 take 8.6 MB, so 3 x 64 fit into 26.2 MB. On 200 x 336,
    64 channels do not fit. 4 slabs x 128 boxes are exactly the 512 blocks that are wanted."""
    assert model.kernels.channels_per_slab(512, 256, 2 * 100 * 168, 4, 512) == 3 * 64
    assert model.kernels.channels_per_slab(512, 256, 2 * 200 * 336, 4, 512) == 64
    assert model.kernels.channels_per_slab(128, 256, 10, 4, 512) == 64


@pytest.mark.parametrize(
    ("size", "channels", "channels_last", "tile", "instance"),
    [
        (512, 256, True, (4, 8), (4, 8, 4)),
        (512, 256, False, (2, 16), (4, 8, 4)),
        (64, 256, True, (2, 4), (4, 8, 1)),
        (64, 256, False, (1, 8), (4, 8, 1)),
        (512, 32, True, (4, 8), (1, 1, 4)),
        (512, 33, True, (4, 8), (1, 8, 4)),
    ],
)
def test_tiles_and_kernels_are_chosen_by_shapes(
    model, size, channels, channels_last, tile, instance
):
    """512 x 512 pixels are 8192 tiles, 64 x 64 are 128: fewer than 1024."""
    tiles = model.kernels.make_tiles(((size, size, 1),), 1, channels, channels_last, 4)
    assert (tiles.height, tiles.width) == tile
    assert (tiles.vector, tiles.channels_per_lane, tiles.pixels_per_warp) == instance


def test_a_box_of_small_bins_is_one_patch(model):
    """Two samples half a pixel apart touch at most 3 rows. A bin has 9 taps: 49 bins fit."""
    touched = model.kernels.bin_extent(0.5, 2, 10.0)
    assert touched == 3
    plan = model.kernels.plan_patches((touched, touched), (2, 2), (7, 7), 49)
    assert (plan.taps_per_bin, plan.bin_rows, plan.bin_columns) == (9, 7, 7)


def test_a_bin_of_many_taps_has_a_patch_of_its_own(model):
    plan = model.kernels.plan_patches((12, 11), (10, 10), (7, 7), 49)
    assert plan.has_many_taps and (plan.bin_rows, plan.bin_columns) == (1, 1)


def test_bins_that_no_patch_holds_are_refused(model):
    with pytest.raises(NotImplementedError):
        model.kernels.bin_extent(1.0, 40, 100.0)


def test_features_are_copied_if_they_are_small_beside_the_output(model):
    """512 boxes of 49 bins are 25088 bins for each channel."""
    copies = model.kernels.copies_features
    assert copies(256, 6 * 25088, 512, 49) and not copies(256, 6 * 25088 + 1, 512, 49)
    assert not copies(7, 1, 512, 49)


def test_boxes_of_many_bins_want_more_blocks_in_forward(model):
    assert [model.kernels.wanted_in_forward(bins) for bins in (97, 98, 196)] == [512, 1024, 1024]


# Boxes


def test_touched_rows_by_hand(model, grid):
    """Samples at 1.25, 1.75 | 2.25, 2.75."""
    axis = model.boxes.make_box(grid, 0, 0, (1, 1, 3, 3)).y
    assert axis.taps_of_bins().tolist() == [2, 2]
    assert axis.touched().tolist() == [1, 2, 3]
    assert axis.samples_reading().tolist() == [0, 2, 4, 2, 0, 0, 0, 0]
    begin, end = axis.bins_reading()
    assert (end - begin).tolist() == [0, 1, 2, 1, 0, 0, 0, 0]


def test_samples_outside_read_nothing(model, grid):
    """Samples at 8, 9 | 10, 11. Only the sample at 8 is inside."""
    axis = model.boxes.make_box(grid, 0, 0, (7.5, 7.5, 11.5, 11.5)).x
    assert axis.taps_of_bins().tolist() == [1, 0]
    assert axis.touched().tolist() == [7]


def test_samples_far_apart_have_two_taps_each(model, grid):
    """Samples at 1 and 3 touch columns 1 to 4. Samples at 2.5 and 7.5 touch columns 2, 3 and 7."""
    for x2, taps in ((8, 4), (20, 4)):
        axis = model.boxes.make_box(grid, 0, 0, (0, 0, x2, 8)).x
        assert axis.taps_of_bins()[0] == taps


def test_sectors_by_hand(model, grid):
    """In each of three rows, columns 1 to 3 lie in one sector of eight floats, 7 and 8 in two."""
    assert model.boxes.make_box(grid, 0, 0, (1, 1, 3, 3)).sectors(4) == 3
    wide = replace(grid, levels=((8, 16, 1),))
    assert model.boxes.make_box(wide, 0, 0, (6.8, 1, 8.2, 3)).sectors(4) == 2 * 3


# Steps


def lines(model: SimpleNamespace, case: object, boxes: list[tuple[float, ...]]) -> tuple:
    made = [model.boxes.make_box(case, 0, 0, box) for box in boxes]
    y = model.tiles.Lines.make(made, "y", 8, 4)
    x = model.tiles.Lines.make(made, "x", 8, 8)
    return y, x, np.arange(len(boxes)), 0, 0, True, large_tiles(model)


def large_tiles(model: SimpleNamespace) -> object:
    return model.kernels.make_tiles(((512, 512, 1),), 1, 256, True, 4)


def test_one_tile_by_hand(model, grid):
    """Rows 1, 2 and 3 of the tile are read by 1, 2 and 1 bins, and so are the columns: 16 taps,
    four of pixel (2, 2). A warp has half a row: three warps have 2, 4 and 2 steps."""
    tile = lines(model, grid, [(1, 1, 3, 3)])
    counts = model.tiles.count_tile(*tile)
    assert (counts.batches, counts.rounds, counts.taps) == (1, 1, 16)
    assert (counts.steps, counts.warp_steps, counts.weight_taps) == (4, 8, 1)
    # One turn. The longest is pixel (2, 2)'s: two sample rows read it, two sample columns of each.
    clocks = model.machine.clocks
    of_a_tap = clocks("pixel tap") + 2 * (clocks("row weight") + clocks("row in map"))
    of_a_tap += 4 * (clocks("column weight") + clocks("sample value"))
    assert counts.weights == of_a_tap == model.page.full_tap()


def test_two_taps_of_a_pixel_halve_the_steps(model, grid):
    """With types of 2 bytes, the three warps have 1, 2 and 1 steps."""
    counts = model.tiles.count_tile(*lines(model, grid, [(1, 1, 3, 3)]), 2)
    assert (counts.steps, counts.warp_steps) == (2, 4)


def test_a_batch_ends_after_sixteen_boxes(model, grid):
    """Pixel (2, 2) has 4 taps per box: rounds of 32 and 32 for 16 boxes, of 16 for the other 4. The
    tile has 16 taps per box: 256 in the first batch, 64 in the second."""
    counts = model.tiles.count_tile(*lines(model, grid, [(1, 1, 3, 3)] * 20))
    assert (counts.batches, counts.rounds, counts.steps) == (2, 3, 80)
    assert counts.weight_taps == 3


def test_a_pixel_of_many_taps_takes_rounds(model, grid):
    """49 bins read one pixel: a round of 32 taps, then one of 17."""
    case = replace(grid, output_size=7)
    counts = model.tiles.count_tile(*lines(model, case, [(2.2, 2.2, 3.2, 3.2)]))
    assert (counts.batches, counts.rounds, counts.steps, counts.weight_taps) == (1, 2, 49, 2)


def test_an_empty_tile_reads_its_bits_and_writes(model):
    clocks = model.machine.clocks
    empty = clocks("tile") + clocks("bits") + clocks("store")
    assert model.tiles.tile_tally(np.zeros(0, np.int64), 1000).clocks == empty
    listed = model.tiles.tile_tally(np.array([3]), 2000).clocks
    assert listed == empty + clocks("bits") + clocks("list")


def test_a_tile_looks_at_few_boxes_in_place_of_bits(model):
    clocks = model.machine.clocks
    empty = clocks("tile") + clocks("look") + clocks("store")
    assert model.tiles.tile_tally(np.zeros(0, np.int64), 10, True).clocks == empty


@pytest.mark.parametrize(
    ("size", "boxes", "looks"), [(64, 32, True), (64, 33, False), (512, 10, False)]
)
def test_boxes_are_looked_at_where_they_and_the_tiles_are_few(model, size, boxes, looks):
    """64 x 64 pixels are 128 tiles of 32 pixels or 512 of 8; 512 x 512 are 8192 of 32."""
    tiles = model.kernels.make_tiles(((size, size, 1),), 1, 256, True, 4)
    assert tiles.look_at_boxes(boxes, 256) == looks


@pytest.mark.parametrize(
    ("name", "channels_last", "launches"),
    [
        ("ten_boxes", True, ["gather", "map_and_box", "sum_shares"]),
        ("ten_boxes", False, ["transpose", "gather", "map_and_box", "sum_shares"]),
        (
            "c4",
            False,
            [
                *["transpose", "zeros", "touched_tiles", "gather"],
                *["transpose", "map_and_box", "sum_shares"],
            ],
        ),
        ("channels_3", True, ["zeros", "touched_tiles", "gather", "map_and_box"]),
    ],
)
def test_launches_of_a_backward_pass(model, name, channels_last, launches):
    works = model.calls.backward(model.text.ALL[name], channels_last, 4)
    assert all(work.kernel.startswith(each) for work, each in zip(works, launches, strict=True))


def test_warps_take_bins_in_turn(model):
    """Nine bins of 5 taps, two in flight: the first warp has two bins, 4 pairs and 2 odd taps."""
    plan = model.kernels.PatchPlan(9, 3, 3)
    patch = model.counts.Patch(np.full(9, 5), 36, plan)
    tally = model.counts.Tally()
    model.counts.add_channels_in_lanes(tally, patch, 2)
    clocks = model.machine.clocks
    assert tally.clocks == 2 * clocks("bin") + 4 * clocks("channels") + 2 * clocks("last")


def test_a_warp_has_all_bins_of_its_channels(model):
    """Four bins at a time: 13 passes over 49 bins. Eight lanes share the 16 taps of a bin.
    Two stores of up to 32 bins."""
    patch = model.counts.Patch(np.full(49, 16), 196, model.kernels.PatchPlan(16, 7, 7))
    clocks = model.machine.clocks
    tally = model.counts.Tally()
    model.counts.add_bins_in_lanes(tally, patch, 64)
    assert tally.clocks == 13 * clocks("team") + 26 * clocks("pixels") + 2 * clocks("write")


def test_warps_share_the_bins_of_few_channels(model):
    """Eight warps have 7 of 49 bins each, four at a time: two passes."""
    patch = model.counts.Patch(np.full(49, 16), 196, model.kernels.PatchPlan(16, 7, 7))
    clocks = model.machine.clocks
    tally = model.counts.Tally()
    model.counts.add_bins_in_lanes(tally, patch, 3)
    assert tally.clocks == 2 * clocks("team") + 4 * clocks("pixels") + clocks("write")


def test_time_by_hand(model):
    """264 blocks of 1.7 us fill 132 multiprocessors once. The second level moves 5.5 MB in 1 us."""
    work = model.counts.Work("", np.full(264, 2890.0), 0.0, second_level=5.5e6, resident=2)
    limits = work.limits()
    assert limits["latency"] == limits["longest block"] == pytest.approx(1.7e-6)
    assert limits["second level"] == pytest.approx(1e-6)
    assert work.seconds() == pytest.approx(3.7e-6)


@pytest.mark.parametrize(
    ("registers", "shared", "blocks", "by"),
    [(80, 28288, 3, "registers"), (128, 25536, 2, "registers"), (80, 36736, 2, "shared memory")],
)
def test_blocks_per_multiprocessor_by_hand(model, registers, shared, blocks, by):
    """65536 registers are enough for 25 warps with 80 registers per thread. 100 KB of shared memory
    hold two blocks of 36 + 1 KB."""
    small = next(c for c in model.machine.CAPABILITIES if c.name.startswith("8.6"))
    limits = model.machine.blocks_by(model.machine.Footprint(registers, shared), small, 256)
    assert min(limits.values()) == blocks == limits[by]


def test_one_small_map_has_few_blocks(model):
    """13 x 11 tiles of 2 x 4 pixels on 25 x 42; 7 x 6 of 4 x 8."""
    case = model.text.ALL["one_small_map"]
    work = model.tiles.gather_feature_gradient(case, True, 4)
    assert len(work.blocks) == work.counts["tiles"] == 143
    large = replace(model.kernels.NOW, small_tiles=False)
    assert len(model.tiles.gather_feature_gradient(case, True, 4, large).blocks) == 42
    assert work.bound_by == "longest block"


# The page


def cells_of(page: str) -> dict[tuple[str, str, str], str]:
    """(table, row, column) -> cell."""
    cells = {}
    head: list[str] | None = None
    for line in page.splitlines():
        if not line.startswith("|"):
            head = None
        elif head is None:
            head = [cell.strip() for cell in line.strip("|").split("|")]
        elif "---" not in line:
            row = [cell.strip() for cell in line.strip("|").split("|")]
            cells.update(
                {(head[0], row[0], column): cell for column, cell in zip(head, row, strict=True)}
            )
    return cells


def is_close(ours: str, theirs: str) -> bool:
    """Numbers may differ a little: boxes are drawn with the processor's own exp."""
    numbers = r"\d+(?:\.\d+)?"
    if re.sub(numbers, "", ours) != re.sub(numbers, "", theirs):
        return False
    pairs = zip(re.findall(numbers, ours), re.findall(numbers, theirs), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=0.03, abs_tol=0.11) for a, b in pairs)


@pytest.mark.slow
def test_the_page_is_up_to_date(model):
    page = model.page.PAGE.read_text()
    part = model.page.render(["one_small_map", "one_box"])
    text = [line for line in part.splitlines() if not line.startswith("|")]
    assert [line for line in page.splitlines() if not line.startswith("|")] == text
    recorded = cells_of(page)
    differing = {
        key: (recorded.get(key), cell)
        for key, cell in cells_of(part).items()
        if not is_close(recorded.get(key, ""), cell)
    }
    assert differing == {}
