// Copies that bring channels innermost.
//
// map_and_box_gradient is up to three times as fast with channels in the lanes. If features with
// pixels innermost are read often enough, it therefore gets copies of them.
#pragma once

#include "cuda/launch.h"
#include "cuda/transpose.cuh"

namespace shape_roi_align::cuda {

inline TransposedCopy copy_of(const FeatureMap& map, int64_t images, int64_t channels, void* to) {
  return {map.data,         to,
          images,           channels,
          map.height,       map.width,
          map.image_stride, map.channel_stride,
          map.row_stride,   map.column_stride};
}

inline TransposedCopy copy_of(const PooledTensor& pooled, const Params& params, void* to) {
  return {
      pooled.data,
      to,
      params.num_rois,
      params.channels,
      params.options.pooled_height,
      params.options.pooled_width,
      pooled.box_stride,
      pooled.channel_stride,
      pooled.row_stride,
      pooled.column_stride};
}

// The same memory as [images, channels, height, width] with channels innermost.
inline FeatureMap with_channels_innermost(const FeatureMap& map, int64_t channels, void* data) {
  FeatureMap copy = map;
  copy.data = data;
  copy.channel_stride = 1;
  copy.column_stride = channels;
  copy.row_stride = channels * map.width;
  copy.image_stride = copy.row_stride * map.height;
  return copy;
}

// Whether a level is copied: the copies hold exactly the levels that have pixels innermost.
inline bool is_copied(const FeatureMap& map) {
  return !has_channels_innermost(map);
}

// Elements of the levels that are copied.
inline int64_t copied_elements(const Params& params) {
  int64_t pixels = 0;
  for (int32_t l = 0; l < params.num_levels; ++l) {
    if (is_copied(params.levels[l])) {
      pixels += int64_t(params.levels[l].height) * params.levels[l].width;
    }
  }
  return pixels * params.num_images * params.channels;
}

// Whether the gradients of the maps and of the boxes are computed from copies of the features.
// Compares in floating point, because products may exceed 64 bits.
inline bool copies_features(const Params& params, const LaunchOptions& options) {
  const double pooled = double(params.num_rois) * num_bins(params) * params.channels;
  const double copied = double(copied_elements(params));
  return params.channels >= kMinChannelsInLanes && copied > 0 && copied <= options.copied * pooled;
}

// The arguments of a call whose map_and_box_gradient reads copies, where they pay. allocate(level)
// returns memory for a copy of the level; transpose is called with each TransposedCopy.
template <typename Allocate, typename Transpose>
Params with_copied_features(
    const Params& params, const LaunchOptions& options, Allocate allocate, Transpose transpose) {
  Params copied = params;
  if (!copies_features(params, options)) {
    return copied;
  }
  for (int32_t l = 0; l < params.num_levels; ++l) {
    FeatureMap& map = copied.levels[l];
    if (is_copied(map)) {
      void* const data = allocate(l);
      transpose(copy_of(map, params.num_images, params.channels, data));
      map = with_channels_innermost(map, params.channels, data);
    }
  }
  return copied;
}

// Writes every element of copy.to. type: of the elements.
template <typename Launcher>
void transpose(
    const TransposedCopy& copy, ScalarType type, const LaunchOptions& options, Launcher launch) {
  const auto run = [&](auto element) {
    using element_t = decltype(element);
    const int64_t tiles = tiles_of_copy(copy, kCopiedChannels<element_t>);
    if (tiles > 0) {
      launch(
          transpose_kernel<element_t>, std::min(tiles, options.blocks), options.threads, copy,
          tiles);
    }
  };
  switch (bytes_of(type)) {
    case 8:
      return run(uint64_t{});
    case 4:
      return run(uint32_t{});
    default:
      return run(uint16_t{});
  }
}

}  // namespace shape_roi_align::cuda
