// The taps of one box for few channels: rows first, then columns.
//
// Without a probability map, the weight of a pixel in a bin is the product of a row weight and a
// column weight. The weighted pixel rows of a bin row are added up first; the bins then gather
// their columns from the sum. With a map, each sample row is treated like a bin row: the results
// are samples, which the map then weights. SIMD lanes run along the row; interleaved channels are
// adjacent in the row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/boxes/box_arguments.h"
#include "cpu/simd/kernels.h"
#include "cpu/taps/lane_taps.h"

namespace shape_roi_align::cpu {

template <typename acc_t, typename coord_t>
class BoxRowTaps {
 public:
  // interleaved: number of adjacent channels, in pixels and in results. by_samples: whether results
  // are samples instead of bins.
  void assign(
      const Params& params, const Box<coord_t>& box, int32_t interleaved, bool by_samples,
      int32_t lanes) {
    assign_axes(params, box, axes_);
    const AxisTaps<coord_t>& x = axes_.x;
    interleaved_ = interleaved;
    lanes_ = lanes;
    results_ = by_samples ? static_cast<int32_t>(x.samples.size()) : x.num_bins();
    first_column_ = x.touched.empty() ? 0 : x.touched.front();
    columns_ = x.touched.empty() ? 0 : x.touched.back() - first_column_ + 1;
    if (by_samples) {
      list_samples();
    } else {
      list_bins();
    }
  }

  const BoxAxes<coord_t>& axes() const {
    return axes_;
  }
  int32_t first_column() const {
    return first_column_;
  }
  // Elements of a pixel row from the first to the last column that samples read, all interleaved
  // channels included.
  int32_t elements() const {
    return columns_ * interleaved_;
  }

  // Results (bins or samples) per row, all interleaved channels included.
  int32_t results() const {
    return results_ * interleaved_;
  }
  // Lanes of a row of results, and of a bin row, rounded up to whole vectors.
  int32_t lanes() const {
    return static_cast<int32_t>(round_up(results_ * interleaved_, lanes_));
  }
  int32_t bin_lanes() const {
    return static_cast<int32_t>(round_up(axes_.x.num_bins() * interleaved_, lanes_));
  }

  // Taps from the elements of a pixel row to its results, and transposed.
  void assign_columns(LaneTapsTable<acc_t>& table) const {
    table.assign(column_taps_, results(), elements(), {interleaved_, 1, 1}, false, lanes_);
  }
  void assign_transposed_columns(LaneTapsTable<acc_t>& table) const {
    table.assign(column_taps_, elements(), results(), {interleaved_, 1, 1}, true, lanes_);
  }

  // The functions below require by_samples.

  // Taps of weight BoxGeometry::share from samples to their bins, and transposed.
  void assign_bins(LaneTapsTable<acc_t>& table) {
    list_bins_of_samples();
    const int32_t bins = axes_.x.num_bins() * interleaved_;
    table.assign(scratch_taps_, bins, results(), {interleaved_, 1, 1}, false, lanes_);
  }
  void assign_transposed_bins(LaneTapsTable<acc_t>& table) {
    list_bins_of_samples();
    const int32_t bins = axes_.x.num_bins() * interleaved_;
    table.assign(scratch_taps_, results(), bins, {interleaved_, 1, 1}, true, lanes_);
  }

  // Taps of d(result)/d(x of its sample).
  void assign_column_slopes(LaneTapsTable<acc_t>& table) {
    std::vector<LaneTap<acc_t>>& taps = scratch_taps_;
    taps.clear();
    for_each_sample([&](const AxisSample<coord_t>& sample, int32_t result) {
      const acc_t slope = static_cast<acc_t>(sample.pixels.slope);
      taps.push_back({result, element_of(sample.pixels.high), slope});
      taps.push_back({result, element_of(sample.pixels.low), -slope});
    });
    table.assign(taps, results(), elements(), {interleaved_, 1, 1}, false, lanes_);
  }

