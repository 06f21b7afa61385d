// Sample rows of one box, for the reader and the gradients that work rows first: the samples'
// weights from the probability map, and the pixel rows interpolated at the samples' x.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/boxes/box_row_taps.h"
#include "cpu/layout/element_rows.h"
#include "cpu/readers/reader.h"

namespace shape_roi_align::cpu {

// By memset, because vector::assign stores 16 bytes at a time.
template <typename T>
void clear(std::vector<T>& values, int64_t size) {
  values.resize(size);
  if (size > 0) {
    std::memset(values.data(), 0, size * sizeof(T));
  }
}

// The weights of the samples of a box from the probability map, the same for all channels: per
// sample row, or per pixel row that the sample rows read.
template <typename acc_t, typename coord_t>
class SampleWeights {
 public:
  // Without a map, p is 1. taps: assigned by_samples; must outlive the calls of of_bin_row.
  void assign(const Params& params, const Box<coord_t>& box, BoxRowTaps<acc_t, coord_t>& taps) {
    taps_ = &taps;
    width_ = params.prob_map_width;
    prob_map_ = prob_map_of_box<acc_t>(params, box.index, converted_);
    row_.assign(taps.lanes(), acc_t(1));
    sum_.resize(width_ + kRowSumPadding);
    if (prob_map_ != nullptr) {
      taps.assign_map_columns(columns_, width_);
    }
  }

  // [lanes]: the map at the samples of one row. Valid until the next call.
  const acc_t* of_sample_row(const Interpolation<coord_t>& y) {
    if (prob_map_ != nullptr) {
      const RowInterpolation<acc_t> row(y, width_);
      const RowSumsArguments<acc_t> pool{row.view(), columns_.view(), width_, 1, sum_.data(), 0};
      kernels<acc_t>().pool_rows(pool, prob_map_, 0, row_.data(), 0, 0, taps_->lanes());
    }
    return row_.data();
  }

  // [touched pixel rows of bin row ph][lanes]: p times the weight of the pixel row, summed over
  // sample rows. Valid until the next call.
  const acc_t* of_bin_row(int32_t ph) {
    const AxisTaps<coord_t>& y = taps_->axes().y;
    const Range<int32_t> span = y.bin_span[ph];
    const int64_t lanes = taps_->lanes();
    clear(weights_, (span.end - span.begin) * lanes);
    for (int32_t iy = y.sample_begin[ph]; iy < y.sample_begin[ph + 1]; ++iy) {
      const AxisSample<coord_t>& sample = y.samples[iy];
      kernels<acc_t>().add_to_two(
          of_sample_row(sample.prob_map), taps_->lanes(),
          static_cast<acc_t>(sample.pixels.low_weight),
          weights_.data() + (sample.low_index - span.begin) * lanes,
          static_cast<acc_t>(sample.pixels.high_weight),
          weights_.data() + (sample.high_index - span.begin) * lanes);
    }
    return weights_.data();
  }

 private:
  BoxRowTaps<acc_t, coord_t>* taps_ = nullptr;
  const acc_t* prob_map_ = nullptr;
  int32_t width_ = 0;
  LaneTapsTable<acc_t> columns_;
  std::vector<acc_t> converted_;
  std::vector<acc_t> sum_;
  std::vector<acc_t> row_;
  std::vector<acc_t> weights_;
};

// Pixel rows interpolated at the x of the samples of a box. Caches two pixel rows, because
// consecutive bin rows share two.
template <typename T, typename coord_t>
class RowsAtSamples {
 public:
  using acc_t = accumulate_t<T>;

  // columns: from taps.assign_columns or taps.assign_column_slopes. taps: not interleaved. All
  // arguments must outlive the calls of at().
  void assign(
      const FeatureMap& feature_map, const Box<coord_t>& box, int64_t channels,
      const BoxRowTaps<acc_t, coord_t>& taps, const LaneTapsTable<acc_t>& columns) {
    feature_map_ = &feature_map;
    rows_of_pixels_ = element_rows(feature_map, channels);
    source_ = image_data<T>(feature_map, box.geometry.batch) +
              taps.first_column() * feature_map.column_stride;
    lanes_ = taps.lanes();
    columns_ = taps.elements();
    const int32_t interleaved = rows_of_pixels_.interleaved;
    const int64_t padded = round_up(columns_, kernels<T>().lanes);
    sum_.resize(interleaved * padded + kRowSumPadding);
    planes_.resize(interleaved > 1 ? interleaved * padded + kRowSumPadding : 0);
    row_sums_ = {{},          columns.view(),        columns_ * interleaved, rows_of_pixels_.planes,
                 sum_.data(), feature_map.row_stride};
    cached_row_[0] = cached_row_[1] = kNone;
  }

  // [channels][lanes]: of a pixel row. Valid until the second call after this one.
  const acc_t* at(int32_t row) {
    const int32_t i = row % 2;
    if (cached_row_[i] != row) {
      cached_row_[i] = row;
      rows_[i].resize(size_t(rows_of_pixels_.interleaved) * row_sums_.planes * lanes_);
      look_up(RowInterpolation<acc_t>(row * feature_map_->row_stride), rows_[i].data());
    }
    return rows_[i].data();
  }

  // [channels][lanes]: at the y of a sample row, or its derivative. Valid until the next call.
  const acc_t* at(const Interpolation<coord_t>& y) {
    return between(RowInterpolation<acc_t>(y, feature_map_->row_stride));
  }
  const acc_t* slope_at(const Interpolation<coord_t>& y) {
    return between(RowInterpolation<acc_t>::slope(y, feature_map_->row_stride));
  }

 private:
  static constexpr int32_t kNone = -1;

  const FeatureMap* feature_map_ = nullptr;
  ElementRows rows_of_pixels_;
  const T* source_ = nullptr;
  int32_t lanes_ = 0;
  int32_t columns_ = 0;  // of pixels
  RowSumsArguments<acc_t> row_sums_;
  std::vector<acc_t> sum_;
  std::vector<acc_t> planes_;  // [interleaved][columns_, rounded up]
  int32_t cached_row_[2] = {kNone, kNone};
  std::vector<acc_t> rows_[2];

  const acc_t* between(const RowInterpolation<acc_t>& row) {
    cached_row_[0] = kNone;
    rows_[0].resize(size_t(rows_of_pixels_.interleaved) * row_sums_.planes * lanes_);
    look_up(row, rows_[0].data());
    return rows_[0].data();
  }

  void look_up(const RowInterpolation<acc_t>& row, acc_t* to) {
    const Kernels<T>& table = kernels<T>();
    row_sums_.rows = row.view();
    if (rows_of_pixels_.interleaved > 1) {
      const int32_t channels = rows_of_pixels_.interleaved;
      const int64_t stride = round_up(columns_, table.lanes);
      table.sum_row(row_sums_, source_);
      table.separate(sum_.data(), channels, columns_, planes_.data(), stride);
      table.look_up_buffer_rows(
          row_sums_.columns, planes_.data(), channels, stride, to, lanes_, lanes_);
    } else {
      table.pool_rows_to_buffer(
          row_sums_, source_, feature_map_->channel_stride, to, lanes_, 0, lanes_);
    }
  }
};

}  // namespace shape_roi_align::cpu
