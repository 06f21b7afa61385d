// The probability map of one box at its sample rows: interpolated between two map rows first, then
// between two columns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/taps/axis_taps.h"

namespace shape_roi_align::cpu {

// The map at the v of one sample row.
template <typename T>
struct ProbMapRow {
  const T* cells;  // [prob_map_width]; only cells that samples read are set

  T at(const Interpolation<T>& x) const {
    return x.low_weight * cells[x.low] + x.high_weight * cells[x.high];
  }
};

template <typename T>
class ProbMapRows {
 public:
  // prob_map: [prob_map_height, prob_map_width] of the box, or null if there is none. x: of the
  // same box. cells: memory for one row; must outlive this object.
  ProbMapRows(
      const T* prob_map, int32_t prob_map_width, const AxisTaps<T>& x, std::vector<T>& cells)
      : prob_map_(prob_map), width_(prob_map_width), cells_(cells) {
    if (prob_map == nullptr) {
      return;
    }
    read_ = {width_, 0};
    for (const AxisSample<T>& sample : x.samples) {
      read_.begin = std::min(read_.begin, sample.prob_map.low);
      read_.end = std::max(read_.end, sample.prob_map.high + 1);
    }
    cells_.resize(width_);
  }

  bool exist() const {
    return prob_map_ != nullptr;
  }

  // prob_map must not be null. Valid until the next call.
  ProbMapRow<T> between(const Interpolation<T>& y) const {
    const T* low = prob_map_ + int64_t(y.low) * width_;
    const T* high = prob_map_ + int64_t(y.high) * width_;
    T* to = cells_.data();
    for (int32_t cell = read_.begin; cell < read_.end; ++cell) {
      to[cell] = y.low_weight * low[cell] + y.high_weight * high[cell];
    }
    return {to};
  }

 private:
  const T* prob_map_;
  int32_t width_;
  std::vector<T>& cells_;
  Range<int32_t> read_{0, 0};  // cells that samples read
};

}  // namespace shape_roi_align::cpu