  // Taps from the cells of a map row to the map's values at the samples, and transposed.
  void assign_map_columns(LaneTapsTable<acc_t>& table, int32_t prob_map_width) {
    list_map_cells();
    table.assign(scratch_taps_, results(), prob_map_width, {interleaved_, 1, 0}, false, lanes_);
  }
  void assign_transposed_map_columns(LaneTapsTable<acc_t>& table, int32_t prob_map_width) {
    list_map_cells();
    table.assign(scratch_taps_, prob_map_width, results(), {interleaved_, 0, 1}, true, lanes_);
  }

  // Whether samples are so far apart that they read more pixel rows than there are sample rows.
  bool reads_more_rows_than_samples() const {
    return axes_.y.touched.size() > axes_.y.samples.size();
  }

  // Calls f(sample along x, its lane in channel 0).
  template <typename F>
  void for_each_sample(F f) const {
    int32_t result = 0;
    for (const AxisSample<coord_t>& sample : axes_.x.samples) {
      f(sample, result);
      result += interleaved_;
    }
  }

 private:
  BoxAxes<coord_t> axes_;
  int32_t interleaved_ = 1;
  int32_t lanes_ = 1;
  int32_t results_ = 0;  // of a row, per channel
  int32_t first_column_ = 0;
  int32_t columns_ = 0;
  std::vector<LaneTap<acc_t>> column_taps_;
  std::vector<LaneTap<acc_t>> scratch_taps_;
  std::vector<acc_t> entry_weights_;

  int32_t element_of(int32_t column) const {
    return (column - first_column_) * interleaved_;
  }

  void list_bins() {
    const AxisTaps<coord_t>& x = axes_.x;
    add_entry_weights(x, coord_t(1), entry_weights_);
    column_taps_.clear();
    for (int32_t pw = 0; pw < x.num_bins(); ++pw) {
      for (int32_t i = 0; i < x.bin_span[pw].end - x.bin_span[pw].begin; ++i) {
        column_taps_.push_back(
            {pw * interleaved_, element_of(x.touched[x.bin_span[pw].begin + i]),
             static_cast<acc_t>(entry_weights_[x.entry_begin[pw] + i])});
      }
    }
  }

  void list_samples() {
    column_taps_.clear();
    for_each_sample([&](const AxisSample<coord_t>& sample, int32_t result) {
      column_taps_.push_back(
          {result, element_of(sample.pixels.low), static_cast<acc_t>(sample.pixels.low_weight)});
      column_taps_.push_back(
          {result, element_of(sample.pixels.high), static_cast<acc_t>(sample.pixels.high_weight)});
    });
  }

  void list_bins_of_samples() {
    scratch_taps_.clear();
    const AxisTaps<coord_t>& x = axes_.x;
    for (int32_t pw = 0; pw < x.num_bins(); ++pw) {
      for (int32_t s = x.sample_begin[pw]; s < x.sample_begin[pw + 1]; ++s) {
        scratch_taps_.push_back(
            {pw * interleaved_, s * interleaved_, static_cast<acc_t>(axes_.share)});
      }
    }
  }

  void list_map_cells() {
    scratch_taps_.clear();
    for_each_sample([&](const AxisSample<coord_t>& sample, int32_t result) {
      const Interpolation<coord_t>& cells = sample.prob_map;
      scratch_taps_.push_back({result, cells.low, static_cast<acc_t>(cells.low_weight)});
      scratch_taps_.push_back({result, cells.high, static_cast<acc_t>(cells.high_weight)});
    });
  }
};

// A matrix of one row: the weighted source rows that make up a single row sum.
template <typename acc_t>
class RowInterpolation {
 public:
  explicit RowInterpolation(int64_t offset) : RowInterpolation(1, offset, acc_t(1), 0, acc_t(0)) {}

  // Interpolates between the two pixel rows that a sample row reads.
  template <typename coord_t>
  RowInterpolation(const Interpolation<coord_t>& y, int64_t row_stride)
      : RowInterpolation(
            2, y.low * row_stride, static_cast<acc_t>(y.low_weight), y.high * row_stride,
            static_cast<acc_t>(y.high_weight)) {}

