// The gradient of the pooled tensor as rows of channels in the accumulate type, one row per bin:
// read in place where it is stored like that, else packed.
#pragma once

#include <numeric>
#include <type_traits>
#include <vector>

#include "cpu/planes.h"

namespace shape_roi_align::cpu {

template <typename T>
class PooledGradient {
 public:
  using acc_t = accumulate_t<T>;

  PooledGradient(const PooledMap& pooled, const SamplingOptions& options)
      : pooled_(pooled),
        width_(options.pooled_width),
        grid_(bin_grid(pooled, options.pooled_height, width_)) {
    const int32_t bins = options.pooled_height * options.pooled_width;
    bin_begin_.resize(size_t(bins) + 1);
    std::iota(bin_begin_.begin(), bin_begin_.end(), 0);
    bin_offset_.reserve(bins);
    for (int32_t bin = 0; bin < bins; ++bin) {
      bin_offset_.push_back(bin / width_ * pooled.row_stride + bin % width_ * pooled.column_stride);
    }
    ones_.assign(bins, acc_t(1));
  }

  bool is_in_place() const {
    return std::is_same_v<T, acc_t> && pooled_.channel_stride == 1 &&
           pooled_.row_stride == width_ * pooled_.column_stride;
  }

  // In place: bin b of box k starts at data() + offset(k, b).
  const acc_t* data() const {
    return static_cast<const acc_t*>(pooled_.data);
  }
  int64_t offset(int64_t k, int32_t bin) const {
    return k * pooled_.box_stride + bin * pooled_.column_stride;
  }
  int64_t bin_stride() const {
    return pooled_.column_stride;
  }

  // tile[bin * stride + c]: of box k, the bins of some rows and the channels [c, c + channels).
  // Writes up to `lanes` rows of the tile past the last bin.
  void pack(
      int64_t k, Range<int32_t> rows, int64_t c, int32_t channels, acc_t* tile,
      int64_t stride) const {
    const T* from = static_cast<const T*>(pooled_.data) + k * pooled_.box_stride +
                    rows.begin * pooled_.row_stride + c * pooled_.channel_stride;
    const int32_t num_rows = rows.end - rows.begin;
    if (pooled_.channel_stride == 1) {
      kernels_.gather_to_tile(
          from, bin_begin_.data(), bin_offset_.data(), ones_.data(), num_rows * width_, channels,
          tile, stride);
      return;
    }
    Planes<const T> planes = grid_.planes(from, pooled_.channel_stride, channels);
    if (planes.num_rows == 1) {
      planes.num_columns = num_rows * width_;
    } else {
      planes.num_rows = num_rows;
    }
    kernels_.pack(planes, tile, planes.num_columns, stride);
  }

 private:
  const Kernels<T>& kernels_ = kernels<T>();
  const PooledMap& pooled_;
  const int32_t width_;
  const PlaneGrid grid_;
  std::vector<int32_t> bin_begin_;
  std::vector<int64_t> bin_offset_;
  std::vector<acc_t> ones_;
};

}  // namespace shape_roi_align::cpu
