// Gradients of one box's probability map and coordinates, rows first: see readers/row_sums.h. The
// products <pixel row at the samples, gradient of the samples' bins> are first summed over
// channels; all later steps work on the sums.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/box_gradient_writer.h"
#include "cpu/readers/row_sums.h"

namespace shape_roi_align::cpu {

template <typename T, typename coord_t>
class RowSumMapAndBoxGradient {
 public:
  using acc_t = accumulate_t<T>;

  RowSumMapAndBoxGradient(
      const Params& params, const PooledTensor& grad, const BoxGradientWriter& writer)
      : params_(params),
        grad_(grad),
        writer_(writer),
        channels_(static_cast<int32_t>(params.channels)) {}

  void compute(const Box<coord_t>& box) {
    start(box);
    for (int32_t ph = 0; ph < params_.options.pooled_height; ++ph) {
      spread_gradient(box.index, ph);
      for_each_sample_row(ph, [&](const AxisSample<coord_t>& y) {
        if (writer_.wants_prob_maps()) {
          add_to_map(y.prob_map);
        }
        if (writer_.wants_rois()) {
          add_to_box(y);
        }
      });
    }
    if (writer_.wants_prob_maps()) {
      write_prob_map(box.index);
    }
    if (writer_.wants_rois()) {
      writer_.write_box(box, along_y_, along_x_);
    }
  }

 private:
  const Kernels<T>& kernels_ = kernels<T>();
  const Params& params_;
  const PooledTensor& grad_;
  const BoxGradientWriter& writer_;
  const int32_t channels_;
  int32_t lanes_ = 0;  // of a row of samples
  BoxRowTaps<acc_t, coord_t> taps_;
  LaneTapsTable<acc_t> columns_;
  LaneTapsTable<acc_t> column_slopes_;
  LaneTapsTable<acc_t> map_columns_;  // transposed
  LaneTapsTable<acc_t> bins_;         // transposed
  SourceRows<acc_t> map_rows_;
  RowsAtSamples<T, coord_t> pixels_;
  RowsAtSamples<T, coord_t> pixel_slopes_;
  SampleWeights<acc_t, coord_t> weights_;
  std::vector<acc_t> grad_bins_;       // [channels][lanes of bins]: of a bin row
  std::vector<acc_t> grad_samples_;    // [channels][lanes]: gradient of each sample's bin
  std::vector<acc_t> products_;        // [touched rows of the bin row][lanes]
  std::vector<acc_t> slope_products_;  // the same, of the derivatives along x
  // [lanes]: products of a sample row, and their derivatives along y and x.
  std::vector<acc_t> sample_row_products_[3];
  std::vector<acc_t> grad_map_rows_;  // [prob_map_height][lanes]
  std::vector<acc_t> grad_map_;       // [prob_map_height][prob_map_width]
  std::vector<acc_t> sum_;
  std::vector<acc_t> row_;
  std::vector<coord_t> u_;  // [lanes]
  AxisGradient<coord_t> along_y_;
  AxisGradient<coord_t> along_x_;

  void start(const Box<coord_t>& box) {
    const FeatureMap& feature_map = params_.levels[box.level];
    taps_.assign(params_, box, 1, true, kernels_.lanes);
    lanes_ = taps_.lanes();
    taps_.assign_columns(columns_);
    taps_.assign_transposed_bins(bins_);
    pixels_.assign(feature_map, box, channels_, taps_, columns_);
    grad_bins_.resize(size_t(channels_) * taps_.bin_lanes() + kRowSumPadding);
    grad_samples_.resize(size_t(channels_) * lanes_);
    for (std::vector<acc_t>& row : sample_row_products_) {
      row.resize(lanes_);
    }
    if (writer_.wants_prob_maps()) {
      clear(grad_map_rows_, int64_t(params_.prob_map_height) * lanes_);
    }
    if (writer_.wants_rois()) {
      weights_.assign(params_, box, taps_);
      taps_.assign_column_slopes(column_slopes_);
      pixel_slopes_.assign(feature_map, box, channels_, taps_, column_slopes_);
      u_.assign(lanes_, coord_t(0));
      taps_.for_each_sample(
          [&](const AxisSample<coord_t>& sample, int32_t lane) { u_[lane] = sample.uv; });
      along_y_ = along_x_ = {};
    }
  }

  // Copies the gradient of each bin of bin row ph to its samples, times BoxGeometry::share.
  void spread_gradient(int64_t k, int32_t ph) {
    copy_bin_rows<T>(
        grad_, k, {ph, ph + 1}, params_.options.pooled_width, {1, channels_}, taps_.bin_lanes(),
        grad_bins_.data(), row_);
    kernels_.look_up_buffer_rows(
        bins_.view(), grad_bins_.data(), channels_, taps_.bin_lanes(), grad_samples_.data(), lanes_,
        lanes_);
  }

