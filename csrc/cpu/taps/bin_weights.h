// The weight of each pixel in each bin (paper eq. 4): the merged weights of the samples.
//
// Neighbouring samples read the same pixels. Their weights are added up once per box, so the work
// per channel is proportional to the number of pixels instead of samples.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/taps/axis_taps.h"
#include "cpu/taps/prob_map_rows.h"

namespace shape_roi_align::cpu {

// The weights of one box, one bin row at a time.
template <typename T>
class BinWeights {
 public:
  // Reused by later boxes to save allocations.
  struct Memory {
    std::vector<T> prob_map_row;
    std::vector<T> sample_row_weights;
    std::vector<T> bin_row_weights;
  };

  // prob_map: [prob_map_height, prob_map_width] of the box, or null for p = 1. All arguments must
  // outlive this object.
  BinWeights(const BoxAxes<T>& axes, const T* prob_map, int32_t prob_map_width, Memory& memory)
      : axes_(axes),
        memory_(memory),
        prob_map_rows_(prob_map, prob_map_width, axes.x, memory.prob_map_row) {
    if (prob_map_rows_.exist()) {
      memory_.sample_row_weights.assign(axes_.x.num_entries(), T(0));
    } else {  // the weights of all sample rows are the same
      add_entry_weights(axes_.x, axes_.share, memory_.sample_row_weights);
    }
  }

  // [touched rows of bin row ph][entries of x], valid until the next call. wanted: a range of
  // indices into y.touched. Only the rows in this range are complete.
  const T* of_bin_row(int32_t ph, Range<int32_t> wanted) {
    const AxisTaps<T>& y = axes_.y;
    const Range<int32_t> span = y.bin_span[ph];
    const int32_t entries = axes_.x.num_entries();
    memory_.bin_row_weights.assign(size_t(span.end - span.begin) * entries, T(0));
    T* weights = memory_.bin_row_weights.data();
    for (int32_t iy = y.sample_begin[ph]; iy < y.sample_begin[ph + 1]; ++iy) {
      const AxisSample<T>& sample = y.samples[iy];
      if (sample.high_index < wanted.begin || sample.low_index >= wanted.end) {
        continue;
      }
      if (prob_map_rows_.exist()) {
        weigh_sample_row(prob_map_rows_.between(sample.prob_map));
      }
      add_sample_row(
          sample.pixels.low_weight, weights + int64_t(sample.low_index - span.begin) * entries);
      add_sample_row(
          sample.pixels.high_weight, weights + int64_t(sample.high_index - span.begin) * entries);
    }
    return weights;
  }

  // The same, with all touched rows complete.
  const T* of_bin_row(int32_t ph) {
    return of_bin_row(ph, axes_.y.bin_span[ph]);
  }

 private:
  const BoxAxes<T>& axes_;
  Memory& memory_;
  const ProbMapRows<T> prob_map_rows_;

  void weigh_sample_row(const ProbMapRow<T>& prob_map_row) {
    std::vector<T>& weights = memory_.sample_row_weights;
    std::fill(weights.begin(), weights.end(), T(0));
    for (const AxisSample<T>& sample : axes_.x.samples) {
      const T w = axes_.share * prob_map_row.at(sample.prob_map);
      weights[sample.low_entry] += w * sample.pixels.low_weight;
      weights[sample.high_entry] += w * sample.pixels.high_weight;
    }
  }

  void add_sample_row(T scale, T* to) const {
    const T* from = memory_.sample_row_weights.data();
    const size_t entries = memory_.sample_row_weights.size();
    for (size_t i = 0; i < entries; ++i) {
      to[i] += scale * from[i];
    }
  }
};

}  // namespace shape_roi_align::cpu