  // The derivative of the interpolation with respect to y.
  template <typename coord_t>
  static RowInterpolation slope(const Interpolation<coord_t>& y, int64_t row_stride) {
    const acc_t slope = static_cast<acc_t>(y.slope);
    return {2, y.low * row_stride, -slope, y.high * row_stride, slope};
  }

  TapMatrix<acc_t> view() const {
    static constexpr int32_t kBegin[][2] = {{0, 1}, {0, 2}};
    return {1, kBegin[count_ - 1], offset_, weight_};
  }

 private:
  int64_t offset_[2];
  acc_t weight_[2];
  int32_t count_;

  RowInterpolation(
      int32_t count, int64_t low_offset, acc_t low_weight, int64_t high_offset, acc_t high_weight)
      : offset_{low_offset, high_offset}, weight_{low_weight, high_weight}, count_(count) {}
};

// The weighted source rows of every row sum, as a TapMatrix.
template <typename acc_t>
class SourceRows {
 public:
  // One matrix row per bin row; its taps are pixel rows. row_stride: of the pixels.
  template <typename coord_t>
  void assign_bins(const BoxAxes<coord_t>& axes, int64_t row_stride) {
    const AxisTaps<coord_t>& y = axes.y;
    add_entry_weights(y, axes.share, entry_weights_);
    begin_.assign(y.entry_begin.begin(), y.entry_begin.end());
    weight_.assign(entry_weights_.begin(), entry_weights_.end());
    offset_.clear();
    for (const Range<int32_t>& span : y.bin_span) {
      for (int32_t row = span.begin; row < span.end; ++row) {
        offset_.push_back(y.touched[row] * row_stride);
      }
    }
  }

  // One matrix row per pixel row in `pixel_rows`; its taps are the bin rows in `bin_rows` that
  // touch it. row_stride: from one bin row to the next. Offsets count from bin row bin_rows.begin.
  template <typename coord_t>
  void assign_pixels(
      const BoxAxes<coord_t>& axes, Range<int32_t> pixel_rows, Range<int32_t> bin_rows,
      int64_t row_stride) {
    const AxisTaps<coord_t>& y = axes.y;
    add_entry_weights(y, axes.share, entry_weights_);
    const int32_t rows = pixel_rows.end - pixel_rows.begin;
    const auto for_each = [&](auto f) {
      for (int32_t ph = bin_rows.begin; ph < bin_rows.end; ++ph) {
        for (int32_t i = 0; i < y.bin_span[ph].end - y.bin_span[ph].begin; ++i) {
          const int32_t row = y.touched[y.bin_span[ph].begin + i] - pixel_rows.begin;
          if (row >= 0 && row < rows) {
            f(row, ph, y.entry_begin[ph] + i);
          }
        }
      }
    };
    begin_.assign(rows + 1, 0);
    for_each([&](int32_t row, int32_t, int32_t) { ++begin_[row + 1]; });
    for (int32_t row = 0; row < rows; ++row) {
      begin_[row + 1] += begin_[row];
    }
    next_.assign(begin_.begin(), begin_.end() - 1);
    offset_.resize(begin_.back());
    weight_.resize(begin_.back());
    for_each([&](int32_t row, int32_t ph, int32_t entry) {
      const int32_t tap = next_[row]++;
      offset_[tap] = (ph - bin_rows.begin) * row_stride;
      weight_[tap] = static_cast<acc_t>(entry_weights_[entry]);
    });
  }

  // Row i is source row i.
  void assign_identity(int32_t rows, int64_t row_stride) {
    begin_.clear();
    offset_.clear();
    for (int32_t row = 0; row < rows; ++row) {
      begin_.push_back(row);
      offset_.push_back(row * row_stride);
    }
    begin_.push_back(rows);
    weight_.assign(rows, acc_t(1));
  }

  TapMatrix<acc_t> view() const {
    return {static_cast<int32_t>(begin_.size()) - 1, begin_.data(), offset_.data(), weight_.data()};
  }

 private:
  std::vector<int32_t> begin_;
  std::vector<int32_t> next_;
  std::vector<int64_t> offset_;
  std::vector<acc_t> weight_;
  std::vector<acc_t> entry_weights_;
};

}  // namespace shape_roi_align::cpu
