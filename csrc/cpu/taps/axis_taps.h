// The samples of one box along one axis and the feature rows, or columns, that they touch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "geometry.h"

namespace shape_roi_align::cpu {

// A sample inside the feature map. `low` and `high` are the two pixel rows (or columns) that it
// reads.
template <typename T>
struct AxisSample {
  Interpolation<T> pixels;
  int32_t low_index;   // into AxisTaps::touched
  int32_t high_index;  //
  int32_t low_entry;   // numbered as in AxisTaps::entry_begin
  int32_t high_entry;  //
  T uv;                // u along x, v along y
  Interpolation<T> prob_map;
};

// An entry is a pair of a bin and a row (or column) in its span. Entries are numbered bin by bin.
// Empty until the first assign().
template <typename T>
class AxisTaps {
 public:
  std::vector<int32_t> touched;          // rows or columns of the feature map, ascending
  std::vector<AxisSample<T>> samples;    // of all bins; only samples inside the feature map
  std::vector<int32_t> sample_begin;     // [bins + 1]
  std::vector<Range<int32_t>> bin_span;  // [bins]: indices into `touched`
  std::vector<int32_t> entry_begin;      // [bins + 1]

  int32_t num_bins() const {
    return static_cast<int32_t>(bin_span.size());
  }
  int32_t num_entries() const {
    return entry_begin.empty() ? 0 : entry_begin.back();
  }

  // size: height or width of the feature map. prob_map_size: cells of the probability map along
  // this axis, 0 without one.
  void assign(const Axis<T>& axis, int32_t size, int32_t prob_map_size, bool map_aligned) {
    samples.clear();
    sample_begin.resize(axis.bins + 1);
    sample_begin[0] = 0;
    Range<int32_t> reach{size, 0};
    // Precomputes the divisions, because all bins share the results.
    constexpr int32_t kTabled = 8;
    T in_bin[kTabled];
    for (int32_t i = 0; i < std::min(axis.samples, kTabled); ++i) {
      in_bin[i] = sample_in_bin(axis, i);
    }
    for (int32_t bin = 0; bin < axis.bins; ++bin) {
      const Range<int32_t> visible = visible_samples(axis, bin, size);
      const T start = bin_start(axis, bin);
      for (int32_t i = visible.begin; i < visible.end; ++i) {
        const T coordinate = start + (i < kTabled ? in_bin[i] : sample_in_bin(axis, i));
        if (!is_inside(coordinate, size)) {
          continue;
        }
        const Interpolation<T> pixels = interpolate(coordinate, size);
        const T uv = sample_uv(axis, bin, i);
        const Interpolation<T> prob_map = prob_map_size > 0
                                              ? interpolate_prob_map(uv, prob_map_size, map_aligned)
                                              : Interpolation<T>{};
        samples.push_back({pixels, 0, 0, 0, 0, uv, prob_map});
        reach.begin = std::min(reach.begin, pixels.low);
        reach.end = std::max(reach.end, pixels.high + 1);
      }
      sample_begin[bin + 1] = static_cast<int32_t>(samples.size());
    }
    list_touched(reach);
    number_entries(axis.bins, reach.begin);
  }

 private:
  std::vector<int32_t> index_of_;  // into `touched`, of each row or column of the reach

  void list_touched(Range<int32_t> reach) {
    constexpr int32_t kUntouched = -1;
    touched.clear();
    index_of_.assign(std::max(reach.end - reach.begin, 0), kUntouched);
    for (const AxisSample<T>& sample : samples) {
      index_of_[sample.pixels.low - reach.begin] = 0;
      index_of_[sample.pixels.high - reach.begin] = 0;
    }
    for (int32_t i = 0; i < static_cast<int32_t>(index_of_.size()); ++i) {
      if (index_of_[i] != kUntouched) {
        index_of_[i] = static_cast<int32_t>(touched.size());
        touched.push_back(reach.begin + i);
      }
    }
  }

  // first: the first row (or column) of the reach.
  void number_entries(int32_t num_bins, int32_t first) {
    bin_span.resize(num_bins);
    entry_begin.resize(num_bins + 1);
    entry_begin[0] = 0;
    for (int32_t bin = 0; bin < num_bins; ++bin) {
      Range<int32_t> span{static_cast<int32_t>(touched.size()), 0};
      for (int32_t s = sample_begin[bin]; s < sample_begin[bin + 1]; ++s) {
        AxisSample<T>& sample = samples[s];
        sample.low_index = index_of_[sample.pixels.low - first];
        sample.high_index = index_of_[sample.pixels.high - first];
        span.begin = std::min(span.begin, sample.low_index);
        span.end = std::max(span.end, sample.high_index + 1);
      }
      span.begin = std::min(span.begin, span.end);
      const int32_t to_entry = entry_begin[bin] - span.begin;
      for (int32_t s = sample_begin[bin]; s < sample_begin[bin + 1]; ++s) {
        samples[s].low_entry = samples[s].low_index + to_entry;
        samples[s].high_entry = samples[s].high_index + to_entry;
      }
      bin_span[bin] = span;
      entry_begin[bin + 1] = span.end + to_entry;
    }
  }
};

// The range from the first to the last bin that touches any of the rows (or columns) `touched`, a
// range of indices into axis.touched.
template <typename T>
Range<int32_t> bin_rows_touching(const AxisTaps<T>& axis, Range<int32_t> touched) {
  const auto reaches = [&](int32_t bin) {
    const Range<int32_t> span = axis.bin_span[bin];
    return span.begin < touched.end && touched.begin < span.end;
  };
  Range<int32_t> bins{0, axis.num_bins()};
  while (bins.begin < bins.end && !reaches(bins.begin)) {
    ++bins.begin;
  }
  while (bins.begin < bins.end && !reaches(bins.end - 1)) {
    --bins.end;
  }
  return bins;
}

// weights[entry] = factor * the sum of the weights of the samples at that entry.
template <typename T, typename weight_t>
void add_entry_weights(const AxisTaps<T>& axis, T factor, std::vector<weight_t>& weights) {
  weights.assign(axis.num_entries(), weight_t(0));
  for (const AxisSample<T>& sample : axis.samples) {
    weights[sample.low_entry] += factor * sample.pixels.low_weight;
    weights[sample.high_entry] += factor * sample.pixels.high_weight;
  }
}

// Both axes of one box.
template <typename T>
struct BoxAxes {
  AxisTaps<T> y;
  AxisTaps<T> x;
  T share = 0;  // BoxGeometry::share

  // height, width: of the feature map. prob_map_height, prob_map_width: 0 without probability map.
  void assign(
      const BoxGeometry<T>& geometry, int32_t height, int32_t width, int32_t prob_map_height,
      int32_t prob_map_width, bool map_aligned) {
    share = geometry.share;
    y.assign(geometry.y, height, prob_map_height, map_aligned);
    x.assign(geometry.x, width, prob_map_width, map_aligned);
  }

  bool touches_pixels() const {
    return !y.touched.empty() && !x.touched.empty();
  }
  // Pixels that bins read, summed over bins.
  int64_t num_taps() const {
    return int64_t(y.num_entries()) * x.num_entries();
  }
};

}  // namespace shape_roi_align::cpu
