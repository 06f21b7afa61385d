// The vectorised inner loops of the CPU operators, one table per instruction set and feature type.
//
// A tile holds bins (or pixels) x channels in the accumulate type, channels innermost, its stride a
// multiple of `lanes`.
#pragma once

#include <cstdint>

#include "scalar.h"

namespace shape_roi_align::cpu {

// Some channels of one image, or of one box of a pooled tensor, addressed by rows and columns.
template <typename T>
struct Planes {
  T* data;
  int64_t channel_stride;
  int32_t channels;
  const int64_t* row_offset;  // [num_rows]
  int32_t num_rows;
  const int64_t* column_offset;  // [num_columns]
  int32_t num_columns;
  bool unit_columns;  // column_offset[j] == column_offset[0] + j
};

template <typename T>
struct Kernels {
  using acc_t = accumulate_t<T>;

  const char* name;
  int32_t lanes;         // of a vector of acc_t
  int32_t planar_block;  // channels worth packing at a time

  // out[b * bin_stride + c] = sum of weight[t] * features[offset[t] + c] over the taps of bin b
  void (*gather_bins)(
      const T* features, const int32_t* bin_begin, const int64_t* offset, const acc_t* weight,
      int32_t bins, int32_t channels, T* out, int64_t bin_stride);
  void (*gather_bins_to_tile)(
      const T* features, const int32_t* bin_begin, const int64_t* offset, const acc_t* weight,
      int32_t bins, int32_t channels, acc_t* tile, int64_t bin_stride);
  void (*gather_bins_packed)(
      const acc_t* features, const int32_t* bin_begin, const int64_t* offset, const acc_t* weight,
      int32_t bins, int32_t channels, acc_t* tile, int64_t bin_stride);

  // dot[t] += sum over c of features[offset[t] + c] * tile[b * bin_stride + c], b the bin of tap t
  void (*dot_taps)(
      const T* features, const int32_t* bin_begin, const int64_t* offset, int32_t bins,
      int32_t channels, const acc_t* tile, int64_t bin_stride, acc_t* dot);
  void (*dot_taps_packed)(
      const acc_t* features, const int32_t* bin_begin, const int64_t* offset, int32_t bins,
      int32_t channels, const acc_t* tile, int64_t bin_stride, acc_t* dot);

  // gradient[offset[p] + c] += sum of weight[e] * tile[bin[e] * bin_stride + c] over the entries of
  // pixel p
  void (*gather_pixels)(
      acc_t* gradient, const int64_t* offset, const int32_t* pixel_begin, const int32_t* bin,
      const acc_t* weight, int32_t pixels, int32_t channels, const acc_t* tile, int64_t bin_stride);

  // tile[(row * num_columns + column) * stride + c] = planes; writes up to `lanes` rows of the tile
  // past its end
  void (*pack)(const Planes<const T>& planes, acc_t* tile, int64_t stride);
  // planes = tile
  void (*unpack)(const acc_t* tile, int64_t stride, const Planes<T>& planes);
  // planes += tile
  void (*unpack_add)(const acc_t* tile, int64_t stride, const Planes<acc_t>& planes);

  void (*convert)(const acc_t* from, T* to, int64_t n);
};

// The table of the best instruction set of this processor, or of the one named by
// SHAPE_ROI_ALIGN_CPU_CAPABILITY.
template <typename T>
const Kernels<T>& kernels();

}  // namespace shape_roi_align::cpu