  // to[lanes] = <pixels, gradient> at each sample, over channels
  void multiply(const acc_t* pixels, acc_t* to) {
    std::fill_n(to, lanes_, acc_t(0));
    kernels_.add_products(grad_samples_.data(), pixels, channels_, lanes_, to);
  }

  // Calls f(sample along y) for each sample row of bin row ph. sample_row_products_ then holds the
  // products of that sample row.
  template <typename F>
  void for_each_sample_row(int32_t ph, F f) {
    const AxisTaps<coord_t>& y = taps_.axes().y;
    const bool wants_slopes = writer_.wants_rois();
    if (taps_.reads_more_rows_than_samples()) {
      for (int32_t iy = y.sample_begin[ph]; iy < y.sample_begin[ph + 1]; ++iy) {
        const Interpolation<coord_t>& at = y.samples[iy].pixels;
        multiply(pixels_.at(at), sample_row_products_[0].data());
        if (wants_slopes) {
          multiply(pixels_.slope_at(at), sample_row_products_[1].data());
          multiply(pixel_slopes_.at(at), sample_row_products_[2].data());
        }
        f(y.samples[iy]);
      }
      return;
    }
    const Range<int32_t> span = y.bin_span[ph];
    products_.resize(size_t(span.end - span.begin) * lanes_);
    slope_products_.resize(wants_slopes ? products_.size() : 0);
    for (int32_t row = span.begin; row < span.end; ++row) {
      const int64_t at = int64_t(row - span.begin) * lanes_;
      multiply(pixels_.at(y.touched[row]), products_.data() + at);
      if (wants_slopes) {
        multiply(pixel_slopes_.at(y.touched[row]), slope_products_.data() + at);
      }
    }
    for (int32_t iy = y.sample_begin[ph]; iy < y.sample_begin[ph + 1]; ++iy) {
      const AxisSample<coord_t>& sample = y.samples[iy];
      const Interpolation<coord_t>& at = sample.pixels;
      const int64_t low = int64_t(sample.low_index - span.begin) * lanes_;
      const int64_t high = int64_t(sample.high_index - span.begin) * lanes_;
      interpolate(products_, low, at.low_weight, high, at.high_weight, sample_row_products_[0]);
      if (wants_slopes) {
        interpolate(products_, low, -at.slope, high, at.slope, sample_row_products_[1]);
        interpolate(
            slope_products_, low, at.low_weight, high, at.high_weight, sample_row_products_[2]);
      }
      f(sample);
    }
  }

  void interpolate(
      const std::vector<acc_t>& rows, int64_t low, coord_t low_weight, int64_t high,
      coord_t high_weight, std::vector<acc_t>& to) {
    kernels_.interpolate(
        rows.data() + low, static_cast<acc_t>(low_weight), rows.data() + high,
        static_cast<acc_t>(high_weight), lanes_, to.data());
  }

  void add_to_map(const Interpolation<coord_t>& y) {
    kernels_.add_to_two(
        sample_row_products_[0].data(), lanes_, static_cast<acc_t>(y.low_weight),
        grad_map_rows_.data() + int64_t(y.low) * lanes_, static_cast<acc_t>(y.high_weight),
        grad_map_rows_.data() + int64_t(y.high) * lanes_);
  }

  void add_to_box(const AxisSample<coord_t>& y) {
    const acc_t* weights = weights_.of_sample_row(y.prob_map);
    coord_t along_y = 0;
    for (int32_t i = 0; i < taps_.results(); ++i) {
      along_y += coord_t(weights[i]) * coord_t(sample_row_products_[1][i]);
      along_x_.add(coord_t(weights[i]) * coord_t(sample_row_products_[2][i]), u_[i]);
    }
    along_y_.add(along_y, y.uv);
  }

  void write_prob_map(int64_t k) {
    const int32_t width = params_.prob_map_width;
    taps_.assign_transposed_map_columns(map_columns_, width);
    map_rows_.assign_identity(params_.prob_map_height, lanes_);
    grad_map_.resize(size_t(params_.prob_map_height) * width);
    sum_.resize(lanes_ + kRowSumPadding);
    const RowSumsArguments<acc_t> pool{
        map_rows_.view(), map_columns_.view(), lanes_, 1, sum_.data(), 0};
    kernels_.pool_buffer_rows(pool, grad_map_rows_.data(), 0, grad_map_.data(), 0, width, width);
    writer_.write_prob_map(k, grad_map_);
  }
};

}  // namespace shape_roi_align::cpu
