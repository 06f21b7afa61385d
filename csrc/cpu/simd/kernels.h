// The vectorised inner loops of the CPU operators: one table per instruction set and feature type.
//
// A buffer holds [bins or pixels, channels] in the accumulate type, channels innermost. Its stride
// is the number of elements from one bin or pixel to the next.
#pragma once

#include <cstdint>

#include "cpu/simd/scalar.h"

namespace shape_roi_align::cpu {

inline int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

// A sparse matrix by rows. In the forward pass its rows are bins and its columns are pixels; in the
// gradient of the features, rows are pixels and columns are bins. Passed by value, so that kernels
// hold the pointers in registers.
template <typename acc_t>
struct TapMatrix {
  int32_t rows;
  const int32_t* begin;   // [rows + 1]: row r has the taps [begin[r], begin[r + 1])
  const int64_t* offset;  // of each tap: elements from the first element of the source
  const acc_t* weight;    // of each tap
};

// Some channels of one image, or of one box of a pooled tensor: one plane per channel. Plane rows
// are pixel rows or bin rows.
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

// How to pool one box with bins in the lanes: bin pw of a bin row is in lane pw. A few vectors of
// each pixel row are loaded, and the lanes look up their pixels in these vectors. A bin reads up to
// `parts` pixels of a pixel row. A step is one pixel row of one bin row. Built by BoxLookups.
template <typename acc_t>
struct Lookups {
  int32_t vectors;                 // of a pixel row: 1, 2 or 4
  int32_t starts[kMaxRowVectors];  // first column of each vector
  int32_t parts;
  const int32_t* index;  // [parts][lanes]: into the loaded pixels; -1: none
  int32_t bin_rows;
  int32_t bin_columns;
  const int32_t* step_begin;  // [bin_rows + 1]
  const int64_t* row_offset;  // [steps]: of the pixel row
  const acc_t* weight;        // [steps][parts][lanes]
};

// A sparse matrix for results in the lanes: lane i of result vector v is the sum over p of
// weight[v][p][i] * source[start[v] + index[v][p][i]]. Built by LaneTapsTable.
template <typename acc_t>
struct LaneTaps {
  int32_t vectors;  // of results
  int32_t parts;    // maximum number of taps of a lane
  int32_t window;   // vectors that hold the sources of a result vector: 1, 2, 4; 0: more
  // Every result has exactly `parts` taps. Lanes past the last result are then undefined.
  bool is_complete;
  const int32_t* start;  // [vectors]; 0 where the window holds all sources
  const int32_t* index;  // [vectors][parts][lanes]; -1: none
  const acc_t* weight;   // [vectors][parts][lanes]
};

// How to pool some rows of planes, rows first: each row of `rows` is a weighted sum of source rows;
// `columns` then computes the results from this sum. A pixel row with channels innermost is treated
// as one row of elements.
template <typename acc_t>
struct RowSumsArguments {
  TapMatrix<acc_t> rows;  // offset: of the first element of a source row
  LaneTaps<acc_t> columns;
  int32_t elements;  // of a source row
  int32_t planes;    // channels, each with rows of its own
  acc_t* sum;        // memory: [elements + kRowSumPadding]
  int64_t next_row;  // offset from the last source row to the row to prefetch; 0: no prefetch
};

// Elements after a row sum that kernels read with weight 0; they may be uninitialised.
constexpr int32_t kRowSumPadding = 64;

template <typename T>
struct Kernels {
  using acc_t = accumulate_t<T>;

  int32_t lanes;         // of a vector of acc_t
  int32_t planar_block;  // channels per block where planes are packed or unpacked

  // out[r * row_stride + c] = sum of weight[t] * source[offset[t] + c] over the taps t of row r.
  // gather_streamed uses streaming stores for whole vectors if all of them are aligned; call
  // finish_streaming() afterwards.
  void (*gather)(
      TapMatrix<acc_t> taps, const T* source, int32_t channels, T* out, int64_t row_stride);
  void (*gather_streamed)(
      TapMatrix<acc_t> taps, const T* source, int32_t channels, T* out, int64_t row_stride);
  void (*gather_to_buffer)(
      TapMatrix<acc_t> taps, const T* source, int32_t channels, acc_t* buffer, int64_t stride);
  void (*gather_from_buffer)(
      TapMatrix<acc_t> taps, const acc_t* source, int32_t channels, T* out, int64_t row_stride);
  void (*gather_between_buffers)(
      TapMatrix<acc_t> taps, const acc_t* source, int32_t channels, acc_t* buffer, int64_t stride);

  // products[t] += sum over c of features[offset[t] + c] * bins[b * bin_stride + c], b the bin of
  // tap t. Weights are not read.
  void (*dot)(
      TapMatrix<acc_t> taps, const T* features, int32_t channels, const acc_t* bins,
      int64_t bin_stride, acc_t* products);
  void (*dot_with_buffer)(
      TapMatrix<acc_t> taps, const acc_t* features, int32_t channels, const acc_t* bins,
      int64_t bin_stride, acc_t* products);

