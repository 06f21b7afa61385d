// One box's samples merged into taps: the sparse matrix that maps the feature pixels under a box to
// its bins.  Neighbouring samples read the same pixels. Their weights are added up once per box, so
// that each channel pays for pixels, not samples. T is the coordinate type. No torch include: the
// Python module shows the same taps as NumPy arrays.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../geometry.h"

namespace shape_roi_align::cpu {

// A sample that reads the map; low and high are slots of AxisTaps::cells.
template <typename T>
struct AxisSample {
  int32_t low;
  int32_t high;
  T low_weight;
  T high_weight;
  T slope;
  T place;
  Interpolation<T> map;
};

// The samples of one box along one axis and the feature rows (or columns) they touch.
template <typename T>
struct AxisTaps {
  std::vector<int32_t> cells;             // touched rows or columns, ascending
  std::vector<AxisSample<T>> samples;     // of all bins, those outside the map left out
  std::vector<int32_t> sample_begin;      // [bins + 1]
  std::vector<Range<int32_t>> bin_slots;  // [bins]: the span of slots each bin touches

  // size: height or width of the feature map. map_size: cells of the probability map along this
  // axis, 0 without a map.
  void build(const Axis<T>& axis, int32_t size, int32_t map_size, bool map_aligned) {
    samples.clear();
    sample_begin.assign(1, 0);
    bin_slots.assign(axis.bins, {0, 0});
    int32_t first = size;
    int32_t last = -1;
    for (int32_t bin = 0; bin < axis.bins; ++bin) {
      const Range<int32_t> visible = visible_samples(axis, bin, size);
      for (int32_t i = visible.begin; i < visible.end; ++i) {
        const T coordinate = sample_coordinate(axis, bin, i);
        if (!is_inside(coordinate, size)) {
          continue;
        }
        const Interpolation<T> f = interpolate(coordinate, size);
        const T place = sample_place(axis, bin, i);
        const Interpolation<T> p =
            map_size > 0 ? interpolate_map(place, map_size, map_aligned) : Interpolation<T>{};
        samples.push_back({f.low, f.high, f.low_weight, f.high_weight, f.slope, place, p});
        first = std::min(first, f.low);
        last = std::max(last, f.high);
      }
      sample_begin.push_back(static_cast<int32_t>(samples.size()));
    }
    number_cells(first, last);
  }

 private:
  std::vector<int32_t> slot_of_;

  void number_cells(int32_t first, int32_t last) {
    cells.clear();
    slot_of_.assign(std::max(last - first + 1, 0), -1);
    for (const AxisSample<T>& sample : samples) {
      slot_of_[sample.low - first] = slot_of_[sample.high - first] = 0;
    }
    for (int32_t cell = first; cell <= last; ++cell) {
      if (slot_of_[cell - first] == 0) {
        slot_of_[cell - first] = static_cast<int32_t>(cells.size());
        cells.push_back(cell);
      }
    }
    for (size_t bin = 0; bin < bin_slots.size(); ++bin) {
      Range<int32_t>& slots = bin_slots[bin];
      slots = {static_cast<int32_t>(cells.size()), 0};
      for (int32_t s = sample_begin[bin]; s < sample_begin[bin + 1]; ++s) {
        AxisSample<T>& sample = samples[s];
        sample.low = slot_of_[sample.low - first];
        sample.high = slot_of_[sample.high - first];
        slots.begin = std::min(slots.begin, sample.low);
        slots.end = std::max(slots.end, sample.high + 1);
      }
      slots.begin = std::min(slots.begin, slots.end);
    }
  }
};

template <typename T>
T sample_map(const T* map, int32_t width, const Interpolation<T>& y, const Interpolation<T>& x) {
  const T* low = map + int64_t(y.low) * width;
  const T* high = map + int64_t(y.high) * width;
  return y.low_weight * (x.low_weight * low[x.low] + x.high_weight * low[x.high]) +
         y.high_weight * (x.low_weight * high[x.low] + x.high_weight * high[x.high]);
}

// The taps of bin b are [bin_begin[b], bin_begin[b + 1]): a dense grid over the bin's row slots x
// column slots, rows first.
template <typename T, typename weight_t>
struct BoxTaps {
  AxisTaps<T> y;
  AxisTaps<T> x;
  T inverse_count = 0;
  std::vector<int32_t> bin_begin;  // [PH * PW + 1]
  std::vector<int64_t> offset;     // of each tap: row_offset[row slot] + column_offset[column slot]
  std::vector<weight_t> weight;

