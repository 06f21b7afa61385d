// The two memory layouts that the CPU code distinguishes: channels innermost, or one plane per
// channel.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/simd/kernels.h"
#include "params.h"

namespace shape_roi_align::cpu {

inline bool has_channels_innermost(const FeatureMap& feature_map, int64_t channels) {
  return feature_map.channel_stride == 1 || channels == 1;
}

// Offsets of the rows and columns of planes, in elements.
struct PlaneGrid {
  std::vector<int64_t> row_offset;
  std::vector<int64_t> column_offset;
  bool unit_columns = false;  // column_offset[j] == column_offset[0] + j

  template <typename T>
  Planes<T> planes(T* data, int64_t channel_stride, int32_t channels) const {
    return {
        data,
        channel_stride,
        channels,
        row_offset.data(),
        static_cast<int32_t>(row_offset.size()),
        column_offset.data(),
        static_cast<int32_t>(column_offset.size()),
        unit_columns};
  }
};

// All columns of one pixel row of a feature map.
inline PlaneGrid pixel_row_grid(const FeatureMap& feature_map) {
  PlaneGrid grid{{0}, {}, feature_map.column_stride == 1};
  for (int32_t column = 0; column < feature_map.width; ++column) {
    grid.column_offset.push_back(column * feature_map.column_stride);
  }
  return grid;
}

// The bins of a box. Contiguous bins are treated as one bin row.
inline PlaneGrid bin_grid(const PooledTensor& pooled, int32_t num_rows, int32_t pooled_width) {
  const bool flat = pooled.column_stride == 1 && pooled.row_stride == pooled_width;
  PlaneGrid grid{{}, {}, pooled.column_stride == 1};
  for (int32_t row = 0; row < (flat ? 1 : num_rows); ++row) {
    grid.row_offset.push_back(row * pooled.row_stride);
  }
  for (int32_t column = 0; column < (flat ? num_rows * pooled_width : pooled_width); ++column) {
    grid.column_offset.push_back(column * pooled.column_stride);
  }
  return grid;
}

}  // namespace shape_roi_align::cpu
