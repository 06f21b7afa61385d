// A tile in cache into which rows of planes are transposed, so that channels lie side by side.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/planes.h"

namespace shape_roi_align::cpu {

// Rows of one image of a map, packed some channels at a time: [row % capacity][column][channel].
template <typename T>
class PackedRows {
 public:
  using acc_t = accumulate_t<T>;

  // columns: those to pack, ascending. capacity: rows held at a time.
  void start(
      const FeatureMap& map, int64_t image, const std::vector<int32_t>& columns, int32_t capacity,
      int32_t block) {
    map_ = &map;
    image_ = static_cast<const T*>(map.data) + image * map.image_stride;
    grid_.column_offset.clear();
    for (const int32_t column : columns) {
      grid_.column_offset.push_back(column * map.column_stride);
    }
    grid_.row_offset.assign(1, 0);
    grid_.unit_columns = map.column_stride == 1 && columns.back() - columns.front() + 1 ==
                                                       static_cast<int32_t>(columns.size());
    tile_columns_ = round_up(static_cast<int64_t>(columns.size()), kernels_.lanes);
    block_ = block;
    held_.resize(capacity);
    tile_.resize(size_t(capacity) * tile_columns_ * block_);
  }

  int64_t row_offset(int32_t row) const {
    return row % static_cast<int32_t>(held_.size()) * tile_columns_ * block_;
  }
  int64_t column_offset(int64_t column) const {
    return column * block_;
  }

  // From here on rows hold the channels [c, c + channels).
  void set_channels(int64_t c, int32_t channels) {
    first_channel_ = image_ + c * map_->channel_stride;
    channels_ = channels;
    std::fill(held_.begin(), held_.end(), -1);
  }

  // Packs those of the rows that are not held yet. They span at most `capacity`.
  void hold(const std::vector<int32_t>& rows) {
    for (const int32_t row : rows) {
      int32_t& held = held_[row % static_cast<int32_t>(held_.size())];
      if (held != row) {
        held = row;
        kernels_.pack(
            grid_.planes(first_channel_ + row * map_->row_stride, map_->channel_stride, channels_),
            tile_.data() + row_offset(row), tile_columns_, block_);
      }
    }
  }

  const acc_t* tile() const {
    return tile_.data();
  }

 private:
  const Kernels<T>& kernels_ = kernels<T>();
  const FeatureMap* map_ = nullptr;
  const T* image_ = nullptr;
  const T* first_channel_ = nullptr;
  PlaneGrid grid_;
  int64_t tile_columns_ = 0;
  int32_t block_ = 0;
  int32_t channels_ = 0;
  std::vector<int32_t> held_;  // row in each place of the ring
  std::vector<acc_t> tile_;
};

}  // namespace shape_roi_align::cpu
