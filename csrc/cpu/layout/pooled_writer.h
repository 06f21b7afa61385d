// Writes the pooled tensor box by box, some channels at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/layout/channel_block.h"
#include "cpu/layout/planes.h"
#include "cpu/simd/streaming.h"

namespace shape_roi_align::cpu {

// Some channels of all bins of a box: bin b is at data + b * stride.
template <typename acc_t>
struct BinBuffer {
  acc_t* data;
  int64_t stride;
};

template <typename T>
class PooledWriter {
 public:
  using acc_t = accumulate_t<T>;

  // output: [K, C, PH, PW], each box dense in memory.
  PooledWriter(const Params& params, const PooledTensor& output)
      : output_(output),
        bins_(params.options.pooled_height * params.options.pooled_width),
        pooled_width_(params.options.pooled_width),
        grid_(bin_grid(output, params.options.pooled_height, params.options.pooled_width)),
        is_large_(params.num_rois * params.channels * bins_ * int64_t(sizeof(T)) >= kLargeResult),
        is_staged_(
            is_large_ && output.channel_stride == bins_ &&
            int64_t(bins_) * kernels_.lanes * int64_t(sizeof(T)) <= kLargestStage) {}

  bool has_channels_innermost() const {
    return output_.channel_stride == 1;
  }
  // Whether to bypass the caches.
  bool is_large() const {
    return is_large_;
  }

  // The first bin of channel c of box k.
  T* at(int64_t k, int64_t c) const {
    return static_cast<T*>(output_.data) + k * output_.box_stride + c * output_.channel_stride;
  }
  // Elements from one bin to the next, if channels are innermost.
  int64_t bin_stride() const {
    return output_.column_stride;
  }

  int64_t bin_row_stride() const {
    return output_.row_stride;
  }

  // Channels per block for at() or buffer().
  int32_t channels_per_block(int64_t channels) const {
    return has_channels_innermost() ? static_cast<int32_t>(channels)
                                    : channel_block<T>(bins_, channels, kernels_.planar_block);
  }

  // A buffer to fill and pass to write(), if channels are not innermost. Valid until the next call.
  BinBuffer<acc_t> buffer(int32_t channels) {
    const int64_t stride = round_up(channels, kernels_.lanes);
    buffer_.resize((size_t(bins_) + kernels_.lanes) * stride);
    return {buffer_.data(), stride};
  }

  // Writes channels [c, c + channels) of box k. Planes of e.g. 49 bins are not cache-line aligned.
  // The planes of a large output are therefore transposed in the cache and streamed in whole lines.
  void write(const BinBuffer<acc_t>& buffer, int64_t k, int64_t c, int32_t channels) {
    T* to = at(k, c);
    if (!is_staged_) {
      kernels_.unpack(
          buffer.data, buffer.stride, grid_.planes(to, output_.channel_stride, channels));
      return;
    }
    stage_.resize(size_t(bins_) * kernels_.lanes);
    for (int32_t i = 0; i < channels; i += kernels_.lanes) {
      const int32_t n = std::min(kernels_.lanes, channels - i);
      kernels_.unpack(buffer.data + i, buffer.stride, grid_.planes(stage_.data(), bins_, n));
      stream(to + int64_t(i) * bins_, stage_.data(), sizeof(T) * bins_ * n);
    }
  }

  // Calls pool(to, channel stride, bin row stride), which writes the planes of channels
  // [c, c + channels) of box k. The columns of a bin row are adjacent.
  template <typename Pool>
  void write_planes(int64_t k, int64_t c, int32_t channels, Pool pool) {
    T* to = at(k, c);
    if (!is_staged_) {
      pool(to, output_.channel_stride, output_.row_stride);
      return;
    }
    stage_.resize(size_t(bins_) * channels);
    pool(stage_.data(), int64_t(bins_), int64_t(pooled_width_));
    stream(to, stage_.data(), sizeof(T) * stage_.size());
  }

 private:
  static constexpr int64_t kLargestStage = 256 << 10;  // bytes that stay in the cache

  const Kernels<T>& kernels_ = kernels<T>();
  const PooledTensor& output_;
  const int32_t bins_;
  const int32_t pooled_width_;
  const PlaneGrid grid_;
  const bool is_large_;
  const bool is_staged_;  // planes are collected in stage_, then streamed
  std::vector<acc_t> buffer_;
  std::vector<T> stage_;
};

}  // namespace shape_roi_align::cpu
