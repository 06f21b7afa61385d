// Tensors whose channels are not innermost, seen as planes of rows and columns, and the blocks of
// channels in which they are moved to and from tiles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/simd/kernels.h"
#include "params.h"

namespace shape_roi_align::cpu {

inline bool is_channels_innermost(const FeatureMap& map, int64_t channels) {
  return map.channel_stride == 1 || channels == 1;
}

struct PlaneGrid {
  std::vector<int64_t> row_offset;
  std::vector<int64_t> column_offset;
  bool unit_columns = false;

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

// All columns of one row of a feature map.
inline PlaneGrid row_grid(const FeatureMap& map) {
  PlaneGrid grid{{0}, {}, map.column_stride == 1};
  for (int32_t column = 0; column < map.width; ++column) {
    grid.column_offset.push_back(column * map.column_stride);
  }
  return grid;
}

// Rows of bins of a pooled tensor: as a single row of them all where they lie side by side.
inline PlaneGrid bin_grid(const PooledMap& pooled, int32_t num_rows, int32_t pooled_width) {
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

inline int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

// How many channels to move at a time: as many as let a tile of that many rows stay in the
// cache, at least one vector, at most `widest`.
template <typename T>
int32_t channel_block(int64_t tile_rows, int64_t channels, int32_t widest) {
  constexpr int64_t kTileBytes = 2 << 20;
  const int64_t lanes = kernels<T>().lanes;
  const int64_t row_bytes = std::max<int64_t>(tile_rows * sizeof(accumulate_t<T>), 1);
  const int64_t fitting = kTileBytes / row_bytes / lanes * lanes;
  const int64_t whole = round_up(channels, lanes);
  return static_cast<int32_t>(
      std::min<int64_t>(whole, std::clamp<int64_t>(fitting, lanes, widest)));
}

}  // namespace shape_roi_align::cpu
