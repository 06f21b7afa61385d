// Gradients of one box's probability map and coordinates, rows first: see readers/row_sums.h. The
// products <sample, gradient of its bin> are summed over channels for a row of samples at a time.
#pragma once

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
      : params_(params), grad_(grad), writer_(writer) {}

  void compute(const Box<coord_t>& box) {
    start(box);
    const AxisTaps<coord_t>& y = taps_.axes().y;
    for (int32_t ph = 0; ph < y.num_bins(); ++ph) {
      spread_gradient(box.index, ph);
      for (int32_t iy = y.sample_begin[ph]; iy < y.sample_begin[ph + 1]; ++iy) {
        if (writer_.wants_prob_maps()) {
          add_to_map_rows(y.samples[iy]);
        }
        if (writer_.wants_rois()) {
          add_to_box(y.samples[iy]);
        }
      }
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
  ElementRows layout_;
  const T* source_ = nullptr;  // first element
  int64_t row_stride_ = 0;
  int64_t plane_stride_ = 0;
  BoxRowTaps<acc_t, coord_t> taps_;
  LaneTapsTable<acc_t> columns_;
  LaneTapsTable<acc_t> column_slopes_;
  LaneTapsTable<acc_t> map_columns_;  // transposed
  SourceRows<acc_t> rows_;
  MapRow<acc_t, coord_t> map_row_;
  std::vector<acc_t> sum_;
  LaneTapsTable<acc_t> bins_;    // transposed
  std::vector<acc_t> grad_row_;  // [planes][lanes of bins]
  std::vector<acc_t> spread_;    // [planes][lanes of samples]: of the bin of each sample
  std::vector<acc_t> products_;  // [lanes of samples]
  std::vector<acc_t> map_rows_;  // [prob_map_height][lanes of samples]: of each row of the map
  std::vector<acc_t> map_gradient_;
  std::vector<coord_t> u_;  // [lanes of samples]
  AxisGradient<coord_t> along_y_;
  AxisGradient<coord_t> along_x_;

  void start(const Box<coord_t>& box) {
    const FeatureMap& feature_map = params_.levels[box.level];
    layout_ = element_rows(feature_map, params_.channels);
    taps_.assign(params_, box, layout_.interleaved, true, kernels_.lanes);
    taps_.assign_columns(columns_);
    source_ = image_data<T>(feature_map, box.geometry.batch) +
              taps_.first_column() * feature_map.column_stride;
    row_stride_ = feature_map.row_stride;
    plane_stride_ = feature_map.channel_stride;
    sum_.resize(std::max(taps_.elements(), taps_.lanes()) + kRowSumPadding);
    grad_row_.assign(size_t(layout_.planes) * taps_.bin_lanes() + kRowSumPadding, acc_t(0));
    spread_.resize(size_t(layout_.planes) * taps_.lanes());
    taps_.assign_transposed_bins(bins_);
    if (writer_.wants_prob_maps()) {
      map_rows_.assign(size_t(params_.prob_map_height) * taps_.lanes(), acc_t(0));
    }
    if (writer_.wants_rois()) {
      map_row_.assign(params_, box, taps_);
      taps_.assign_column_slopes(column_slopes_);
      u_.assign(taps_.lanes(), coord_t(0));
      taps_.for_each_sample([&](const AxisSample<coord_t>& sample, int32_t lane) {
        std::fill_n(u_.begin() + lane, layout_.interleaved, sample.uv);
      });
      along_y_ = along_x_ = {};
    }
  }

  void spread_gradient(int64_t k, int32_t ph) {
    copy_bin_rows<T>(
        grad_, k, {ph, ph + 1}, params_.options.pooled_width, layout_, taps_.bin_lanes(),
        grad_row_.data());
    kernels_.look_up_buffer_rows(
        bins_.view(), grad_row_.data(), layout_.planes, taps_.bin_lanes(), spread_.data(),
        taps_.lanes(), taps_.lanes());
  }

  // [lanes of samples]: <results of the row, gradient of their bins>, summed over planes.
  const acc_t* products(const SampleRow<acc_t>& row, const LaneTapsTable<acc_t>& columns) {
    products_.assign(taps_.lanes(), acc_t(0));
    const RowSums<acc_t> pool{
        row.view(), columns.view(), taps_.elements(), layout_.planes, sum_.data()};
    kernels_.add_row_products(
        pool, source_, plane_stride_, spread_.data(), products_.data());
    return products_.data();
  }

  void add_to_map_rows(const AxisSample<coord_t>& sample) {
    const acc_t* of_samples = products({sample.pixels, row_stride_}, columns_);
    const Interpolation<coord_t>& map = sample.prob_map;
    const acc_t factor = static_cast<acc_t>(taps_.axes().inverse_count);
    acc_t* rows = map_rows_.data();
    kernels_.add_product(
        of_samples, nullptr, taps_.lanes(), factor * static_cast<acc_t>(map.low_weight),
        rows + int64_t(map.low) * taps_.lanes(), factor * static_cast<acc_t>(map.high_weight),
        rows + int64_t(map.high) * taps_.lanes());
  }

  void write_prob_map(int64_t k) {
    const int32_t height = params_.prob_map_height;
    const int32_t width = params_.prob_map_width;
    taps_.assign_transposed_map_columns(map_columns_, width);
    map_gradient_.resize(size_t(height) * width);
    rows_.assign_identity(height, taps_.lanes());
    const RowSums<acc_t> pool{rows_.view(), map_columns_.view(), taps_.lanes(), 1, sum_.data()};
    kernels_.pool_buffer_rows(pool, map_rows_.data(), 0, map_gradient_.data(), 0, width, width);
    writer_.write_prob_map(k, map_gradient_);
  }

  void add_to_box(const AxisSample<coord_t>& sample) {
    const acc_t* weights = map_row_.at(sample.prob_map, taps_.axes().inverse_count);
    const acc_t* of_y = products(SampleRow<acc_t>::slope(sample.pixels, row_stride_), columns_);
    coord_t along_y = 0;
    for (int32_t i = 0; i < taps_.results(); ++i) {
      along_y += coord_t(weights[i]) * coord_t(of_y[i]);
    }
    along_y_.add(along_y, sample.uv);
    const acc_t* of_x = products({sample.pixels, row_stride_}, column_slopes_);
    for (int32_t i = 0; i < taps_.results(); ++i) {
      along_x_.add(coord_t(weights[i]) * coord_t(of_x[i]), u_[i]);
    }
  }
};

}  // namespace shape_roi_align::cpu