  // map_height, map_width: of the probability map, 0 without.
  void build_axes(
      const BoxGeometry<T>& geometry, int32_t height, int32_t width, int32_t map_height,
      int32_t map_width, bool map_aligned) {
    inverse_count = geometry.inverse_count;
    y.build(geometry.y, height, map_height, map_aligned);
    x.build(geometry.x, width, map_width, map_aligned);
  }

  int64_t num_pixels() const {
    return int64_t(y.cells.size()) * int64_t(x.cells.size());
  }

  // Pixels of all bins, each counted for every bin that it is in.
  int64_t num_taps() const {
    return num_slots(y.bin_slots) * num_slots(x.bin_slots);
  }

  // Fills bin_begin, offset and weight. map: [map_height, map_width] of this box, or null.
  void build_taps(
      const T* map, int32_t map_width, const int64_t* row_offset, const int64_t* column_offset) {
    const size_t num_taps = static_cast<size_t>(this->num_taps());
    bin_begin.resize(y.bin_slots.size() * x.bin_slots.size() + 1);
    offset.resize(num_taps);
    weight.resize(num_taps);
    std::vector<T>& weights = weights_to_fill();
    weights.assign(num_taps, T(0));
    int32_t bin = 0;
    int32_t tap = 0;
    bin_begin[0] = 0;
    for (int32_t ph = 0; ph < static_cast<int32_t>(y.bin_slots.size()); ++ph) {
      const Range<int32_t> rows = y.bin_slots[ph];
      for (int32_t pw = 0; pw < static_cast<int32_t>(x.bin_slots.size()); ++pw) {
        const Range<int32_t> columns = x.bin_slots[pw];
        add_weights(ph, pw, rows, map, map_width, weights.data() + tap);
        for (int32_t row = rows.begin; row < rows.end; ++row) {
          for (int32_t column = columns.begin; column < columns.end; ++column) {
            offset[tap++] = row_offset[row] + column_offset[column];
          }
        }
        bin_begin[++bin] = tap;
      }
    }
    if constexpr (!std::is_same_v<T, weight_t>) {
      std::transform(
          weights.begin(), weights.end(), weight.begin(), [](T w) { return weight_t(w); });
    }
  }

  // grid[row slots x column slots] += the weights of a bin; complete in the row slots `wanted`.
  void add_weights(
      int32_t ph, int32_t pw, Range<int32_t> wanted, const T* map, int32_t map_width,
      T* grid) const {
    const Range<int32_t> rows = y.bin_slots[ph];
    const Range<int32_t> columns = x.bin_slots[pw];
    const int64_t num_columns = columns.end - columns.begin;
    for (int32_t iy = y.sample_begin[ph]; iy < y.sample_begin[ph + 1]; ++iy) {
      const AxisSample<T>& sy = y.samples[iy];
      if (sy.high < wanted.begin || sy.low >= wanted.end) {
        continue;
      }
      T* low = grid + (sy.low - rows.begin) * num_columns - columns.begin;
      T* high = grid + (sy.high - rows.begin) * num_columns - columns.begin;
      for (int32_t ix = x.sample_begin[pw]; ix < x.sample_begin[pw + 1]; ++ix) {
        const AxisSample<T>& sx = x.samples[ix];
        const T w = map == nullptr ? inverse_count
                                   : inverse_count * sample_map(map, map_width, sy.map, sx.map);
        low[sx.low] += w * sy.low_weight * sx.low_weight;
        low[sx.high] += w * sy.low_weight * sx.high_weight;
        high[sx.low] += w * sy.high_weight * sx.low_weight;
        high[sx.high] += w * sy.high_weight * sx.high_weight;
      }
    }
  }

 private:
  std::vector<T> weights_;

  std::vector<T>& weights_to_fill() {
    if constexpr (std::is_same_v<T, weight_t>) {
      return weight;
    } else {
      return weights_;
    }
  }

  static int64_t num_slots(const std::vector<Range<int32_t>>& bin_slots) {
    int64_t sum = 0;
    for (const Range<int32_t>& slots : bin_slots) {
      sum += slots.end - slots.begin;
    }
    return sum;
  }
};

}  // namespace shape_roi_align::cpu
