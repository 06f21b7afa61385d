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
    "kTeam": 8,
    "kPixelsPerWarp": 4,
    "kBoxesPerWord": 32,
    "kListedBoxes": 1024,
    "kBatch": 16,
    "kLargeBatch": 32,
    "kTileTaps": 1024,
    "kFewTiles": 8,
    "kFewSamples": 4,
    "kCacheBytes": 25 << 20,
    "kMaxAtOnce": 4,
    "kManyBins": 98,
    "copied": 6,
    "wanted_blocks": 512,
}
WARP = CONSTANTS["kWarp"]
THREADS = CONSTANTS["kMaxThreads"]
WARPS = THREADS // WARP
CHANNELS_PER_LANE = CONSTANTS["kChannelsPerLane"]
CHANNELS_PER_WARP = CONSTANTS["kChannelsPerWarp"]
TEAM = CONSTANTS["kTeam"]
MAX_TAPS = CONSTANTS["kMaxTaps"]
MANY_TAPS = CONSTANTS["kManyTaps"]
MAX_AXIS_SAMPLES = CONSTANTS["kMaxAxisSamples"]
LISTED_BOXES = CONSTANTS["kListedBoxes"]
WANTED_BLOCKS = CONSTANTS["wanted_blocks"]


@dataclass(frozen=True)
class Design:
    """What the kernels do; the defaults are the kernels as they are, other values are proposals."""

    small_tiles: bool = True  # a warp serves one pixel where tiles are few
    channel_per_lane: bool = True  # where channels are few
    taps_in_flight: bool = False  # gradient of the maps: all taps of a step before their use
    planned_by_lanes: bool = True  # each axis of a box by a lane of its own
    looks_at_few_boxes: bool = True  # few boxes: tiles read edges instead of bits


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


def wanted_in_forward(bins: int) -> int:
    """options_of_forward"""
    return WANTED_BLOCKS * (2 if bins >= CONSTANTS["kManyBins"] else 1)


def make_box_grid(
    num_rois: int, channels: int, slab_channels: int, bins: int, wanted: int = WANTED_BLOCKS
) -> BoxGrid:
    """make_box_grid"""
    slabs = ceil_div(channels, slab_channels)
    shares = min(max(wanted // max(1, num_rois * slabs), 1), bins)
    return BoxGrid(num_rois, slabs, slab_channels, shares, ceil_div(bins, shares))


def channels_per_slab(
    num_rois: int, channels: int, pixels: int, element_size: int, wanted: int
) -> int:
    """channels_per_slab; pixels: of all levels and images."""
    at_once = WARPS * CHANNELS_PER_LANE
    fit = CONSTANTS["kCacheBytes"] // max(1, pixels * at_once * element_size)
    blocks = num_rois * ceil_div(channels, at_once)
    return at_once * min(max(min(fit, blocks // wanted), 1), CONSTANTS["kMaxAtOnce"])


def reads_channels_in_lanes(channels: int, channels_last: bool) -> bool:
    """reads_channels_in_lanes"""
    return channels_last and channels >= CHANNELS_PER_LANE


def copies_features(channels: int, pixels: int, num_rois: int, bins: int) -> bool:
    """copies_features, of contiguous features; pixels: of all levels and images."""
    return channels >= CHANNELS_PER_LANE and pixels <= CONSTANTS["copied"] * num_rois * bins


def vector_width(channels: int, element_size: int) -> int:
    """is_vectorizable, for tensors as torch allocates them"""
    width = CONSTANTS["kVectorBytes"] // element_size
    return width if channels % width == 0 else 1


@dataclass(frozen=True)
class Tiles:
    """The tiles of a call, and which gather_feature_gradient_kernel serves them."""

    height: int  # of a tile, in pixels
    width: int
    count: int  # of all images
    batch: int  # boxes in hand
    pixels_per_warp: int
    channels_per_lane: int
    vector: int

    @property
    def taps_per_pixel(self) -> int:
        """kTapsPerPixel"""
        return CONSTANTS["kTileTaps"] // (WARPS * self.pixels_per_warp)

    def look_at_boxes(self, num_rois: int, channels: int, design: Design = NOW) -> bool:
        """FeatureGradientPlan, where scratch is not too large"""
        blocks = self.count * ceil_div(channels, CHANNELS_PER_WARP)
        are_few = num_rois <= CONSTANTS["kBoxesPerWord"] and blocks <= (
            CONSTANTS["kFewTiles"] * WANTED_BLOCKS
        )
        return design.looks_at_few_boxes and are_few and self.pixels_per_warp == 1

    def taps_of_step(self, element_size: int) -> int:
        """kTapsOfPixel: of each pixel of a warp."""
        if self.channels_per_lane == 1:
            return 2
        in_flight = 4 if element_size == 4 or self.vector == 1 else 8
        return in_flight // self.pixels_per_warp


def make_tiles(
    levels: tuple[tuple[int, int, int], ...],
    num_images: int,
    channels: int,
    channels_last: bool,
    element_size: int,
    design: Design = NOW,
) -> Tiles:
    """make_tiles and feature_gradient; levels: height, width, stride"""

    def of(pixels_per_warp: int, channels_per_lane: int) -> Tiles:
        is_small = pixels_per_warp == 1
        width = (8 if is_small else 16) // (2 if channels_last else 1)
        height = WARPS * pixels_per_warp // width
        count = num_images * sum(ceil_div(h, height) * ceil_div(w, width) for h, w, _ in levels)
        batch = CONSTANTS["kLargeBatch" if is_small else "kBatch"]
        vector = 1 if channels_per_lane == 1 else vector_width(channels, element_size)
        return Tiles(height, width, count, batch, pixels_per_warp, channels_per_lane, vector)

    large = of(CONSTANTS["kPixelsPerWarp"], CHANNELS_PER_LANE)
    if design.small_tiles and large.count * ceil_div(channels, CHANNELS_PER_WARP) < (
        2 * WANTED_BLOCKS
    ):
        return of(1, CHANNELS_PER_LANE)
    if design.channel_per_lane and channels <= WARP:
        return of(CONSTANTS["kPixelsPerWarp"], 1)
    return large


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


def taps_in_flight(element_size: int, vector: int) -> int:
    """kPixelsIn of the forward pass, of types other than float64"""
    return 4 if element_size == 2 and vector > 1 else 2


# Bytes in shared memory with float coordinates: sizeof of the C++ types.
TAP = 16
BOX = 88
PLAN = 28
INTERPOLATION = 20
AXIS_TABLE = MAX_AXIS_SAMPLES * (2 * INTERPOLATION + 12) + 2 * MAX_AXIS_SAMPLES * 4
TABLES = 2 * AXIS_TABLE + CONSTANTS["kMaxSamples"] * 4
STAGED_BINS = WARPS * (8 + CHANNELS_PER_LANE * 33 * 4)
BOX_GRADIENTS = WARPS * 16


def shared_bytes(kernel: str, pixels_per_warp: int = CONSTANTS["kPixelsPerWarp"]) -> int:
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
        is_small = pixels_per_warp == 1
        lines = WARPS + (8 if is_small else 16)
        boxes = CONSTANTS["kLargeBatch" if is_small else "kBatch"]
        lists = LISTED_BOXES * 4 + LISTED_BOXES // WARP * 4
        batch = boxes * (BOX + 8 * lines + 4 * WARPS * pixels_per_warp)
        return lists + batch + CONSTANTS["kTileTaps"] * TAP
    if kernel == "transpose_kernel":  # of up to 4 bytes
        return WARP * (2 * WARP + 1) * 4
    return 0
