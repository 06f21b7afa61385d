// Launches the jobs of the CUDA operators. The kernels and numbers of threads depend only on shapes
// and strides. launch_map_and_box_gradient.h launches the gradients of maps and boxes.
//
// A Launcher has operator()(kernel, blocks, threads, arguments...). The tests run the same launches
// on the host.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "cuda/feature_gradient.cuh"
#include "cuda/forward.cuh"

namespace shape_roi_align::cuda {

constexpr int64_t kMaxBlocks = (int64_t(1) << 31) - 1;

struct LaunchOptions {
  int32_t threads = kMaxThreads;  // per block; a multiple of kWarp, at most kMaxThreads
  int64_t blocks = kMaxBlocks;    // maximum per grid
  // If there are fewer boxes than this, several blocks share each box. About four blocks per
  // multiprocessor of a large GPU.
  int64_t wanted_blocks = 512;
  // Maximum bytes of scratch, unless the requested gradients are larger.
  int64_t scratch = 16 << 20;
  // With up to this many channels, each lane computes the gradient of the features for one channel,
  // except in f64. At most kWarp.
  int64_t few_channels = kWarp;
  // With at most this many boxes, and few tiles, each tile of the gradient of the features checks
  // all boxes itself, which saves two launches.
  int64_t few_boxes = kBoxesPerWord;
  // For the gradients of the maps and of the boxes, feature maps with pixels innermost are copied
  // first if they have at most so many times the elements of the pooled tensor. On an H200 and with
  // features of 4 bytes, a copy takes 2.7 us per million elements and saves 13 to 22 us per million
  // elements of the pooled tensor. The forward pass makes no copies: the result of a box would
  // depend on the number of boxes.
  int32_t copied = 6;
};

constexpr int64_t bytes_of(ScalarType type) {
  return type == ScalarType::kDouble ? 8 : type == ScalarType::kFloat ? 4 : 2;
}

constexpr int64_t num_bins(const Params& params) {
  return int64_t(params.options.pooled_height) * params.options.pooled_width;
}

// Whether the kernels' counts fit in 32 bits: boxes, pixels of an image, bins of kLargeBatch boxes.
// Offsets have 64 bits.
constexpr bool counts_fit(const Params& params) {
  constexpr int64_t kMaxCount =
      std::numeric_limits<int32_t>::max() - 4096;  // a loop's next step must fit too
  int64_t left = kMaxCount;
  for (int32_t l = 0; l < params.num_levels && left >= 0; ++l) {
    left -= int64_t(params.levels[l].height) * params.levels[l].width;
  }
  return params.num_rois <= kMaxCount && left >= 0 && num_bins(params) <= kMaxCount / kLargeBatch;
}

// The type of coordinates, of weights, and of the sums of the gradients of prob_maps and rois.
inline ScalarType coordinate_type(const Params& params) {
  const bool is_double =
      params.feature_type == ScalarType::kDouble || params.roi_type == ScalarType::kDouble;
  return is_double ? ScalarType::kDouble : ScalarType::kFloat;
}

// Whether coordinates have the type in which features are accumulated. If not (f64 boxes with other
// features), only the most general kernels exist.
inline bool has_features_type(const Params& params) {
  return (coordinate_type(params) == ScalarType::kDouble) ==
         (params.feature_type == ScalarType::kDouble);
}

// Calls f(feature type instance, coordinate type instance).
template <typename F>
void dispatch(const Params& params, F f) {
  const bool is_double = coordinate_type(params) == ScalarType::kDouble;
  switch (params.feature_type) {
    case ScalarType::kDouble:
      return f(double{}, double{});
    case ScalarType::kFloat:
      return is_double ? f(float{}, double{}) : f(float{}, float{});
    case ScalarType::kHalf:
      return is_double ? f(__half{}, double{}) : f(__half{}, float{});
    case ScalarType::kBFloat16:
      return is_double ? f(__nv_bfloat16{}, double{}) : f(__nv_bfloat16{}, float{});
  }
}

template <typename feature_t, typename coord_t>
constexpr bool kHasFeaturesType = std::is_same_v<accumulate_t<feature_t>, coord_t>;

// The vector width, in channels, for which kernels exist besides width 1.
template <typename feature_t, typename coord_t>
constexpr int32_t kKernelWidth = kHasFeaturesType<feature_t, coord_t> ? kVectorWidth<feature_t> : 1;

inline bool has_channels_innermost(const FeatureMap& feature_map) {
  return feature_map.channel_stride == 1;
}

// Whether to have channels in the lanes. Few channels would leave most lanes of a warp idle.
constexpr int64_t kMinChannelsInLanes = 8;
inline bool reads_channels_in_lanes(const Params& params) {
  return params.channels >= kMinChannelsInLanes &&
         std::all_of(params.levels, params.levels + params.num_levels, has_channels_innermost);
}

inline bool is_aligned(const void* data, std::initializer_list<int64_t> strides, int32_t width) {
  return reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0 &&
         std::all_of(strides.begin(), strides.end(), [&](int64_t s) { return s % width == 0; });
}
inline bool allows_vectors(const FeatureMap& feature_map, int32_t width) {
  return is_aligned(
      feature_map.data,
      {feature_map.image_stride, feature_map.row_stride, feature_map.column_stride}, width);
}
inline bool allows_vectors(const PooledTensor& pooled, int32_t width) {
  return is_aligned(
      pooled.data, {pooled.box_stride, pooled.row_stride, pooled.column_stride}, width);
}
inline bool allow_vectors(const FeatureMap* levels, int32_t count, int32_t width) {
  return std::all_of(levels, levels + count, [&](const FeatureMap& level) {
    return !has_channels_innermost(level) || allows_vectors(level, width);
  });
}

// Calls f(std::integral_constant of the vector width).
template <typename feature_t, typename coord_t, typename F>
void dispatch_width(bool vectors, F f) {
  constexpr int32_t kWidth = kKernelWidth<feature_t, coord_t>;
  if constexpr (kWidth > 1) {
    if (vectors) {
      return f(std::integral_constant<int32_t, kWidth>{});
    }
  }
  f(std::integral_constant<int32_t, 1>{});
}

template <typename feature_t>
bool is_vectorizable(const Params& params, const PooledTensor& pooled) {
  constexpr int32_t kWidth = kVectorWidth<feature_t>;
  return params.channels % kWidth == 0 && pooled.channel_stride == 1 &&
         allows_vectors(pooled, kWidth) && allow_vectors(params.levels, params.num_levels, kWidth);
}

// If boxes are few, divides each box among several blocks, at most max_shares.
inline BoxGrid make_box_grid(
    const Params& params, int64_t slab_channels, const LaunchOptions& options,
    int64_t max_shares = kMaxBlocks) {
  BoxGrid grid;
  grid.num_rois = params.num_rois;
  grid.slab_channels = slab_channels;
  grid.slabs = ceil_div(params.channels, slab_channels);
  const int64_t blocks = std::max<int64_t>(1, grid.num_rois * grid.slabs);
  const int64_t shares = std::clamp<int64_t>(
      std::min(options.wanted_blocks / blocks, max_shares), 1, num_bins(params));
  grid.max_bins = static_cast<int32_t>(ceil_div(num_bins(params), shares));
  grid.shares = static_cast<int32_t>(shares);
  return grid;
}

// Channels that a block of forward_bins_in_lanes_kernel serves with the same taps. Few enough to
// keep the slab of the features in the L2 cache while all boxes are processed, and to leave enough
// blocks to fill the GPU.
template <typename feature_t>
int64_t channels_per_slab(const Params& params, const LaunchOptions& options) {
  constexpr int64_t kCacheBytes = 25 << 20;  // half of the L2 cache of an H100
  constexpr int64_t kMaxAtOnce = 4;
  const int64_t at_once = options.threads / kWarp * kChannelsPerLane;
  int64_t pixels = 0;
  for (int32_t l = 0; l < params.num_levels; ++l) {
    pixels += params.num_images * params.levels[l].height * params.levels[l].width;
  }
  const int64_t bytes = std::max<int64_t>(1, pixels * at_once * sizeof(feature_t));
  const int64_t blocks = params.num_rois * ceil_div(params.channels, at_once);
  return at_once *
         std::clamp<int64_t>(
             std::min(kCacheBytes / bytes, blocks / options.wanted_blocks), 1, kMaxAtOnce);
}

// Boxes of many bins are divided among twice as many blocks. On an H200, this takes 0.8 of the time
// with 14 x 14 bins, and 1.0 to 1.7 with 7 x 7.
inline LaunchOptions options_of_forward(const Params& params, LaunchOptions options) {
  constexpr int64_t kManyBins = 98;
  options.wanted_blocks *= num_bins(params) >= kManyBins ? 2 : 1;
  return options;
}

// output: [K, C, PH, PW] of params.feature_type, every element is written.
template <typename Launcher>
void forward(
    const Params& params, const PooledTensor& output, const LaunchOptions& all_options,
    Launcher launch) {
  if (params.num_rois == 0 || params.channels == 0) {
    return;
  }
  const LaunchOptions options = options_of_forward(params, all_options);
  const bool channels_in_lanes = reads_channels_in_lanes(params) && output.channel_stride == 1;
  dispatch(params, [&](auto feature, auto coordinate) {
    using feature_t = decltype(feature);
    using coord_t = decltype(coordinate);
    const BoxGrid grid = make_box_grid(
        params,
        channels_in_lanes ? kChannelsPerWarp : channels_per_slab<feature_t>(params, options),
        options);
    const int64_t blocks = std::min(grid.size(), options.blocks);
    if (!channels_in_lanes) {
      return launch(
          forward_bins_in_lanes_kernel<feature_t, coord_t>, blocks, options.threads, params, output,
          grid);
    }
    dispatch_width<feature_t, coord_t>(is_vectorizable<feature_t>(params, output), [&](auto width) {
      launch(
          forward_channels_in_lanes_kernel<feature_t, coord_t, width>, blocks, options.threads,
          params, output, grid);
    });
  });
}

// Tiles of the levels whose gradient is requested. Tiles are wider if columns are innermost,
// because stores run along rows.
template <int32_t pixels_per_warp>
TileGrid make_tiles_of(
    const Params& params, const FeatureGradients& gradients, const LaunchOptions& options) {
  const bool all_innermost =
      std::all_of(gradients.levels, gradients.levels + params.num_levels, has_channels_innermost);
  const int32_t warps = options.threads / kWarp;
  int32_t warps_across = kTileWidth<pixels_per_warp> / pixels_per_warp / (all_innermost ? 2 : 1);
  while (warps % warps_across != 0) {
    warps_across /= 2;
  }
  TileGrid tiles{};
  tiles.pixels_per_warp = pixels_per_warp;
  tiles.num_levels = params.num_levels;
  const int32_t width = pixels_per_warp * warps_across;  // a power of 2
  while (1 << tiles.width_shift < width) {
    ++tiles.width_shift;
  }
  tiles.height = warps / warps_across;
  tiles.words = ceil_div(params.num_rois, kBoxesPerWord);
  for (int32_t l = 0; l < params.num_levels; ++l) {
    const FeatureMap& feature_map = params.levels[l];
    const bool is_asked = gradients.levels[l].data != nullptr;
    tiles.down[l] = is_asked ? static_cast<int32_t>(ceil_div(feature_map.height, tiles.height)) : 0;
    tiles.across[l] = is_asked ? static_cast<int32_t>(ceil_div(feature_map.width, width)) : 0;
    tiles.first[l + 1] = tiles.first[l] + tiles.down[l] * tiles.across[l];
  }
  return tiles;
}

// Blocks of gather_feature_gradient_kernel: (slab of channels, image, tile).
inline int64_t gather_blocks(const Params& params, const TileGrid& tiles) {
  return tiles.count() * params.num_images * ceil_div(params.channels, kChannelsPerWarp);
}

// Uses smaller tiles if there are too few to keep a GPU busy at two blocks per multiprocessor.
inline TileGrid make_tiles(
    const Params& params, const FeatureGradients& gradients, const LaunchOptions& options) {
  const TileGrid tiles = make_tiles_of<kPixelsPerWarp>(params, gradients, options);
  const bool are_few = gather_blocks(params, tiles) < 2 * options.wanted_blocks;
  return are_few && has_features_type(params) ? make_tiles_of<1>(params, gradients, options)
                                              : tiles;
}

// Bytes of the requested gradients.
inline int64_t bytes_of(const Params& params, const FeatureGradients& gradients) {
  int64_t pixels = 0;
  for (int32_t l = 0; l < params.num_levels; ++l) {
    if (gradients.levels[l].data != nullptr) {
      pixels += int64_t(params.levels[l].height) * params.levels[l].width;
    }
  }
  return params.num_images * params.channels * pixels * bytes_of(params.feature_type);
}

// The tiles of feature_gradient, and its scratch in bytes: at most options.scratch or the size of
// the requested gradients, whichever is larger. Depends only on shapes and types. There is no
// scratch if each tile checks all boxes itself. Tiles do so if launches would cost more, or if the
// bits of all tiles and boxes would not fit. Results do not depend on this choice.
struct FeatureGradientPlan {
  TileGrid tiles;
  // The parts may lie in one block of memory, in this order.
  int64_t boxes = 0;   // uninitialised
  int64_t images = 0;  // zeroed, as is `bits`
  int64_t bits = 0;

