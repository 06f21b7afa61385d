"""Constants, launch rules and shared memory of csrc/cuda. A function names its C++ counterpart;
tests/test_cuda_model.py compares the constants with the headers."""

from __future__ import annotations

from dataclasses import dataclass

# csrc/cuda, by the names there.
CONSTANTS = {
    "kWarp": 32,
    "kMaxThreads": 256,
    "kChannelsPerLane": 8,
    "kManyBlocks": 3,
    "kFewBlocks": 2,
    "kChannelsPerWarp": 256,
    "kVectorBytes": 16,
    "kMaxTaps": 1024,
    "kMaxSamples": 1024,
    "kMaxAxisSamples": 64,
    "kMaxBinSamples": 32,
    "kMaxTouched": 32,
    "kManyTaps": 128,
    "kPixelsPerWarp": 4,
    "kMaxTilePixels": 32,
    "kBoxesPerWord": 32,
    "kListedBoxes": 1024,
    "kBatch": 8,
    "kTapsPerPixel": 32,
    "kFewSamples": 4,
    "kCacheBytes": 25 << 20,
    "kMostAtOnce": 4,
    "wanted_blocks": 512,
}
WARP = CONSTANTS["kWarp"]
THREADS = CONSTANTS["kMaxThreads"]
WARPS = THREADS // WARP
CHANNELS_PER_LANE = CONSTANTS["kChannelsPerLane"]
CHANNELS_PER_WARP = CONSTANTS["kChannelsPerWarp"]
MAX_TAPS = CONSTANTS["kMaxTaps"]
MANY_TAPS = CONSTANTS["kManyTaps"]
MAX_AXIS_SAMPLES = CONSTANTS["kMaxAxisSamples"]
LISTED_BOXES = CONSTANTS["kListedBoxes"]
WANTED_BLOCKS = CONSTANTS["wanted_blocks"]


@dataclass(frozen=True)
class Design:
    """What the kernels do; the defaults are the kernels as they are, other values are proposals."""

    batch: int = CONSTANTS["kBatch"]  # boxes in hand
    pixels_per_warp: int = CONSTANTS["kPixelsPerWarp"]  # of a tile
    list_parts: int = 1  # blocks that share the boxes of a tile, where blocks are few
    taps_by_all: bool = False  # a batch's taps are dealt to all threads, not to (pixel, box)
    taps_in_registers: bool = False  # taps of a step are read from shared memory before any pixel
    leaves_empty_tiles: bool = False  # reads a tile's bits first; boxes are counted by a warp
    map_loads_together: bool = False  # the four loads of a map value do not wait for one another
    taps_in_flight: int = 1  # per pixel (gradient); times two (forward)
    warps_over_bins: bool = False  # contiguous forward of few channels
    planned_by_lanes: bool = False  # the axes of a box by several lanes
    rows_and_columns_apart: bool = False  # a warp of BoxBatch::fill has rows or columns, not both
    channel_per_lane: bool = False  # instances for 32 channels or fewer: 64 registers


NOW = Design()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class BoxGrid:
    """BoxGrid: blocks are (slab of channels, box, share of the box's groups)."""

    num_rois: int
    slabs: int
    slab_channels: int
    shares: int
    max_bins: int

    @property
    def size(self) -> int:
        return self.slabs * self.num_rois * self.shares


