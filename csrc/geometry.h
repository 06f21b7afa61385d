// Box -> samples -> taps: the only copy of the sampling geometry, shared by host and device,
// forward and backward.  Coordinates are those of RoIAlign: pixel j of a feature map sits at
// coordinate j. T is the coordinate type: float or double. The order of operations is
// torchvision's, and each is rounded: all call sites on both devices, and torchvision on the CPU,
// agree on which side of a discontinuity a sample falls.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#if defined(__CUDACC__) || defined(SHAPE_ROI_ALIGN_CUDA_ON_HOST)
#define SHAPE_ROI_ALIGN_HD __host__ __device__ inline
#else
#define SHAPE_ROI_ALIGN_HD inline
#endif

namespace shape_roi_align {

// How boxes are cut into bins and samples; the same for every box of a call.
struct SamplingOptions {
  int32_t pooled_height;
  int32_t pooled_width;
  int32_t sampling_ratio;  // <= 0: adaptive, ceil(extent / bins)
  bool aligned;            // shift boxes by -0.5 and do not enforce a minimum size
  bool map_aligned;        // map cells are pixels with centres at j + 0.5
};

// Adaptive sampling counts above this make a box invalid: its samples would be weighted by less
// than 1e-9.
constexpr int32_t kMaxAdaptiveSamples = 1 << 30;

// Axis::samples of a box that is not finite or too large.
constexpr int32_t kNoSamples = -1;

// The samples of one box along one axis, in feature pixels.
template <typename T>
struct Axis {
  T start;             // first edge of the box
  T extent;            // length of the box, at least 1 when not aligned
  int32_t bins;        // P
  int32_t samples;     // S per bin; <= 0: the box has none
  bool extent_varies;  // false where the minimum size holds the extent fixed
};

template <typename T>
struct BoxGeometry {
  Axis<T> y;
  Axis<T> x;
  T inverse_count;  // 1 / (Sy * Sx)
  int64_t batch;
  bool valid;  // false: output and gradients of this box are 0
};

// Two neighbouring cells and what a coordinate between them takes from each.
template <typename T>
struct Interpolation {
  int32_t low;
  int32_t high;
  T low_weight;
  T high_weight;
  T slope;  // d(high_weight)/d(coordinate): 1, or 0 where the coordinate is clamped to the border
};

template <typename T>
struct Range {
  T begin;
  T end;
};

template <typename T>
SHAPE_ROI_ALIGN_HD bool is_finite(T value) {
  constexpr T kLargest = std::numeric_limits<T>::max();
  return value >= -kLargest && value <= kLargest;
}

// a * b, rounded to T before an addition reads it. nvcc, and GCC and Clang for processors with a
// fused multiply-add, fuse a * b + c at some call sites of an inlined function and not at others.
// The results differ by one rounding: call sites would disagree on whether a sample on the border
// is inside. For every expression that decides which pixels or map cells a sample reads; bounds
// that have a margin do without.
template <typename T>
SHAPE_ROI_ALIGN_HD T rounded_product(T a, T b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == sizeof(double)) {
    return __dmul_rn(a, b);
  } else {
    return __fmul_rn(a, b);
  }
#else
  const volatile T product = a * b;  // GCC ignores #pragma STDC FP_CONTRACT OFF
  return product;
#endif
}

template <typename T>
SHAPE_ROI_ALIGN_HD Axis<T> make_axis(
    T edge1, T edge2, T scale, int32_t bins, const SamplingOptions& options) {
  const T offset = options.aligned ? T(0.5) : T(0);
  Axis<T> axis;
  axis.start = rounded_product(edge1, scale) - offset;
  axis.extent = (rounded_product(edge2, scale) - offset) - axis.start;
  axis.bins = bins;
  axis.samples = options.sampling_ratio;
  const bool is_known = is_finite(axis.start) && is_finite(axis.extent);
  axis.extent_varies = options.aligned || axis.extent >= T(1);
  if (!axis.extent_varies) {
    axis.extent = T(1);
  }
  if (options.sampling_ratio <= 0) {
    const T count = std::ceil(axis.extent / T(bins));
    axis.samples =
        count > T(0) ? (count <= T(kMaxAdaptiveSamples) ? static_cast<int32_t>(count) : kNoSamples)
                     : 0;
  }
  if (!is_known) {
    axis.samples = kNoSamples;
  }
  return axis;
}

// Indices are truncated to integers, as torchvision does: a finite difference around 0 stays in
// image 0. False for NaN.
template <typename box_t>
SHAPE_ROI_ALIGN_HD bool is_batch_index(box_t index, int64_t num_images) {
  return index > box_t(-1) && index < static_cast<box_t>(num_images);
}