  FeatureGradientPlan(
      const Params& params, const FeatureGradients& gradients, const LaunchOptions& options)
      : tiles(make_tiles(params, gradients, options)) {
    constexpr int64_t kFewTiles = 8;  // times wanted_blocks
    const int64_t blocks = gather_blocks(params, tiles);
    const bool is_double = coordinate_type(params) == ScalarType::kDouble;
    const bool can_check = is_double ? can_check_boxes<double>(tiles.pixels_per_warp)
                                     : can_check_boxes<float>(tiles.pixels_per_warp);
    const bool are_few =
        params.num_rois <= options.few_boxes && blocks <= kFewTiles * options.wanted_blocks;
    if (params.num_rois == 0 || blocks == 0 || (are_few && can_check)) {
      return;
    }
    boxes = params.num_rois * (is_double ? sizeof(Box<double>) : sizeof(Box<float>));
    images = params.num_images * sizeof(BoxesOfImage);
    static_assert(alignof(Box<double>) >= alignof(BoxesOfImage));
    static_assert(alignof(BoxesOfImage) >= alignof(uint32_t));
    bits = tiles.count() * tiles.words * sizeof(uint32_t);
    if (bytes() > std::max(options.scratch, bytes_of(params, gradients))) {
      boxes = images = bits = 0;
      if (!can_check) {
        tiles = make_tiles_of<1>(params, gradients, options);
      }
    }
  }

