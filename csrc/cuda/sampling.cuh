// Which samples of a box touch which pixels, found by bisection of geometry.h's own coordinates.
//
// The bins of a box are sparse linear combinations of pixels. The kernels evaluate that matrix on
// the fly, row by row (bins, for the forward) or column by column (pixels, for the gradient of the
// features); here are its row, its column and its elements.
#pragma once

#include "../sa_roi_align.h"
#include "scalar.cuh"

namespace shape_roi_align::cuda {

template <typename T>
struct Box {
  int64_t index;  // k
  int32_t level;
  BoxGeometry<T> geometry;
  bool reads;  // false: it reads no pixel and receives no gradient
};

template <typename T>
__device__ Box<T> make_box(const Params& params, int64_t k) {
  T roi[5];
  for (int32_t i = 0; i < 5; ++i) {
    const int64_t at = 5 * k + i;
    roi[i] = params.roi_type == ScalarType::kDouble ? T(static_cast<const double*>(params.rois)[at])
                                                    : T(static_cast<const float*>(params.rois)[at]);
  }
  const int64_t level = params.roi_levels == nullptr ? 0 : params.roi_levels[k];
  const bool has_level = level >= 0 && level < params.num_levels;
  Box<T> box;
  box.index = k;
  box.level = has_level ? static_cast<int32_t>(level) : 0;
  const FeatureMap& map = params.levels[box.level];
  box.geometry = make_box_geometry<T>(roi, T(map.spatial_scale), params.num_images, params.options);
  box.reads = has_level && box.geometry.valid && box.geometry.y.samples > 0 &&
              box.geometry.x.samples > 0 && map.height > 0 && map.width > 0;
  return box;
}

// The smallest i in [begin, end) for which `holds`, else end; `holds` must stay true once it is.
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
// rounding included, and fall where the extent is negative.
template <typename T>
__device__ Range<int32_t> samples_within(const Axis<T>& axis, int32_t bin, T low, T high) {
  const bool falls = axis.extent < T(0);
  Range<int32_t> samples;
  samples.begin = first_where(0, axis.samples, [&](int32_t i) {
    const T at = sample_coordinate(axis, bin, i);
    return falls ? at <= high : at >= low;
  });
  samples.end = first_where(samples.begin, axis.samples, [&](int32_t i) {
    const T at = sample_coordinate(axis, bin, i);
    return falls ? at < low : at > high;
  });
  return samples;
}

// Bins that may have samples in [low, high]: no other bin has.
template <typename T>
__device__ Range<int32_t> bins_within(const Axis<T>& axis, T low, T high) {
  const bool falls = axis.extent < T(0);
  Range<int32_t> bins;
  bins.begin = first_where(0, axis.bins, [&](int32_t bin) {
    const T last = sample_coordinate(axis, bin, axis.samples - 1);
    return falls ? last <= high : last >= low;
  });
  bins.end = first_where(bins.begin, axis.bins, [&](int32_t bin) {
    const T first = sample_coordinate(axis, bin, 0);
    return falls ? first < low : first > high;
  });
  return bins;
}

template <typename T>
__device__ Range<int32_t> samples_inside(const Axis<T>& axis, int32_t bin, int32_t size) {
  return samples_within(axis, bin, T(-1), T(size));
}

// Every sample inside the map that reads a cell is within one pixel of it, those clamped to the
// border included.
template <typename T>
__device__ Range<int32_t> bins_reading(const Axis<T>& axis, int32_t cell) {
  return bins_within(axis, T(cell) - T(1), T(cell) + T(1));
}

// One row (or column) of the map as a bin reads it: the weights of `samples` there are added up.
struct Tap {
  int32_t cell;
  Range<int32_t> samples;
};

template <typename T>
__device__ Tap tap_at_cell(const Axis<T>& axis, int32_t bin, int32_t cell) {
  return {cell, samples_within(axis, bin, T(cell) - T(1), T(cell) + T(1))};
}

// The rows (or columns) that one bin reads, numbered [0, count).
struct Footprint {
  Range<int32_t> samples;
  int32_t first_cell;
  int32_t count;
  bool
      dense;  // tap i is cell first_cell + i; else taps 2i and 2i + 1 are the two cells of sample i
};

template <typename T>
__device__ Footprint make_footprint(const Axis<T>& axis, int32_t bin, int32_t size) {
  Footprint footprint{samples_inside(axis, bin, size), 0, 0, true};
  const int64_t num_samples = footprint.samples.end - footprint.samples.begin;
  if (num_samples > 0) {
    const auto cells_of = [&](int32_t i) {
      return interpolate(sample_coordinate(axis, bin, i), size);
    };
    const Interpolation<T> a = cells_of(footprint.samples.begin);
    const Interpolation<T> b = cells_of(footprint.samples.end - 1);
    footprint.first_cell = a.low < b.low ? a.low : b.low;
    const int32_t span = (a.high > b.high ? a.high : b.high) + 1 - footprint.first_cell;
    footprint.dense = span <= 2 * num_samples;
    footprint.count = footprint.dense ? span : static_cast<int32_t>(2 * num_samples);
  }
  return footprint;
}

template <typename T>
__device__ Tap tap_of_footprint(
    const Axis<T>& axis, int32_t bin, int32_t size, const Footprint& footprint, int32_t i) {
  if (footprint.dense) {
    return tap_at_cell(axis, bin, footprint.first_cell + i);
  }
  const int32_t sample = footprint.samples.begin + i / 2;
  const Interpolation<T> at = interpolate(sample_coordinate(axis, bin, sample), size);
  const bool is_high = i % 2 == 1;
  const bool repeats = is_high && at.high == at.low;
  return {is_high ? at.high : at.low, {sample, repeats ? sample : sample + 1}};
}

template <typename T>
__device__ T weight_at(const Interpolation<T>& at, int32_t cell) {
  return (at.low == cell ? at.low_weight : T(0)) + (at.high == cell ? at.high_weight : T(0));
}

template <typename T>
__device__ T load_map(const Params& params, int64_t i) {
  switch (params.map_type) {
    case ScalarType::kDouble:
      return T(static_cast<const double*>(params.prob_maps)[i]);
    case ScalarType::kFloat:
      return T(static_cast<const float*>(params.prob_maps)[i]);
    case ScalarType::kHalf:
      return T(load(static_cast<const __half*>(params.prob_maps)[i]));
    default:
      return T(load(static_cast<const __nv_bfloat16*>(params.prob_maps)[i]));
  }
}

// p_k at a place of box k (paper eq. 3); 1 without maps.
template <typename T>
__device__ T sample_map(const Params& params, int64_t k, T v, T u) {
  if (params.prob_maps == nullptr) {
    return T(1);
  }
  const bool aligned = params.options.map_aligned;
  const Interpolation<T> y = interpolate_map(v, params.map_height, aligned);
  const Interpolation<T> x = interpolate_map(u, params.map_width, aligned);
  const int64_t low = (k * params.map_height + y.low) * params.map_width;
  const int64_t high = (k * params.map_height + y.high) * params.map_width;
  const T at_low = x.low_weight * load_map<T>(params, low + x.low) +
                   x.high_weight * load_map<T>(params, low + x.high);
  const T at_high = x.low_weight * load_map<T>(params, high + x.low) +
                    x.high_weight * load_map<T>(params, high + x.high);
  return y.low_weight * at_low + y.high_weight * at_high;
}

// What pixel (row.cell, column.cell) weighs in bin (ph, pw): an element of the box's matrix.
template <typename T>
__device__ T pixel_weight(
    const Params& params, const Box<T>& box, int32_t ph, int32_t pw, const Tap& row,
    const Tap& column) {
  const Axis<T>& y = box.geometry.y;
  const Axis<T>& x = box.geometry.x;
  const FeatureMap& map = params.levels[box.level];
  T sum = T(0);
#pragma unroll 1  // a few samples: registers matter more
  for (int32_t iy = row.samples.begin; iy < row.samples.end; ++iy) {
    const T v = sample_place(y, ph, iy);
    T along_row = T(0);
#pragma unroll 1
    for (int32_t ix = column.samples.begin; ix < column.samples.end; ++ix) {
      const Interpolation<T> at = interpolate(sample_coordinate(x, pw, ix), map.width);
      along_row +=
          weight_at(at, column.cell) * sample_map(params, box.index, v, sample_place(x, pw, ix));
    }
    const Interpolation<T> at = interpolate(sample_coordinate(y, ph, iy), map.height);
    sum += weight_at(at, row.cell) * along_row;
  }
  return sum * box.geometry.inverse_count;
}

}  // namespace shape_roi_align::cuda
