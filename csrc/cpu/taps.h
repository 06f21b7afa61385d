// One box's samples merged into taps: the sparse matrix that maps the feature pixels under a box to
// its bins.  Neighbouring samples read the same pixels. Their weights are added up once per box, so
// that each channel pays for pixels, not samples. T is the coordinate type. No torch include: the
// Python module shows the same taps as NumPy arrays.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "geometry.h"

namespace shape_roi_align::cpu {

// A sample that reads the map; low and high are slots of AxisTaps::cells.
template <typename T>
struct AxisSample {
  int32_t low;
  int32_t high;
  int32_t low_entry;  // of AxisTaps::entry_begin
  int32_t high_entry;
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
  std::vector<int32_t> entry_begin;       // [bins + 1]: those spans laid end to end

  int32_t num_entries() const {
    return entry_begin.back();
  }

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
        samples.push_back({f.low, f.high, 0, 0, f.low_weight, f.high_weight, f.slope, place, p});
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
    entry_begin.assign(1, 0);
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
      const int32_t to_entry = entry_begin.back() - slots.begin;
      for (int32_t s = sample_begin[bin]; s < sample_begin[bin + 1]; ++s) {
        samples[s].low_entry = samples[s].low + to_entry;
        samples[s].high_entry = samples[s].high + to_entry;
      }
      entry_begin.push_back(slots.end + to_entry);
    }
  }
};

// What the samples of one row see of the probability map: bilinear, first between two rows of the
// map, then between columns.
template <typename T>
class MapRow {
 public:
  // map: [map_height, map_width] of a box.
  void start(const T* map, int32_t map_width, const AxisTaps<T>& x) {
    map_ = map;
    width_ = map_width;
    Range<int32_t> cells{map_width, 0};
    for (const AxisSample<T>& sample : x.samples) {
      cells.begin = std::min(cells.begin, sample.map.low);
      cells.end = std::max(cells.end, sample.map.high + 1);
    }
    cells_ = cells;
    row_.resize(map_width);
  }

  void set(const Interpolation<T>& y) {
    const T* low = map_ + int64_t(y.low) * width_;
    const T* high = map_ + int64_t(y.high) * width_;
    for (int32_t cell = cells_.begin; cell < cells_.end; ++cell) {
      row_[cell] = y.low_weight * low[cell] + y.high_weight * high[cell];
    }
  }

  T operator()(const Interpolation<T>& x) const {
    return x.low_weight * row_[x.low] + x.high_weight * row_[x.high];
  }

 private:
  const T* map_ = nullptr;
  int32_t width_ = 0;
  Range<int32_t> cells_{0, 0};
  std::vector<T> row_;
};

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
    return int64_t(y.num_entries()) * x.num_entries();
  }

  // Fills bin_begin, offset and weight. map: [map_height, map_width] of this box, or null.
  void build_taps(
      const T* map, int32_t map_width, const int64_t* row_offset, const int64_t* column_offset) {
    const size_t num_taps = static_cast<size_t>(this->num_taps());
    bin_begin.resize(y.bin_slots.size() * x.bin_slots.size() + 1);
    offset.resize(num_taps);
    weight.resize(num_taps);
    start_weights(map, map_width);
    int32_t bin = 0;
    int32_t tap = 0;
    bin_begin[0] = 0;
    for (int32_t ph = 0; ph < static_cast<int32_t>(y.bin_slots.size()); ++ph) {
      const Range<int32_t> rows = y.bin_slots[ph];
      const T* weights = weights_of_row(ph, rows);
      for (size_t pw = 0; pw < x.bin_slots.size(); ++pw) {
        const Range<int32_t> columns = x.bin_slots[pw];
        const T* from = weights + x.entry_begin[pw];
        for (int32_t row = rows.begin; row < rows.end; ++row, from += x.num_entries()) {
          for (int32_t i = 0; i < columns.end - columns.begin; ++i, ++tap) {
            offset[tap] = row_offset[row] + column_offset[columns.begin + i];
            weight[tap] = static_cast<weight_t>(from[i]);
          }
        }
        bin_begin[++bin] = tap;
      }
    }
  }

  // Before weights_of_row. map: as in build_taps.
  void start_weights(const T* map, int32_t map_width) {
    has_map_ = map != nullptr;
    along_x_.assign(x.num_entries(), T(0));
    if (has_map_) {
      map_row_.start(map, map_width, x);
    } else {
      for (const AxisSample<T>& sample : x.samples) {
        along_x_[sample.low_entry] += inverse_count * sample.low_weight;
        along_x_[sample.high_entry] += inverse_count * sample.high_weight;
      }
    }
  }

  // [row slots of ph][x entries]: the weights of a row of bins, complete in the row slots `wanted`.
  const T* weights_of_row(int32_t ph, Range<int32_t> wanted) {
    const Range<int32_t> rows = y.bin_slots[ph];
    const int32_t entries = x.num_entries();
    weights_.assign(size_t(rows.end - rows.begin) * entries, T(0));
    for (int32_t iy = y.sample_begin[ph]; iy < y.sample_begin[ph + 1]; ++iy) {
      const AxisSample<T>& sample = y.samples[iy];
      if (sample.high < wanted.begin || sample.low >= wanted.end) {
        continue;
      }
      if (has_map_) {
        weigh_along_x(sample.map);
      }
      add_scaled(sample.low_weight, weights_.data() + int64_t(sample.low - rows.begin) * entries);
      add_scaled(sample.high_weight, weights_.data() + int64_t(sample.high - rows.begin) * entries);
    }
    return weights_.data();
  }

 private:
  bool has_map_ = false;
  MapRow<T> map_row_;
  std::vector<T> along_x_;  // [x entries]: weights of one row of samples
  std::vector<T> weights_;

  void weigh_along_x(const Interpolation<T>& map_y) {
    map_row_.set(map_y);
    std::fill(along_x_.begin(), along_x_.end(), T(0));
    for (const AxisSample<T>& sample : x.samples) {
      const T w = inverse_count * map_row_(sample.map);
      along_x_[sample.low_entry] += w * sample.low_weight;
      along_x_[sample.high_entry] += w * sample.high_weight;
    }
  }

  void add_scaled(T scale, T* to) const {
    const T* from = along_x_.data();
    for (size_t i = 0; i < along_x_.size(); ++i) {
      to[i] += scale * from[i];
    }
  }
};

}  // namespace shape_roi_align::cpu