  // out[c * out_channel_stride + ph * out_row_stride + pw] = bin (ph, pw) of channel c. Null if the
  // instruction set cannot permute lanes.
  void (*look_up)(
      const Lookups<acc_t>& box, const T* features, int64_t channel_stride, int32_t channels,
      T* out, int64_t out_channel_stride, int64_t out_row_stride);

  // row_sums.sum = the weighted sum of row 0 of row_sums.rows, for one plane.
  void (*sum_row)(const RowSumsArguments<acc_t>& row_sums, const T* source);
  // out[plane * out_plane_stride + r * out_row_stride + i] = result i of row r, i < results. The
  // variants read or write buffers; add_buffer_rows adds to the buffer.
  void (*pool_rows)(
      const RowSumsArguments<acc_t>& row_sums, const T* source, int64_t plane_stride, T* out,
      int64_t out_plane_stride, int64_t out_row_stride, int32_t results);
  void (*pool_rows_to_buffer)(
      const RowSumsArguments<acc_t>& row_sums, const T* source, int64_t plane_stride, acc_t* out,
      int64_t out_plane_stride, int64_t out_row_stride, int32_t results);
  void (*pool_buffer_rows)(
      const RowSumsArguments<acc_t>& row_sums, const acc_t* source, int64_t plane_stride,
      acc_t* out, int64_t out_plane_stride, int64_t out_row_stride, int32_t results);
  void (*add_buffer_rows)(
      const RowSumsArguments<acc_t>& row_sums, const acc_t* source, int64_t plane_stride,
      acc_t* out, int64_t out_plane_stride, int64_t out_row_stride, int32_t results);

  // to[plane * plane_stride + i] = result i of source + plane * source_stride. The second variant
  // writes whole vectors.
  void (*look_up_rows)(
      const LaneTaps<acc_t>& columns, const acc_t* source, int32_t planes, int64_t source_stride,
      T* to, int64_t plane_stride, int32_t results);
  void (*look_up_buffer_rows)(
      const LaneTaps<acc_t>& columns, const acc_t* source, int32_t planes, int64_t source_stride,
      acc_t* to, int64_t plane_stride, int32_t results);

  // The next four kernels work on rows of n lanes, in whole vectors.
  // to[plane][i] += a[i] * b[plane][i]
  void (*add_weighted)(const acc_t* a, const acc_t* b, int32_t planes, int32_t n, acc_t* to);
  // to[i] += sum over planes of a[plane][i] * b[plane][i]
  void (*add_products)(const acc_t* a, const acc_t* b, int32_t planes, int32_t n, acc_t* to);
  // low[i] += low_weight * from[i]; high[i] += high_weight * from[i]
  void (*add_to_two)(
      const acc_t* from, int32_t n, acc_t low_weight, acc_t* low, acc_t high_weight, acc_t* high);
  // to[i] = low_weight * low[i] + high_weight * high[i]
  void (*interpolate)(
      const acc_t* low, acc_t low_weight, const acc_t* high, acc_t high_weight, int32_t n,
      acc_t* to);

  // to[c * stride + i] = from[i * channels + c] for i in [0, n). May read and write columns up to
  // the next multiple of `lanes`, and may read kRowSumPadding elements more.
  void (*separate)(const acc_t* from, int32_t channels, int32_t n, acc_t* to, int64_t stride);
  // to[i * channels + c] = from[c * stride + i] for i in [0, n)
  void (*interleave)(const acc_t* from, int32_t channels, int64_t stride, int32_t n, T* to);
  // to[i] = from[i] for i in [0, n)
  void (*copy_from_buffer)(const acc_t* from, int32_t n, T* to);

  // buffer[i * stride + c] = source[offset[i] + c] for i in [0, rows)
  void (*copy_to_buffer)(
      const T* source, const int64_t* offset, int32_t rows, int32_t channels, acc_t* buffer,
      int64_t stride);
  // buffer[(row * buffer_columns + column) * stride + c] = planes. May write the columns of each
  // plane row up to the next multiple of `lanes`.
  void (*pack)(
      const Planes<const T>& planes, acc_t* buffer, int64_t buffer_columns, int64_t stride);
  // planes = buffer, whose rows have num_columns columns. May read columns up to the next multiple
  // of `lanes`.
  void (*unpack)(const acc_t* buffer, int64_t stride, const Planes<T>& planes);
};

// The table of instruction_set().
template <typename T>
const Kernels<T>& kernels();

// One table per instruction set, each defined in kernels_<name>.cpp.
template <typename T>
const Kernels<T>& portable_kernels();
template <typename T>
const Kernels<T>& avx2_kernels();
template <typename T>
const Kernels<T>& avx512_kernels();

}  // namespace shape_roi_align::cpu
