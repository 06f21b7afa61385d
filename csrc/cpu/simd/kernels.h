// The vectorised inner loops of the CPU operators, one table per instruction set and feature type.
//
// A tile holds bins or pixels x channels in the accumulate type, channels innermost, its stride a
// multiple of `lanes`.
#pragma once

#include <cstdint>

#include "cpu/simd/scalar.h"

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

constexpr int32_t kMaxRowVectors = 4;

// How to pool one box from planes in place, bin pw of a row of bins in lane pw; made by BoxLookups.
template <typename acc_t>
struct Lookups {
  int32_t vectors;                 // to load of a row of pixels: 1, 2 or 4
  int32_t starts[kMaxRowVectors];  // their first columns
  int32_t parts;                   // pixels of the widest bin in a row
  const int32_t* index;            // [parts][lanes]: which of the loaded pixels; -1: none
  int32_t bin_rows;
  int32_t bin_columns;
  const int32_t* step_begin;  // [bin_rows + 1]: rows of pixels of each row of bins
  const int64_t* row_offset;  // [steps]
  const acc_t* weight;        // [steps][parts][lanes]
};

template <typename T>
struct Kernels {
  using acc_t = accumulate_t<T>;

  int32_t lanes;         // of a vector of acc_t
  int32_t planar_block;  // channels worth packing at a time

  // out[r * row_stride + c] = sum of weight[t] * source[offset[t] + c] over the taps t of row r:
  // rows of a sparse matrix times a dense one. Forward, the rows are bins and the source is
  // features; backward, the rows are pixels and the source is bins. Where streamed, whole vectors
  // go past the caches if they are aligned; see streaming.h.
  void (*gather)(
      const T* source, const int32_t* row_begin, const int64_t* offset, const acc_t* weight,
      int32_t rows, int32_t channels, T* out, int64_t row_stride);
  void (*gather_streamed)(
      const T* source, const int32_t* row_begin, const int64_t* offset, const acc_t* weight,
      int32_t rows, int32_t channels, T* out, int64_t row_stride);
  void (*gather_to_tile)(
      const T* source, const int32_t* row_begin, const int64_t* offset, const acc_t* weight,
      int32_t rows, int32_t channels, acc_t* tile, int64_t row_stride);
  void (*gather_from_tile)(
      const acc_t* source, const int32_t* row_begin, const int64_t* offset, const acc_t* weight,
      int32_t rows, int32_t channels, T* out, int64_t row_stride);
  void (*gather_tile_to_tile)(
      const acc_t* source, const int32_t* row_begin, const int64_t* offset, const acc_t* weight,
      int32_t rows, int32_t channels, acc_t* tile, int64_t row_stride);

  // dot[t] += sum over c of features[offset[t] + c] * tile[b * bin_stride + c], b the bin of tap t
  void (*dot_taps)(
      const T* features, const int32_t* bin_begin, const int64_t* offset, int32_t bins,
      int32_t channels, const acc_t* tile, int64_t bin_stride, acc_t* dot);
  void (*dot_taps_packed)(
      const acc_t* features, const int32_t* bin_begin, const int64_t* offset, int32_t bins,
      int32_t channels, const acc_t* tile, int64_t bin_stride, acc_t* dot);

  // out[c * out_channel_stride + ph * out_row_stride + pw] = the bins of channel c. Null where the
  // instruction set has no lookups.
  void (*pool_planes)(
      const Lookups<acc_t>& box, const T* features, int64_t channel_stride, int32_t channels,
      T* out, int64_t out_channel_stride, int64_t out_row_stride);

  // tile[(row * tile_columns + column) * stride + c] = planes; of each row, columns up to the next
  // multiple of `lanes` may be written too
  void (*pack)(const Planes<const T>& planes, acc_t* tile, int64_t tile_columns, int64_t stride);
  // planes = tile, tile_columns being num_columns; reads the tile up to that multiple of `lanes`
  void (*unpack)(const acc_t* tile, int64_t stride, const Planes<T>& planes);
};

// The table of instruction_set().
template <typename T>
const Kernels<T>& kernels();

// One table per instruction set; kernels_<name>.cpp defines it.
template <typename T>
const Kernels<T>& portable_kernels();
template <typename T>
const Kernels<T>& avx2_kernels();
template <typename T>
const Kernels<T>& avx512_kernels();

}  // namespace shape_roi_align::cpu
