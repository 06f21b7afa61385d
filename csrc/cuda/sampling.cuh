// A box as the kernels represent it, and ranges of its bins and samples.
#pragma once

#include "cuda/scalar.cuh"
#include "params.h"

namespace shape_roi_align::cuda {

template <typename T>
struct Box {
  int64_t index;  // k
  int32_t level;
  BoxGeometry<T> geometry;
  bool reads;  // false: the box reads no pixels; its output and gradients are 0
};

// Element i of box k: (batch index, x1, y1, x2, y2).
template <typename T>
__device__ T load_roi(const Params& params, int64_t k, int32_t i) {
  const int64_t at = 5 * k + i;
  return params.roi_type == ScalarType::kDouble ? T(static_cast<const double*>(params.rois)[at])
                                                : T(static_cast<const float*>(params.rois)[at]);
}

// Level of box k; may be out of range.
__device__ inline int64_t load_level(const Params& params, int64_t k) {
  return params.roi_levels == nullptr ? 0 : params.roi_levels[k];
}

template <typename T>
__device__ Box<T> make_box(const Params& params, int64_t k) {
  T roi[5];
  for (int32_t i = 0; i < 5; ++i) {
    roi[i] = load_roi<T>(params, k, i);
  }
  const int64_t level = load_level(params, k);
  const bool has_level = level >= 0 && level < params.num_levels;
  Box<T> box;
  box.index = k;
  box.level = has_level ? static_cast<int32_t>(level) : 0;
  const FeatureMap& feature_map = params.levels[box.level];
  box.geometry =
      make_box_geometry<T>(roi, T(feature_map.spatial_scale), params.num_images, params.options);
  box.reads = has_level && box.geometry.valid && box.geometry.y.samples > 0 &&
              box.geometry.x.samples > 0 && feature_map.height > 0 && feature_map.width > 0;
  return box;
}

// The coordinates from `start` to `start + extent`, with a margin. Samples at these coordinates
// read no row (or column) outside [low, high]. The margin is more than a pixel plus twice the
// rounding error of sample_coordinate.
template <typename T>
struct Reach {
  T low;
  T high;

  __device__ Reach(T start, T extent) {
    constexpr T kEpsilon = std::numeric_limits<T>::epsilon();
    const T margin = T(1.01) + T(16) * kEpsilon * (std::fabs(start) + std::fabs(extent));
    low = (extent < T(0) ? start + extent : start) - margin;
    high = (extent < T(0) ? start : start + extent) + margin;
  }
};

// Whether samples of a box may read the rows (or columns) [begin, end). Checks only the edges of
// the box, so true does not imply a read.
template <typename T>
__device__ bool may_read(
    T edge1, T edge2, T scale, const SamplingOptions& options, int32_t begin, int32_t end) {
  T extent = (edge2 - edge1) * scale;
  if (!options.aligned && extent < T(1)) {
    extent = T(1);
  }
  const Reach<T> reach(edge1 * scale - (options.aligned ? T(0.5) : T(0)), extent);
  return reach.high >= T(begin) && reach.low <= T(end);
}

// The smallest i in [begin, end) for which holds(i) is true, else end. `holds` must be monotone.
template <typename index_t, typename Predicate>
__device__ index_t first_where(index_t begin, index_t end, Predicate holds) {
#pragma unroll 1
  while (begin < end) {
    const index_t middle = begin + (end - begin) / 2;
    if (holds(middle)) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

// Samples of a bin whose coordinate lies in [low, high]. Coordinates are monotone in the sample,
// rounding included; they decrease if the extent is negative.
template <typename T>
__device__ Range<int32_t> samples_within(const Axis<T>& axis, int32_t bin, T low, T high) {
  const bool is_negative = axis.extent < T(0);
  Range<int32_t> samples;
  samples.begin = first_where(0, axis.samples, [&](int32_t i) {
    const T at = sample_coordinate(axis, bin, i);
    return is_negative ? at <= high : at >= low;
  });
  samples.end = first_where(samples.begin, axis.samples, [&](int32_t i) {
    const T at = sample_coordinate(axis, bin, i);
    return is_negative ? at < low : at > high;
  });
  return samples;
}

// A superset of the bins that have samples in [low, high].
template <typename T>
__device__ Range<int32_t> bins_within(const Axis<T>& axis, T low, T high) {
  const bool is_negative = axis.extent < T(0);
  Range<int32_t> bins;
  bins.begin = first_where(0, axis.bins, [&](int32_t bin) {
    const T last = sample_coordinate(axis, bin, axis.samples - 1);
    return is_negative ? last <= high : last >= low;
  });
  bins.end = first_where(bins.begin, axis.bins, [&](int32_t bin) {
    const T first = sample_coordinate(axis, bin, 0);
    return is_negative ? first < low : first > high;
  });
  return bins;
}

template <typename T>
__device__ Range<int32_t> samples_inside(const Axis<T>& axis, int32_t bin, int32_t size) {
  return samples_within(axis, bin, T(-1), T(size));
}

// Weight of pixel (or map cell) i along one axis.
template <typename T>
__device__ T weight_at(const Interpolation<T>& at, int32_t i) {
  return (at.low == i ? at.low_weight : T(0)) + (at.high == i ? at.high_weight : T(0));
}

// values[i] = prob_maps[at[i]], four loads in flight.
template <typename T, typename map_t>
__device__ void load_cells(const map_t* prob_maps, const int64_t (&at)[4], T (&values)[4]) {
  map_t loaded[4];
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    loaded[i] = prob_maps[at[i]];
  }
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    values[i] = T(load(loaded[i]));
  }
}

template <typename T>
__device__ void load_cells(const Params& params, const int64_t (&at)[4], T (&values)[4]) {
  switch (params.prob_map_type) {
    case ScalarType::kDouble:
      return load_cells(static_cast<const double*>(params.prob_maps), at, values);
    case ScalarType::kFloat:
      return load_cells(static_cast<const float*>(params.prob_maps), at, values);
    case ScalarType::kHalf:
      return load_cells(static_cast<const __half*>(params.prob_maps), at, values);
    default:
      return load_cells(static_cast<const __nv_bfloat16*>(params.prob_maps), at, values);
  }
}

// p_k, interpolated between cells of the probability map of box k (paper eq. 3).
template <typename T>
__device__ T sample_prob_map(
    const Params& params, int64_t k, const Interpolation<T>& y, const Interpolation<T>& x) {
  const int64_t low = (k * params.prob_map_height + y.low) * params.prob_map_width;
  const int64_t high = (k * params.prob_map_height + y.high) * params.prob_map_width;
  T cells[4];
  load_cells<T>(params, {low + x.low, low + x.high, high + x.low, high + x.high}, cells);
  const T at_low = x.low_weight * cells[0] + x.high_weight * cells[1];
  const T at_high = x.low_weight * cells[2] + x.high_weight * cells[3];
  return y.low_weight * at_low + y.high_weight * at_high;
}

}  // namespace shape_roi_align::cuda