// box: [5] = (batch index, x1, y1, x2, y2) in image pixels. num_images bounds the batch index.
template <typename T, typename box_t>
SHAPE_ROI_ALIGN_HD BoxGeometry<T> make_box_geometry(
    const box_t* box, T spatial_scale, int64_t num_images, const SamplingOptions& options) {
  BoxGeometry<T> geometry;
  geometry.x = make_axis<T>(T(box[1]), T(box[3]), spatial_scale, options.pooled_width, options);
  geometry.y = make_axis<T>(T(box[2]), T(box[4]), spatial_scale, options.pooled_height, options);
  const bool in_batch = is_batch_index(box[0], num_images);
  geometry.batch = in_batch ? static_cast<int64_t>(box[0]) : 0;
  geometry.valid = in_batch && geometry.y.samples >= 0 && geometry.x.samples >= 0;
  const T count = T(geometry.y.samples) * T(geometry.x.samples);
  geometry.inverse_count = count > T(0) ? T(1) / count : T(0);
  return geometry;
}

// Feature coordinate of sample i of a bin (paper eq. 1's a or b).
template <typename T>
SHAPE_ROI_ALIGN_HD T sample_coordinate(const Axis<T>& axis, int32_t bin, int32_t i) {
  const T bin_size = axis.extent / T(axis.bins);
  const T in_bin = (T(i) + T(0.5)) * bin_size / T(axis.samples);
  return axis.start + rounded_product(T(bin), bin_size) + in_bin;
}

// Place of sample i inside the box, in (0, 1): u or v.
template <typename T>
SHAPE_ROI_ALIGN_HD T sample_place(const Axis<T>& axis, int32_t bin, int32_t i) {
  return (T(bin) + (T(i) + T(0.5)) / T(axis.samples)) / T(axis.bins);
}

// Whether a sample reads the map at all: RoIAlign's border rule. False for NaN.
template <typename T>
SHAPE_ROI_ALIGN_HD bool is_inside(T coordinate, int32_t size) {
  return coordinate >= T(-1) && coordinate <= T(size);
}

// Taps of a coordinate clamped to [0, size - 1]; size >= 1, coordinate not NaN.
template <typename T>
SHAPE_ROI_ALIGN_HD Interpolation<T> interpolate(T coordinate, int32_t size) {
  const T last = T(size - 1);
  if (!(coordinate >= T(0))) {
    return {0, size > 1 ? 1 : 0, T(1), T(0), T(0)};
  }
  if (coordinate >= last) {
    return {size - 1, size - 1, T(1), T(0), T(0)};
  }
  const int32_t low = static_cast<int32_t>(coordinate);
  const T fraction = coordinate - T(low);
  return {low, low + 1, T(1) - fraction, fraction, T(1)};
}

// Taps on a probability map of `size` cells along this axis (paper eq. 5), clamped to its border.
template <typename T>
SHAPE_ROI_ALIGN_HD Interpolation<T> interpolate_map(T place, int32_t size, bool map_aligned) {
  return interpolate<T>(rounded_product(place, T(size)) - (map_aligned ? T(0.5) : T(0)), size);
}

// How far rounding may move a sample_coordinate, in pixels.
template <typename T>
SHAPE_ROI_ALIGN_HD double coordinate_error(const Axis<T>& axis) {
  return 8.0 * double(std::numeric_limits<T>::epsilon()) *
         (std::fabs(double(axis.start)) + std::fabs(double(axis.extent)));
}

// A range [begin, end) of sample indices of a bin that holds every sample inside [-1, size]. It may
// hold a few more: is_inside decides. Bounds the work of a box far larger than the map.
template <typename T>
SHAPE_ROI_ALIGN_HD Range<int32_t> visible_samples(const Axis<T>& axis, int32_t bin, int32_t size) {
  constexpr int32_t kNotWorthTheArithmetic = 8;
  if (axis.samples <= kNotWorthTheArithmetic || !(axis.extent > T(0))) {
    return {0, axis.samples > 0 ? axis.samples : 0};
  }
  const double bin_size = double(axis.extent) / axis.bins;
  const double spacing = bin_size / axis.samples;
  const double bin_start = double(axis.start) + bin * bin_size;
  const double error = coordinate_error(axis);
  const double first = (-1.0 - error - bin_start) / spacing - 1.5;
  const double last = (double(size) + error - bin_start) / spacing + 1.5;
  const double count = axis.samples;
  const int32_t begin = first > 0 ? static_cast<int32_t>(first < count ? first : count) : 0;
  const int32_t end = last > 0 ? static_cast<int32_t>(last < count ? last : count) : 0;
  return {begin, end > begin ? end : begin};
}

}  // namespace shape_roi_align
