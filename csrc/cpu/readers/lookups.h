// The weights of one box in the layout of the kernels with bins in the lanes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/simd/kernels.h"
#include "cpu/taps/axis_taps.h"
#include "cpu/taps/bin_weights.h"
#include "params.h"

namespace shape_roi_align::cpu {

template <typename coord_t, typename acc_t>
class BoxLookups {
 public:
  // weights: of the same axes.
  void assign(
      const BoxAxes<coord_t>& axes, BinWeights<coord_t>& weights, const FeatureMap& feature_map,
      int32_t lanes) {
    lay_out(axes.x, feature_map.width, lanes);
    const AxisTaps<coord_t>& y = axes.y;
    const int32_t entries = axes.x.num_entries();
    row_offset_.clear();
    step_begin_.assign(1, 0);
    weight_.assign(size_t(y.num_entries()) * parts_ * lanes, acc_t(0));
    acc_t* to = weight_.data();
    for (int32_t ph = 0; ph < y.num_bins(); ++ph) {
      const Range<int32_t> span = y.bin_span[ph];
      const coord_t* from = weights.of_bin_row(ph);
      for (int32_t row = span.begin; row < span.end; ++row) {
        row_offset_.push_back(y.touched[row] * feature_map.row_stride);
        for (int32_t entry = 0; entry < entries; ++entry) {
          to[lane_of_entry_[entry]] = static_cast<acc_t>(from[entry]);
        }
        from += entries;
        to += int64_t(parts_) * lanes;
      }
      step_begin_.push_back(static_cast<int32_t>(row_offset_.size()));
    }
  }

  // Valid until the next assign().
  Lookups<acc_t> view() const {
    Lookups<acc_t> lookups;
    lookups.vectors = vectors_;
    std::copy(starts_, starts_ + kMaxRowVectors, lookups.starts);
    lookups.parts = parts_;
    lookups.index = index_.data();
    lookups.bin_rows = static_cast<int32_t>(step_begin_.size()) - 1;
    lookups.bin_columns = bin_columns_;
    lookups.step_begin = step_begin_.data();
    lookups.row_offset = row_offset_.data();
    lookups.weight = weight_.data();
    return lookups;
  }

 private:
  int32_t vectors_ = 1;
  int32_t starts_[kMaxRowVectors] = {};
  int32_t parts_ = 1;
  int32_t bin_columns_ = 0;
  std::vector<int32_t> index_;          // [parts][lanes]
  std::vector<int32_t> lane_of_entry_;  // [entries of x]: into [parts][lanes]
  std::vector<int32_t> step_begin_;     // [bin rows + 1]
  std::vector<int64_t> row_offset_;     // [steps]
  std::vector<acc_t> weight_;           // [steps][parts][lanes]

  // Vectors are consecutive; the last ones are shifted left to stay inside the pixel row.
  void lay_out(const AxisTaps<coord_t>& x, int32_t width, int32_t lanes) {
    bin_columns_ = x.num_bins();
    parts_ = 1;
    for (const Range<int32_t>& span : x.bin_span) {
      parts_ = std::max(parts_, span.end - span.begin);
    }
    const int32_t first = x.touched.empty() ? 0 : x.touched.front();
    const int32_t columns = x.touched.empty() ? 1 : x.touched.back() - first + 1;
    vectors_ = columns <= lanes ? 1 : columns <= 2 * lanes ? 2 : kMaxRowVectors;
    for (int32_t v = 0; v < kMaxRowVectors; ++v) {
      starts_[v] = std::min(first + v * lanes, width - lanes);
    }
    index_.assign(size_t(parts_) * lanes, -1);
    lane_of_entry_.resize(x.num_entries());
    for (int32_t pw = 0; pw < bin_columns_; ++pw) {
      const Range<int32_t> span = x.bin_span[pw];
      for (int32_t part = 0; part < span.end - span.begin; ++part) {
        const int32_t lane = part * lanes + pw;
        const int32_t column = x.touched[span.begin + part];
        const int32_t v = (column - first) / lanes;
        index_[lane] = v * lanes + column - starts_[v];
        lane_of_entry_[x.entry_begin[pw] + part] = lane;
      }
    }
  }
};

}  // namespace shape_roi_align::cpu
