// Taps whose results are in the lanes of vectors, along a row of bins, samples or pixels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/simd/kernels.h"

namespace shape_roi_align::cpu {

// The source and the result of one tap; with interleaved channels, those of channel 0.
template <typename acc_t>
struct LaneTap {
  int32_t result;
  int32_t source;
  acc_t weight;
};

// How a tap of channel 0 is repeated for `count` channels: a step of 1 for adjacent channels, a
// step of 0 if all channels share one element.
struct ChannelRepeat {
  int32_t count;
  int32_t result_step;
  int32_t source_step;
};

template <typename acc_t>
class LaneTapsTable {
 public:
  // taps: in any order; the taps of a result are added in the given order. results, sources: counts
  // over all channels. is_transposed: swaps the results and sources of `taps`, but not of
  // `channels`.
  void assign(
      const std::vector<LaneTap<acc_t>>& taps, int32_t results, int32_t sources,
      const ChannelRepeat& channels, bool is_transposed, int32_t lanes) {
    vectors_ = (results + lanes - 1) / lanes;
    const size_t num_lanes = size_t(vectors_) * lanes;
    count_.assign(num_lanes, 0);
    const auto for_each = [&](auto f) {
      for (const LaneTap<acc_t>& tap : taps) {
        const int32_t result = is_transposed ? tap.source : tap.result;
        const int32_t source = is_transposed ? tap.result : tap.source;
        for (int32_t c = 0; c < channels.count; ++c) {
          f(result + c * channels.result_step, source + c * channels.source_step, tap.weight);
        }
      }
    };
    for_each([&](int32_t result, int32_t, acc_t) { ++count_[result]; });
    parts_ = count_.empty() ? 0 : *std::max_element(count_.begin(), count_.end());
    is_complete_ = std::all_of(
        count_.begin(), count_.begin() + results, [&](int32_t n) { return n == parts_; });
    index_.assign(num_lanes * parts_, is_complete_ ? 0 : -1);
    weight_.assign(num_lanes * parts_, acc_t(0));
    std::fill(count_.begin(), count_.end(), 0);
    for_each([&](int32_t result, int32_t source, acc_t weight) {
      const size_t at =
          (size_t(result / lanes) * parts_ + count_[result]++) * lanes + result % lanes;
      index_[at] = source;
      weight_[at] = weight;
    });
    place_windows(sources, lanes);
  }

  // Valid until the next assign().
  LaneTaps<acc_t> view() const {
    return {vectors_, parts_, window_, is_complete_, start_.data(), index_.data(), weight_.data()};
  }

 private:
  int32_t vectors_ = 0;
  int32_t parts_ = 0;
  int32_t window_ = 1;
  bool is_complete_ = false;
  std::vector<int32_t> start_;
  std::vector<int32_t> index_;
  std::vector<acc_t> weight_;
  std::vector<int32_t> count_;

  // Calls f(index) for the taps of a result vector.
  template <typename F>
  void for_each_tap(int32_t v, int32_t lanes, F f) {
    int32_t* index = index_.data() + size_t(v) * parts_ * lanes;
    const int32_t* count = count_.data() + size_t(v) * lanes;
    for (int32_t part = 0; part < parts_; ++part, index += lanes) {
      for (int32_t i = 0; i < lanes; ++i) {
        if (part < count[i]) {
          f(index[i]);
        }
      }
    }
  }

  void place_windows(int32_t sources, int32_t lanes) {
    start_.assign(vectors_, 0);
    int32_t widest = 1;
    for (int32_t v = 0; v < vectors_; ++v) {
      int32_t first = std::numeric_limits<int32_t>::max();
      int32_t last = -1;
      for_each_tap(v, lanes, [&](int32_t index) {
        first = std::min(first, index);
        last = std::max(last, index);
      });
      if (last >= 0) {
        // Aligned to vectors, so that loads of just-stored vectors use store-to-load forwarding.
        start_[v] = first / lanes * lanes;
        widest = std::max(widest, last - start_[v] + 1);
      }
    }
    window_ = widest <= lanes ? 1 : widest <= 2 * lanes ? 2 : widest <= 4 * lanes ? 4 : 0;
    for (int32_t v = 0; v < vectors_; ++v) {
      if (sources <= window_ * lanes) {
        start_[v] = 0;
      } else if (start_[v] > 0) {
        for_each_tap(v, lanes, [&](int32_t& index) { index -= start_[v]; });
      }
    }
  }
};

}  // namespace shape_roi_align::cpu
