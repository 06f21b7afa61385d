// Bins in the lanes, rows first: for few channels, which cannot fill the lanes. The pixel rows of a
// bin row, or with a probability map of a sample row, are added up, weighted; the lanes then look
// their columns up in the sum. A box needs weights of its rows and of its columns only.
//
// The order of summation differs from the other readers'. So boxes are read like this, or not, for
// their channels, layout and number of bins alone, never for the boxes beside them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/boxes/box_row_taps.h"
#include "cpu/layout/element_rows.h"
#include "cpu/layout/pooled_writer.h"
#include "cpu/readers/reader.h"

namespace shape_roi_align::cpu {

// Whether the pixels, or the gradients of pixels, of a level are taken rows first.
template <typename T>
bool sums_rows(const Params& params, const FeatureMap& feature_map) {
  constexpr int64_t kMostChannels = 32;  // more fill the lanes
  const ElementRows rows = element_rows(feature_map, params.channels);
  return params.channels <= kMostChannels && rows.exist() &&
         4 * params.options.pooled_width * rows.interleaved >= kernels<T>().lanes;
}

// The probability map of one box at the samples of one row of them, as factors of lanes.
template <typename acc_t, typename coord_t>
class MapRow {
 public:
  void assign(const Params& params, const Box<coord_t>& box, BoxRowTaps<acc_t, coord_t>& taps) {
    width_ = params.prob_map_width;
    prob_map_ = prob_map_of_box<acc_t>(params, box.index, converted_);
    values_.resize(taps.lanes());
    sum_.resize(width_ + kRowSumPadding);
    if (prob_map_ != nullptr) {
      taps.assign_map_columns(columns_);
    }
  }

  // [lanes of the results]: factor times the map, or times 1 without one. Valid until the next call.
  const acc_t* at(Interpolation<coord_t> y, coord_t factor) {
    if (prob_map_ == nullptr) {
      std::fill(values_.begin(), values_.end(), static_cast<acc_t>(factor));
    } else {
      y.low_weight *= factor;
      y.high_weight *= factor;
      const SampleRow<acc_t> row(y, width_);
      const RowSums<acc_t> pool{row.view(), columns_.view(), width_, 1, sum_.data()};
      kernels<acc_t>().pool_rows(
          pool, prob_map_, 0, values_.data(), 0, 0, static_cast<int32_t>(values_.size()));
    }
    return values_.data();
  }

 private:
  const acc_t* prob_map_ = nullptr;
  int32_t width_ = 0;
  LaneTapsTable<acc_t> columns_;
  std::vector<acc_t> converted_;
  std::vector<acc_t> sum_;
  std::vector<acc_t> values_;
};

template <typename T, typename coord_t>
class RowSumReader {
 public:
  using acc_t = accumulate_t<T>;

  struct Memory {
    BoxRowTaps<acc_t, coord_t> taps;
    LaneTapsTable<acc_t> columns;
    LaneTapsTable<acc_t> bins;  // from samples
    SourceRows<acc_t> rows;
    MapRow<acc_t, coord_t> map_row;
    std::vector<acc_t> sum;
    std::vector<acc_t> samples;
  };

  // Of a level that it can read, it reads all boxes.
  static constexpr bool kExcludesOthers = true;
  static bool can_read(const Job& job, const FeatureMap& feature_map) {
    const ElementRows pixels = element_rows(feature_map, job.params.channels);
    const bool writes_alike = !job.bin_rows.exist() || job.bin_rows.interleaved == pixels.interleaved;
    return writes_alike && sums_rows<T>(job.params, feature_map);
  }
  static double cost(const Job&, const Box<coord_t>&) {
    return 0;
  }
  static double cost_together(const Job&, BoxSpan<coord_t>, double alone) {
    return alone;
  }
  static Grouping group(const Job&, BoxSpan<coord_t>, double, int64_t) {
    return {1, false};
  }
  static int32_t channels_per_block(const Job&, BoxSpan<coord_t>) {
    return 0;
  }

  RowSumReader(const Params& params, const WorkItem& item, BoxSpan<coord_t> boxes, Memory& memory)
      : params_(params),
        item_(item),
        box_(boxes[item.begin]),
        feature_map_(params.levels[box_.level]),
        layout_(element_rows(feature_map_, params.channels)),
        memory_(memory) {
    const bool has_map = params.prob_maps != nullptr;
    memory_.taps.assign(params, box_, layout_.interleaved, has_map, kernels_.lanes);
    memory_.taps.assign_columns(memory_.columns);
    memory_.sum.resize(memory_.taps.elements() + kRowSumPadding);
    if (has_map) {
      memory_.map_row.assign(params, box_, memory_.taps);
      memory_.taps.assign_bins(memory_.bins);
    } else {
      memory_.rows.assign_bins(memory_.taps.axes(), feature_map_.row_stride);
    }
  }

  void pool(PooledWriter<T>& output) {
    if (layout_.interleaved > 1) {
      pool(output.at(box_.index, 0), 0, output.bin_row_stride());
    } else {
      output.write_planes(
          box_.index, 0, static_cast<int32_t>(params_.channels),
          [&](T* to, int64_t plane_stride, int64_t bin_row_stride) {
            pool(to, plane_stride, bin_row_stride);
          });
    }
  }

 private:
  const Kernels<T>& kernels_ = kernels<T>();
  const Params& params_;
  const WorkItem& item_;
  const Box<coord_t>& box_;
  const FeatureMap& feature_map_;
  const ElementRows layout_;
  Memory& memory_;

  void pool(T* to, int64_t plane_stride, int64_t bin_row_stride) {
    const BoxRowTaps<acc_t, coord_t>& taps = memory_.taps;
    const int32_t results = params_.options.pooled_width * layout_.interleaved;
    const T* source = image_data<T>(feature_map_, box_.geometry.batch) +
                      taps.first_column() * feature_map_.column_stride;
    RowSums<acc_t> pool{
        {}, memory_.columns.view(), taps.elements(), layout_.planes, memory_.sum.data()};
    if (params_.prob_maps == nullptr) {
      pool.rows = memory_.rows.view();
      kernels_.pool_rows(
          pool, source, feature_map_.channel_stride, to, plane_stride, bin_row_stride, results);
      return;
    }
    const AxisTaps<coord_t>& y = taps.axes().y;
    const int32_t lanes = taps.lanes();
    for (int32_t ph = 0; ph < y.num_bins(); ++ph) {
      memory_.samples.assign(size_t(layout_.planes) * lanes + kRowSumPadding, acc_t(0));
      for (int32_t iy = y.sample_begin[ph]; iy < y.sample_begin[ph + 1]; ++iy) {
        const SampleRow<acc_t> row(y.samples[iy].pixels, feature_map_.row_stride);
        pool.rows = row.view();
        kernels_.add_weighted_row(
            pool, source, feature_map_.channel_stride,
            memory_.map_row.at(y.samples[iy].prob_map, taps.axes().inverse_count),
            memory_.samples.data());
      }
      kernels_.look_up_rows(
          memory_.bins.view(), memory_.samples.data(), layout_.planes, lanes,
          to + ph * bin_row_stride, plane_stride, results);
    }
  }
};

}  // namespace shape_roi_align::cpu