def make_box_grid(num_rois: int, channels: int, slab_channels: int, bins: int) -> BoxGrid:
    """make_box_grid"""
    slabs = ceil_div(channels, slab_channels)
    shares = min(max(WANTED_BLOCKS // max(1, num_rois * slabs), 1), bins)
    return BoxGrid(num_rois, slabs, slab_channels, shares, ceil_div(bins, shares))


def channels_per_slab(num_rois: int, channels: int, pixels: int, element_size: int) -> int:
    """channels_per_slab; pixels: of all levels and images."""
    at_once = WARPS * CHANNELS_PER_LANE
    fit = CONSTANTS["kCacheBytes"] // max(1, pixels * at_once * element_size)
    blocks = num_rois * ceil_div(channels, at_once)
    return at_once * min(max(min(fit, blocks // WANTED_BLOCKS), 1), CONSTANTS["kMostAtOnce"])


def reads_channels_in_lanes(channels: int, channels_last: bool) -> bool:
    """reads_channels_in_lanes"""
    return channels_last and channels >= CHANNELS_PER_LANE


def vector_width(channels: int, element_size: int) -> int:
    """is_vectorizable, for tensors as torch allocates them"""
    width = CONSTANTS["kVectorBytes"] // element_size
    return width if channels % width == 0 else 1


def tile_shape(channels_last: bool, pixels_per_warp: int) -> tuple[int, int]:
    """make_tiles: height and width in pixels"""
    warps_across = 2 if channels_last else 4
    return WARPS // warps_across, pixels_per_warp * warps_across


@dataclass(frozen=True)
class PatchPlan:
    """PatchPlan, of bins that fit into a patch"""

    taps_per_bin: int
    bin_rows: int
    bin_columns: int

    @property
    def has_many_taps(self) -> bool:
        return self.taps_per_bin > MANY_TAPS


def bin_extent(spacing: float, samples: int, magnitude: float) -> int:
    """bin_extent of a float axis: rows that `samples` samples, `spacing` pixels apart, touch at
    most. magnitude: |start| + |extent|."""
    slack = 0.01 + 16 * 2.0**-23 * magnitude
    most_touched = CONSTANTS["kMaxTouched"]
    fitting = (most_touched - 3 - slack) / spacing + 1 if spacing > 0 else float("inf")
    fit = min(int(min(max(fitting, most_touched // 2), CONSTANTS["kMaxBinSamples"])), samples)
    if fit < samples:
        raise NotImplementedError("bins with samples in several patches are not modelled")
    touched = (samples - 1) * spacing + slack + 3
    return int(touched) if touched < 2 * samples else 2 * samples


def plan_patches(
    touched: tuple[int, int], samples: tuple[int, int], bins: tuple[int, int], max_bins: int
) -> PatchPlan:
    """plan_patches; pairs are along y and x"""
    taps_per_bin = touched[0] * touched[1]
    if taps_per_bin > MANY_TAPS:
        return PatchPlan(taps_per_bin, 1, 1)
    along_y, along_x = (MAX_AXIS_SAMPLES // s for s in samples)
    by_samples = CONSTANTS["kMaxSamples"] // (samples[0] * samples[1])
    most = min(max_bins, MAX_TAPS // taps_per_bin, by_samples)
    columns = min(bins[1], along_x, most)
    return PatchPlan(taps_per_bin, min(bins[0], along_y, most // columns), columns)


def loads_in_flight(blocks: int) -> int:
    """kLoadsInFlight of types other than float64"""
    return 2 if blocks == CONSTANTS["kManyBlocks"] else 4


# Bytes in shared memory with float coordinates: sizeof of the C++ types.
TAP = 16
BOX = 88
PLAN = 28
INTERPOLATION = 20
AXIS_TABLE = MAX_AXIS_SAMPLES * (2 * INTERPOLATION + 12) + 2 * MAX_AXIS_SAMPLES * 4
TABLES = 2 * AXIS_TABLE + CONSTANTS["kMaxSamples"] * 4
STAGED_BINS = WARPS * CHANNELS_PER_LANE * 33 * 4
BOX_GRADIENTS = WARPS * 16


def shared_bytes(kernel: str, design: Design = NOW) -> int:
    """__shared__ variables of a kernel for float coordinates, before their alignment."""
    if kernel == "forward_channels_in_lanes_kernel":
        return BOX + PLAN + TABLES + MAX_TAPS * TAP
    if kernel == "forward_bins_in_lanes_kernel":
        return BOX + PLAN + TABLES + MAX_TAPS * TAP + STAGED_BINS
    if kernel == "map_and_box_gradient_kernel":
        return (
            BOX + PLAN + TABLES + MAX_TAPS * (8 + 4) + CONSTANTS["kMaxSamples"] * 4 + BOX_GRADIENTS
        )
    if kernel == "gather_feature_gradient_kernel":
        pixels = WARPS * design.pixels_per_warp
        lists = LISTED_BOXES * 4 + LISTED_BOXES // WARP * 4
        batch = design.batch * (BOX + 2 * 8 * pixels)
        return lists + batch + MAX_TAPS * TAP + pixels * 4
    return 0
