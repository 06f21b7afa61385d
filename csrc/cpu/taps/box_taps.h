// The taps of one box: the sparse matrix that maps the feature pixels under the box to its bins.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/taps/axis_taps.h"
#include "cpu/taps/bin_weights.h"

namespace shape_roi_align::cpu {

// Bin b has the taps [bin_begin[b], bin_begin[b + 1]): its touched rows x its touched columns, row
// by row.
template <typename weight_t>
struct BoxTaps {
  std::vector<int32_t> bin_begin;  // [PH * PW + 1]; empty until the first assign()
  std::vector<int64_t> offset;     // of each tap: row_offset + column_offset
  std::vector<weight_t> weight;

  // weights: of the same axes. row_offset, column_offset: of each touched row and column.
  template <typename T>
  void assign(
      const BoxAxes<T>& axes, BinWeights<T>& weights, const int64_t* row_offset,
      const int64_t* column_offset) {
    const AxisTaps<T>& y = axes.y;
    const AxisTaps<T>& x = axes.x;
    const size_t num_taps = static_cast<size_t>(axes.num_taps());
    bin_begin.resize(y.bin_span.size() * x.bin_span.size() + 1);
    offset.resize(num_taps);
    weight.resize(num_taps);
    int32_t bin = 0;
    int32_t tap = 0;
    bin_begin[0] = 0;
    for (int32_t ph = 0; ph < y.num_bins(); ++ph) {
      const Range<int32_t> rows = y.bin_span[ph];
      const T* of_bin_row = weights.of_bin_row(ph);
      for (int32_t pw = 0; pw < x.num_bins(); ++pw) {
        const Range<int32_t> columns = x.bin_span[pw];
        for (int32_t row = rows.begin; row < rows.end; ++row) {
          const T* from =
              of_bin_row + (row - rows.begin) * int64_t(x.num_entries()) + x.entry_begin[pw];
          for (int32_t i = 0; i < columns.end - columns.begin; ++i, ++tap) {
            offset[tap] = row_offset[row] + column_offset[columns.begin + i];
            weight[tap] = static_cast<weight_t>(from[i]);
          }
        }
        bin_begin[++bin] = tap;
      }
    }
  }
};

}  // namespace shape_roi_align::cpu
