// Box -> samples -> interpolation: the only copy of the sampling geometry, for host and device,
// forward and backward. Coordinates are RoIAlign's: pixel j of a feature map is at coordinate j. T
// is the coordinate type: float or double.
//
// The order of operations is torchvision's. Every operation that decides which pixels a sample
// reads is rounded separately, whatever the compiler's flags (see rounded_product). All call sites,
// both devices and torchvision's CPU kernels therefore agree on which side of a border a sample is.
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

// How the boxes of a call are divided into bins and samples.
struct SamplingOptions {
  int32_t pooled_height;
  int32_t pooled_width;
  int32_t sampling_ratio;  // <= 0: adaptive, ceil(extent / bins)
  bool aligned;            // shift boxes by -0.5 and do not enforce a minimum size
  bool map_aligned;        // map cells are pixels with centres at j + 0.5
  bool average;            // divide sums over samples by the number of samples
};

// A box with more adaptive samples per bin is invalid: each sample would weigh less than 1e-9.
constexpr int32_t kMaxAdaptiveSamples = 1 << 30;

// Axis::samples of a box that is too large or not finite.
constexpr int32_t kNoSamples = -1;

// The samples of one box along one axis, in feature pixels.
template <typename T>
struct Axis {
  T start;             // low edge of the box
  T extent;            // length of the box, at least 1 when not aligned
  int32_t bins;        // P
  int32_t samples;     // S per bin; <= 0: the box has none
  bool extent_varies;  // depends on the edges; false if the extent is fixed at the minimum size
};

template <typename T>
struct BoxGeometry {
  Axis<T> y;
  Axis<T> x;
  T share;  // weight of a sample in its bin: 1 / (Sy * Sx), or 1 if bins are sums
  int64_t batch;
  bool valid;  // false: output and gradients of this box are 0
};

// The two pixels (or cells of a probability map) next to a coordinate along one axis, and their
// weights.
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

// a * b, rounded to T before it is added to anything: prevents the compiler from contracting the
// product and the addition into a fused multiply-add. nvcc contracts by default. GCC and Clang
// contract for processors that have the instruction (aarch64 always, x86-64 with -mfma). They do so
// at some call sites of an inlined function and not at others. The results differ by one rounding,
// so call sites would disagree on whether a sample on the border is inside. Every expression that
// decides which pixels or map cells a sample reads uses this function. Weights, and bounds with a
// margin, may be contracted.
template <typename T>
SHAPE_ROI_ALIGN_HD T rounded_product(T a, T b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == sizeof(double)) {
    return __dmul_rn(a, b);
  } else {
    return __fmul_rn(a, b);
  }
#else
  // volatile: GCC ignores #pragma STDC FP_CONTRACT OFF, and -ffp-contract=off for a whole file
  // would slow its other arithmetic.
  const volatile T product = a * b;
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

// Whether the index, truncated to an integer as in torchvision, is in [0, num_images). Truncation
// keeps a finite difference around 0 in image 0. False for NaN.
template <typename box_t>
SHAPE_ROI_ALIGN_HD bool is_batch_index(box_t index, int64_t num_images) {
  return index > box_t(-1) && index < static_cast<box_t>(num_images) && num_images > 0;
}

// BoxGeometry::share; 0 for a box without samples.
template <typename T>
SHAPE_ROI_ALIGN_HD T sample_share(int32_t y_samples, int32_t x_samples, bool average) {
  const T count = T(y_samples) * T(x_samples);
  return count > T(0) ? (average ? T(1) / count : T(1)) : T(0);
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
  geometry.share = sample_share<T>(geometry.y.samples, geometry.x.samples, options.average);
  return geometry;
}

// The two terms of sample_coordinate.
template <typename T>
SHAPE_ROI_ALIGN_HD T bin_start(const Axis<T>& axis, int32_t bin) {
  return axis.start + rounded_product(T(bin), axis.extent / T(axis.bins));
}
template <typename T>
SHAPE_ROI_ALIGN_HD T sample_in_bin(const Axis<T>& axis, int32_t i) {
  return (T(i) + T(0.5)) * (axis.extent / T(axis.bins)) / T(axis.samples);
}

// Feature coordinate of sample i of a bin: a along x, b along y (paper eq. 1).
template <typename T>
SHAPE_ROI_ALIGN_HD T sample_coordinate(const Axis<T>& axis, int32_t bin, int32_t i) {
  return bin_start(axis, bin) + sample_in_bin(axis, i);
}

// Position of sample i inside the box, in (0, 1): u along x, v along y.
template <typename T>
SHAPE_ROI_ALIGN_HD T sample_uv(const Axis<T>& axis, int32_t bin, int32_t i) {
  return (T(bin) + (T(i) + T(0.5)) / T(axis.samples)) / T(axis.bins);
}

// RoIAlign's border rule: whether a sample reads the feature map. False for NaN.
template <typename T>
SHAPE_ROI_ALIGN_HD bool is_inside(T coordinate, int32_t size) {
  return coordinate >= T(-1) && coordinate <= T(size);
}

// Clamps the coordinate to [0, size - 1]. size >= 1; coordinate is not NaN.
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

// Interpolation on a probability map of `size` cells along this axis (paper eq. 5), clamped to the
// map's border.
template <typename T>
SHAPE_ROI_ALIGN_HD Interpolation<T> interpolate_prob_map(T uv, int32_t size, bool map_aligned) {
  return interpolate<T>(rounded_product(uv, T(size)) - (map_aligned ? T(0.5) : T(0)), size);
}

// Upper bound on the rounding error of sample_coordinate, in pixels.
template <typename T>
SHAPE_ROI_ALIGN_HD double coordinate_error(const Axis<T>& axis) {
  return 8.0 * double(std::numeric_limits<T>::epsilon()) *
         (std::fabs(double(axis.start)) + std::fabs(double(axis.extent)));
}

// A superset of the samples of a bin that are inside [-1, size]; is_inside decides for each sample.
// Bounds the work for a box far larger than the feature map.
template <typename T>
SHAPE_ROI_ALIGN_HD Range<int32_t> visible_samples(const Axis<T>& axis, int32_t bin, int32_t size) {
  constexpr int32_t kFewSamples = 8;  // up to here, computing the range costs more than it saves
  if (axis.samples <= kFewSamples || !(axis.extent > T(0))) {
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
