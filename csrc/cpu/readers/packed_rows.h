// A buffer that holds the latest rows of one image of planes, transposed so that channels are
// innermost.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/layout/channel_block.h"
#include "cpu/layout/planes.h"
#include "cpu/readers/reader.h"

namespace shape_roi_align::cpu {

// The buffer: [pixel row % capacity][column][channel], some channels at a time.
template <typename T>
class RowRing {
 public:
  using acc_t = accumulate_t<T>;

  // Reused by later rings to save allocations.
  struct Memory {
    PlaneGrid grid;
    std::vector<int32_t> held;
    std::vector<acc_t> buffer;
  };

  // columns: to pack, ascending, not empty. capacity: rows held at a time. block: maximum number of
  // channels per block. memory must outlive the ring.
  RowRing(
      const FeatureMap& feature_map, int64_t image, const std::vector<int32_t>& columns,
      int32_t capacity, int32_t block, Memory& memory)
      : feature_map_(feature_map),
        image_(image_data<T>(feature_map, image)),
        first_column_(columns.front()),
        is_dense_(columns.back() - columns.front() + 1 == static_cast<int32_t>(columns.size())),
        capacity_(capacity),
        buffer_columns_(round_up(static_cast<int64_t>(columns.size()), kernels<T>().lanes)),
        block_(block),
        memory_(memory) {
    PlaneGrid& grid = memory_.grid;
    grid.row_offset.assign(1, 0);
    grid.column_offset.clear();
    for (const int32_t column : columns) {
      grid.column_offset.push_back(column * feature_map.column_stride);
    }
    grid.unit_columns = feature_map.column_stride == 1 && is_dense_;
    memory_.held.resize(capacity);
    memory_.buffer.resize(size_t(capacity) * buffer_columns_ * block_);
  }

  int64_t row_offset(int32_t row) const {
    return row % capacity_ * buffer_columns_ * block_;
  }
  // index: position of the column in `columns`.
  int64_t column_offset(int32_t column, int64_t index) const {
    return (is_dense_ ? column - first_column_ : index) * block_;
  }

 private:
  template <typename>
  friend class PackedRows;

  const FeatureMap& feature_map_;
  const T* image_;
  int32_t first_column_;
  bool is_dense_;
  int32_t capacity_;
  int64_t buffer_columns_;
  int32_t block_;
  Memory& memory_;
};

// The rows of a ring for the channels [c, c + channels). A ring supports one such object at a time.
template <typename T>
class PackedRows {
 public:
  using acc_t = accumulate_t<T>;

  PackedRows(const RowRing<T>& ring, int64_t c, int32_t channels)
      : ring_(ring),
        first_channel_(ring.image_ + c * ring.feature_map_.channel_stride),
        channels_(channels) {
    constexpr int32_t kNoRow = -1;
    std::fill(ring_.memory_.held.begin(), ring_.memory_.held.end(), kNoRow);
  }

  // Packs the pixel rows that the ring does not hold yet. `rows` span at most `capacity` rows.
  void pack(const std::vector<int32_t>& rows) {
    const FeatureMap& feature_map = ring_.feature_map_;
    for (const int32_t row : rows) {
      int32_t& held = ring_.memory_.held[row % ring_.capacity_];
      if (held != row) {
        held = row;
        kernels_.pack(
            ring_.memory_.grid.planes(
                first_channel_ + row * feature_map.row_stride, feature_map.channel_stride,
                channels_),
            ring_.memory_.buffer.data() + ring_.row_offset(row), ring_.buffer_columns_,
            ring_.block_);
      }
    }
  }

  const acc_t* data() const {
    return ring_.memory_.buffer.data();
  }

 private:
  const Kernels<T>& kernels_ = kernels<T>();
  const RowRing<T>& ring_;
  const T* first_channel_;
  int32_t channels_;
};

}  // namespace shape_roi_align::cpu
