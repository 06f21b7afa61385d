// The gradient of the pooled tensor as one vector of channels per bin, in the accumulate type. It
// is read in place if the tensor has this layout and type, else packed into a buffer.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/layout/channel_block.h"
#include "cpu/layout/planes.h"

namespace shape_roi_align::cpu {

// The bins of one box, some channels each: bin b is at data + b * stride.
template <typename acc_t>
struct BinVectors {
  const acc_t* data;
  int64_t stride;
};

template <typename T>
class PooledGradient {
 public:
  using acc_t = accumulate_t<T>;

  PooledGradient(const PooledTensor& pooled, const SamplingOptions& options)
      : pooled_(pooled),
        pooled_height_(options.pooled_height),
        pooled_width_(options.pooled_width),
        grid_(bin_grid(pooled, options.pooled_height, options.pooled_width)) {
    const int32_t bins = pooled_height_ * pooled_width_;
    bin_offset_.reserve(bins);
    for (int32_t bin = 0; bin < bins; ++bin) {
      bin_offset_.push_back(
          bin / pooled_width_ * pooled.row_stride + bin % pooled_width_ * pooled.column_stride);
    }
  }

  bool is_in_place() const {
    return std::is_same_v<T, acc_t> && pooled_.channel_stride == 1 &&
           pooled_.row_stride == pooled_width_ * pooled_.column_stride;
  }

  // If is_in_place(), channel 0 of bin b of box k is at data() + offset(k, b).
  const acc_t* data() const {
    return static_cast<const acc_t*>(pooled_.data);
  }
  int64_t offset(int64_t k, int32_t bin) const {
    return k * pooled_.box_stride + bin * pooled_.column_stride;
  }

  // buffer[bin * stride + c]: the bins of some bin rows of box k, channels [c, c + channels).
  // May write up to `lanes` bins past the last one.
  void pack(
      int64_t k, Range<int32_t> bin_rows, int64_t c, int32_t channels, acc_t* buffer,
      int64_t stride) const {
    const T* from = static_cast<const T*>(pooled_.data) + k * pooled_.box_stride +
                    bin_rows.begin * pooled_.row_stride + c * pooled_.channel_stride;
    const int32_t num_rows = bin_rows.end - bin_rows.begin;
    if (pooled_.channel_stride == 1) {
      kernels_.copy_to_buffer(
          from, bin_offset_.data(), num_rows * pooled_width_, channels, buffer, stride);
      return;
    }
    Planes<const T> planes = grid_.planes(from, pooled_.channel_stride, channels);
    if (planes.num_rows == 1) {
      planes.num_columns = num_rows * pooled_width_;
    } else {
      planes.num_rows = num_rows;
    }
    kernels_.pack(planes, buffer, planes.num_columns, stride);
  }

  // Channels per block for bins_of_box.
  int32_t channels_per_block(int64_t channels) const {
    const int32_t bins = pooled_height_ * pooled_width_;
    return is_in_place() ? static_cast<int32_t>(channels)
                         : channel_block<T>(bins, channels, 2 * kernels_.planar_block);
  }

  // Channels [c, c + channels) of the bins of box k, in place or in `buffer`.
  BinVectors<acc_t> bins_of_box(
      int64_t k, int64_t c, int32_t channels, std::vector<acc_t>& buffer) const {
    if (is_in_place()) {
      return {data() + offset(k, 0) + c, pooled_.column_stride};
    }
    const int64_t stride = round_up(channels, kernels_.lanes);
    buffer.resize((size_t(pooled_height_) * pooled_width_ + kernels_.lanes) * stride);
    pack(k, {0, pooled_height_}, c, channels, buffer.data(), stride);
    return {buffer.data(), stride};
  }

 private:
  const Kernels<T>& kernels_ = kernels<T>();
  const PooledTensor& pooled_;
  const int32_t pooled_height_;
  const int32_t pooled_width_;
  const PlaneGrid grid_;
  std::vector<int64_t> bin_offset_;
};

}  // namespace shape_roi_align::cpu
