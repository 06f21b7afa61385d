// Rows of adjacent elements: the pixels of a pixel row or the bins of a bin row. Channels are
// either in planes, each with its own rows, or interleaved: a row then holds columns x channels.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/layout/channel_block.h"
#include "cpu/simd/kernels.h"
#include "params.h"

namespace shape_roi_align::cpu {

struct ElementRows {
  int32_t interleaved = 0;  // channels per column: all or 1; 0: the layout has no such rows
  int32_t planes = 0;

  bool exist() const {
    return interleaved > 0;
  }
};

// Of a feature map or a pooled tensor.
template <typename Tensor>
ElementRows element_rows(const Tensor& tensor, int64_t channels) {
  const int32_t count = static_cast<int32_t>(channels);
  if (tensor.channel_stride == 1 && tensor.column_stride == channels) {
    return {count, 1};
  }
  return {tensor.column_stride == 1 ? 1 : 0, count};
}

// Converts bin rows of box k and copies them to to[plane][bin row][row_length]; the first
// pooled_width * rows.interleaved elements of each row are set. rows: the wanted arrangement of
// channels. row_length: a multiple of the vector length. row: scratch.
template <typename T>
void copy_bin_rows(
    const PooledTensor& pooled, int64_t k, Range<int32_t> bin_rows, int32_t pooled_width,
    const ElementRows& rows, int32_t row_length, accumulate_t<T>* to,
    std::vector<accumulate_t<T>>& row) {
  const Kernels<T>& table = kernels<T>();
  const int32_t channels = rows.interleaved * rows.planes;
  const ElementRows here = element_rows(pooled, channels);
  const T* box = static_cast<const T*>(pooled.data) + k * pooled.box_stride;
  const int64_t plane = int64_t(bin_rows.end - bin_rows.begin) * row_length;
  constexpr int64_t kNoOffset = 0;
  for (int32_t ph = bin_rows.begin; ph < bin_rows.end; ++ph, to += row_length) {
    const T* from = box + ph * pooled.row_stride;
    if (here.interleaved == rows.interleaved) {
      for (int32_t c = 0; c < rows.planes; ++c) {
        table.copy_to_buffer(
            from + c * pooled.channel_stride, &kNoOffset, 1, pooled_width * rows.interleaved,
            to + c * plane, 0);
      }
    } else if (here.interleaved == channels && rows.interleaved == 1) {
      row.resize(int64_t(channels) * row_length + kRowSumPadding);
      table.copy_to_buffer(from, &kNoOffset, 1, pooled_width * channels, row.data(), 0);
      table.separate(row.data(), channels, pooled_width, to, plane);
    } else {
      for (int32_t c = 0; c < channels; ++c) {
        accumulate_t<T>* first = to + (c / rows.interleaved) * plane + c % rows.interleaved;
        for (int32_t pw = 0; pw < pooled_width; ++pw) {
          first[pw * rows.interleaved] =
              load(from[pw * pooled.column_stride + c * pooled.channel_stride]);
        }
      }
    }
  }
}

}  // namespace shape_roi_align::cpu
