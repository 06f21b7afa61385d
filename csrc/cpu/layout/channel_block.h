// Channels per block of a loop.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/simd/kernels.h"

namespace shape_roi_align::cpu {

// Channels per block, such that a buffer of `rows` bins or pixels stays in the cache: at least one
// vector, at most `widest`.
template <typename T>
int32_t channel_block(int64_t rows, int64_t channels, int32_t widest) {
  constexpr int64_t kBufferBytes = 2 << 20;
  const int64_t lanes = kernels<T>().lanes;
  const int64_t row_bytes = std::max<int64_t>(rows * sizeof(accumulate_t<T>), 1);
  const int64_t fitting = kBufferBytes / row_bytes / lanes * lanes;
  const int64_t whole = round_up(channels, lanes);
  return static_cast<int32_t>(
      std::min<int64_t>(whole, std::clamp<int64_t>(fitting, lanes, widest)));
}

// Calls f(first channel, channels) for blocks of `block` channels from `begin` on.
template <typename F>
void for_each_block(int64_t begin, int64_t channels, int32_t block, F f) {
  const int64_t end = begin + channels;
  for (int64_t c = begin; c < end; c += block) {
    f(c, static_cast<int32_t>(std::min<int64_t>(block, end - c)));
  }
}

}  // namespace shape_roi_align::cpu