  int64_t bytes() const {
    return boxes + images + bits;
  }
};

// grad: with channels innermost. gradients: of params.feature_type, every element is written.
// boxes, images, bits: scratch, sized by FeatureGradientPlan.
template <typename Launcher>
void feature_gradient(
    const Params& params, const PooledTensor& grad, const FeatureGradients& gradients, void* boxes,
    void* images, void* bits, const LaunchOptions& options, Launcher launch) {
  const FeatureGradientPlan plan(params, gradients, options);
  const TileGrid& tiles = plan.tiles;
  const int64_t size = gather_blocks(params, tiles);
  if (size == 0) {
    return;
  }
  dispatch(params, [&](auto feature, auto coordinate) {
    using feature_t = decltype(feature);
    using coord_t = decltype(coordinate);
    TouchedTiles<coord_t> touched{};
    if (plan.bytes() > 0) {
      Box<coord_t>* of_boxes = static_cast<Box<coord_t>*>(boxes);
      uint32_t* of_tiles = static_cast<uint32_t*>(bits);
      BoxesOfImage* of_images = static_cast<BoxesOfImage*>(images);
      const int64_t blocks = ceil_div(params.num_rois, options.threads / kWarp);
      launch(
          touched_tiles_kernel<coord_t>, std::min(blocks, options.blocks), options.threads, params,
          tiles, of_boxes, of_tiles, of_images);
      touched = {of_boxes, of_tiles, of_images};
    }
    constexpr int32_t kWidth = kVectorWidth<feature_t>;
    const bool vectors = params.channels % kWidth == 0 && allows_vectors(grad, kWidth) &&
                         allow_vectors(gradients.levels, params.num_levels, kWidth);
    const auto gather = [&](auto width, auto per_lane, auto pixels_per_warp) {
      launch(
          gather_feature_gradient_kernel<feature_t, coord_t, width, per_lane, pixels_per_warp>,
          std::min(size, options.blocks), options.threads, params, grad, gradients, tiles, touched,
          size);
    };
    constexpr std::integral_constant<int32_t, 1> kOne;
    constexpr std::integral_constant<int32_t, kPixelsPerWarp> kPixels;
    constexpr std::integral_constant<int32_t, kChannelsPerLane> kChannels;
    if constexpr (kHasFeaturesType<feature_t, coord_t>) {
      if (tiles.pixels_per_warp == 1) {
        return dispatch_width<feature_t, coord_t>(
            vectors, [&](auto width) { gather(width, kChannels, kOne); });
      }
      if constexpr (std::is_same_v<coord_t, float>) {
        if (params.channels <= options.few_channels) {
          return gather(kOne, kOne, kPixels);
        }
      }
    }
    dispatch_width<feature_t, coord_t>(
        vectors, [&](auto width) { gather(width, kChannels, kPixels); });
  });
}

}  // namespace shape_roi_align::cuda
