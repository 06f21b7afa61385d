// Which kernels run with how many threads, for any way of launching them.
//
// A Launcher has operator()(kernel, blocks, threads, arguments...). The kernels thus run as
// configured here on a GPU and, in the tests, on the host.
#pragma once

#include <algorithm>

#include "bin_kernels.cuh"
#include "map_and_box_kernel.cuh"
#include "pixel_kernels.cuh"

namespace shape_roi_align::cuda {

constexpr int64_t kMaxBlocks = (int64_t(1) << 31) - 1;

struct LaunchOptions {
  int32_t threads = kMaxThreads;  // of a block, at most; 1 to kMaxThreads
  int64_t blocks = kMaxBlocks;    // of a grid, at most
};

// Lanes enough for all channels at once, if a block has them; the other threads serve more units,
// of which there are `units`.
inline ThreadLayout make_layout(
    int64_t units, int64_t channels, bool channels_innermost, const LaunchOptions& options) {
  constexpr int32_t kMaxLanes = 64;
  const int32_t max_lanes = std::min(kMaxLanes, options.threads);
  ThreadLayout layout{1, 1, channels_innermost};
  while (2 * layout.lanes <= max_lanes && layout.slab() < channels) {
    layout.lanes *= 2;
  }
  layout.units =
      static_cast<int32_t>(std::clamp<int64_t>(units, 1, options.threads / layout.lanes));
  return layout;
}

inline bool channels_innermost(const FeatureMap& map, int64_t channels) {
  return map.channel_stride == 1 && channels > 1;
}

inline int64_t num_bins(const Params& params) {
  return int64_t(params.options.pooled_height) * params.options.pooled_width;
}

// f(feature type instance, coordinate type instance): coordinates are f64 where features or boxes
// are, else f32.
template <typename F>
void dispatch(const Params& params, F f) {
  const bool wide = params.roi_type == ScalarType::kDouble;
  switch (params.feature_type) {
    case ScalarType::kDouble:
      return f(double{}, double{});
    case ScalarType::kFloat:
      return wide ? f(float{}, double{}) : f(float{}, float{});
    case ScalarType::kHalf:
      return wide ? f(__half{}, double{}) : f(__half{}, float{});
    case ScalarType::kBFloat16:
      return wide ? f(__nv_bfloat16{}, double{}) : f(__nv_bfloat16{}, float{});
  }
}

// output: [K, C, PH, PW] of params.feature_type, every element is written.
template <typename Launcher>
void forward(
    const Params& params, const PooledMap& output, const LaunchOptions& options, Launcher launch) {
  const ThreadLayout layout = make_layout(
      num_bins(params), params.channels, channels_innermost(params.levels[0], params.channels),
      options);
  const int64_t tiles = BinTile::count(params, layout);
  if (tiles == 0) {
    return;
  }
  dispatch(params, [&](auto feature, auto coordinate) {
    launch(
        forward_kernel<decltype(feature), decltype(coordinate)>, std::min(tiles, options.blocks),
        layout.threads(), params, output, layout, tiles);
  });
}

// gradients: zeroed, in the accumulate type of the features.
template <typename Launcher>
void scatter_feature_gradient(
    const Params& params, const PooledMap& grad, const FeatureGradients& gradients,
    const LaunchOptions& options, Launcher launch) {
  const ThreadLayout layout = make_layout(
      num_bins(params), params.channels, channels_innermost(params.levels[0], params.channels),
      options);
  const int64_t tiles = BinTile::count(params, layout);
  if (tiles == 0) {
    return;
  }
  dispatch(params, [&](auto feature, auto coordinate) {
    launch(
        scatter_feature_gradient_kernel<decltype(feature), decltype(coordinate)>,
        std::min(tiles, options.blocks), layout.threads(), params, grad, gradients, layout, tiles);
  });
}

// gradients: in params.feature_type, every element is written. footprints: scratch, [K].
template <typename Launcher>
void gather_feature_gradient(
    const Params& params, const PooledMap& grad, const FeatureGradients& gradients,
    BoxFootprint* footprints, const LaunchOptions& options, Launcher launch) {
  dispatch(params, [&](auto feature, auto coordinate) {
    using feature_t = decltype(feature);
    using coord_t = decltype(coordinate);
    if (params.num_rois > 0) {
      launch(
          box_footprints_kernel<coord_t>,
          std::min(ceil_div(params.num_rois, options.threads), options.blocks), options.threads,
          params, footprints);
    }
    for (int32_t level = 0; level < params.num_levels; ++level) {
      const FeatureMap& gradient = gradients.levels[level];
      const ThreadLayout layout = make_layout(
          int64_t(gradient.height) * gradient.width, params.channels,
          channels_innermost(gradient, params.channels), options);
      int32_t tile_width = 1;
      while (2 * tile_width * tile_width <= layout.units) {
        tile_width *= 2;
      }
      const int64_t tiles = PixelTile::count(params, gradient, layout, tile_width);
      if (gradient.data != nullptr && tiles > 0) {
        launch(
            gather_feature_gradient_kernel<feature_t, coord_t>, std::min(tiles, options.blocks),
            layout.threads(), params, grad, footprints, level, gradient, layout, tile_width, tiles);
      }
    }
  });
}

// The type that dispatch's coordinates have; the gradients of maps and boxes are accumulated in it.
inline ScalarType coordinate_type(const Params& params) {
  const bool wide =
      params.feature_type == ScalarType::kDouble || params.roi_type == ScalarType::kDouble;
  return wide ? ScalarType::kDouble : ScalarType::kFloat;
}

// grad_maps: [K, map_height, map_width], zeroed, or null. grad_rois: [K, 5] or null. Both of
// coordinate_type(params).
template <typename Launcher>
void map_and_box_gradient(
    const Params& params, const PooledMap& grad, void* grad_maps, void* grad_rois,
    const LaunchOptions& options, Launcher launch) {
  if (params.num_rois == 0) {
    return;
  }
  const ThreadLayout layout = make_layout(
      options.threads, params.channels, channels_innermost(params.levels[0], params.channels),
      options);
  dispatch(params, [&](auto feature, auto coordinate) {
    using coord_t = decltype(coordinate);
    launch(
        map_and_box_gradient_kernel<decltype(feature), coord_t>,
        std::min(params.num_rois, options.blocks), layout.threads(), params, grad,
        static_cast<coord_t*>(grad_maps), static_cast<coord_t*>(grad_rois), layout);
  });
}

}  // namespace shape_roi_align::cuda
