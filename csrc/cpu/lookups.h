// One box's taps for planes whose columns are innermost, read in place: of each row of pixels a
// few vectors are loaded, and the bins, one in each lane, look their pixels up in them. Nothing is
// transposed; what it costs is a lookup per pixel of a bin. The sums are those of BoxTaps, bit for
// bit: the same products in the same order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/boxes.h"

namespace shape_roi_align::cpu {

inline int32_t row_vectors(int32_t columns, int32_t lanes) {
  return columns <= lanes ? 1 : columns <= 2 * lanes ? 2 : kMaxRowVectors;
}

// Whether boxes that may read this many columns can be pooled by lookups. Bins fill a quarter of
// the lanes at least, so that the weights take no more than some four times the memory of the taps.
template <typename T>
bool can_look_up(const Params& params, const FeatureMap& map, int32_t columns) {
  const Kernels<T>& table = kernels<T>();
  const int32_t bins = params.options.pooled_width;
  return table.pool_planes != nullptr && map.column_stride == 1 && map.width >= table.lanes &&
         bins <= table.lanes && 4 * bins >= table.lanes && columns <= kMaxRowVectors * table.lanes;
}

template <typename coord_t, typename acc_t>
class BoxLookups {
 public:
  // taps: with its axes built. map: as in BoxTaps::build_taps.
  void build(
      BoxTaps<coord_t, acc_t>& taps, const coord_t* map, int32_t map_width,
      const FeatureMap& features, int32_t lanes) {
    lay_out(taps.x, features.width, lanes);
    taps.start_weights(map, map_width);
    const AxisTaps<coord_t>& y = taps.y;
    const int32_t entries = taps.x.num_entries();
    row_offset_.clear();
    step_begin_.assign(1, 0);
    weight_.assign(size_t(y.num_entries()) * parts_ * lanes, acc_t(0));
    acc_t* to = weight_.data();
    for (int32_t ph = 0; ph < static_cast<int32_t>(y.bin_slots.size()); ++ph) {
      const Range<int32_t> rows = y.bin_slots[ph];
      const coord_t* from = taps.weights_of_row(ph, rows);
      for (int32_t slot = rows.begin; slot < rows.end; ++slot) {
        row_offset_.push_back(y.cells[slot] * features.row_stride);
        for (int32_t entry = 0; entry < entries; ++entry) {
          to[lane_of_entry_[entry]] = static_cast<acc_t>(from[entry]);
        }
        from += entries;
        to += int64_t(parts_) * lanes;
      }
      step_begin_.push_back(static_cast<int32_t>(row_offset_.size()));
    }
  }

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
  std::vector<int32_t> lane_of_entry_;  // of AxisTaps::entry_begin, into [parts][lanes]
  std::vector<int32_t> step_begin_;
  std::vector<int64_t> row_offset_;
  std::vector<acc_t> weight_;  // [steps][parts][lanes]

  // Vectors start one after another, but none beyond the last that the row has room for.
  void lay_out(const AxisTaps<coord_t>& x, int32_t width, int32_t lanes) {
    bin_columns_ = static_cast<int32_t>(x.bin_slots.size());
    parts_ = 1;
    for (const Range<int32_t>& slots : x.bin_slots) {
      parts_ = std::max(parts_, slots.end - slots.begin);
    }
    const int32_t first = x.cells.empty() ? 0 : x.cells.front();
    vectors_ = row_vectors(x.cells.empty() ? 1 : x.cells.back() - first + 1, lanes);
    for (int32_t v = 0; v < kMaxRowVectors; ++v) {
      starts_[v] = std::min(first + v * lanes, width - lanes);
    }
    index_.assign(size_t(parts_) * lanes, -1);
    lane_of_entry_.resize(x.num_entries());
    for (int32_t pw = 0; pw < bin_columns_; ++pw) {
      const Range<int32_t> slots = x.bin_slots[pw];
      for (int32_t part = 0; part < slots.end - slots.begin; ++part) {
        const int32_t lane = part * lanes + pw;
        const int32_t column = x.cells[slots.begin + part];
        const int32_t v = (column - first) / lanes;
        index_[lane] = v * lanes + column - starts_[v];
        lane_of_entry_[x.entry_begin[pw] + part] = lane;
      }
    }
  }
};

}  // namespace shape_roi_align::cpu
