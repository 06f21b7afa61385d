// Bins in the lanes, rows first: for few channels, which cannot fill the lanes. The weighted pixel
// rows of a bin row (of a sample row, with a probability map) are added up; the lanes then look up
// their columns in the sum. A box needs only row weights and column weights.
//
// The order of summation differs from the other readers'. The choice of this reader therefore
// depends only on channels, layout, map and number of bins, never on the other boxes of a call.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/boxes/box_row_taps.h"
#include "cpu/layout/pooled_writer.h"
#include "cpu/readers/reader.h"
#include "cpu/readers/row_sum_limits.h"
#include "cpu/readers/sample_rows.h"

namespace shape_roi_align::cpu {

template <typename T, typename coord_t>
class RowSumReader {
 public:
  using acc_t = accumulate_t<T>;

  struct Memory {
    BoxRowTaps<acc_t, coord_t> taps;
    LaneTapsTable<acc_t> columns;
    LaneTapsTable<acc_t> bins;  // from samples
    SourceRows<acc_t> rows;
    SampleWeights<acc_t, coord_t> weights;
    RowsAtSamples<T, coord_t> pixels;
    std::vector<acc_t> sum;
    std::vector<acc_t> samples;
    std::vector<acc_t> bin_row;
  };

  // Reads all boxes of every level that it can read.
  static constexpr bool kExcludesOthers = true;
  static bool can_read(const Job& job, const FeatureMap& feature_map) {
    const ElementRows pixels = element_rows(feature_map, job.params.channels);
    const bool writes_alike =
        !job.bin_rows.exist() || job.bin_rows.interleaved == pixels.interleaved;
    return job.divides_channels ? writes_alike && pools_rows_first<T>(job.params, feature_map)
                                : differentiates_rows_first<T>(job.params, feature_map);
  }
  static double cost(const Job&, const Box<coord_t>&) {
    return 0;
  }
  static double cost_of_group(const Job&, BoxSpan<coord_t>, double alone) {
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
        box_(boxes[item.begin]),
        feature_map_(params.levels[box_.level]),
        layout_(lanes_of_channels(params, feature_map_)),
        is_interleaved_(element_rows(feature_map_, params.channels).interleaved > 1),
        memory_(memory) {
    const bool has_map = params.prob_maps != nullptr;
    memory_.taps.assign(params, box_, layout_.interleaved, has_map, kernels_.lanes);
    memory_.taps.assign_columns(memory_.columns);
    if (has_map) {
      memory_.weights.assign(params, box_, memory_.taps);
      memory_.pixels.assign(feature_map_, box_, params.channels, memory_.taps, memory_.columns);
      memory_.taps.assign_bins(memory_.bins);
    } else {
      memory_.rows.assign_bins(memory_.taps.axes(), feature_map_.row_stride);
    }
  }

  void pool(PooledWriter<T>& output) {
    if (params_.prob_maps != nullptr && is_interleaved_) {
      pool_interleaved_samples(output.at(box_.index, 0), output.bin_row_stride());
    } else if (is_interleaved_) {
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
  const Box<coord_t>& box_;
  const FeatureMap& feature_map_;
  const ElementRows layout_;   // of the lanes
  const bool is_interleaved_;  // channels, in pixels and in bins
  Memory& memory_;

  void pool(T* to, int64_t plane_stride, int64_t bin_row_stride) {
    const BoxRowTaps<acc_t, coord_t>& taps = memory_.taps;
    const int32_t results = params_.options.pooled_width * layout_.interleaved;
    if (params_.prob_maps != nullptr) {
      pool_samples(to, plane_stride, bin_row_stride, results);
      return;
    }
    memory_.sum.resize(taps.elements() + kRowSumPadding);
    const RowSumsArguments<acc_t> row_sums{memory_.rows.view(), memory_.columns.view(),
                                           taps.elements(),     layout_.planes,
                                           memory_.sum.data(),  feature_map_.row_stride};
    kernels_.pool_rows(
        row_sums,
        image_data<T>(feature_map_, box_.geometry.batch) +
            taps.first_column() * feature_map_.column_stride,
        feature_map_.channel_stride, to, plane_stride, bin_row_stride, results);
  }

  void pool_samples(T* to, int64_t plane_stride, int64_t bin_row_stride, int32_t results) {
    for (int32_t ph = 0; ph < params_.options.pooled_height; ++ph) {
      kernels_.look_up_rows(
          memory_.bins.view(), weigh_samples(ph), layout_.planes, memory_.taps.lanes(),
          to + ph * bin_row_stride, plane_stride, results);
    }
  }

  void pool_interleaved_samples(T* to, int64_t bin_row_stride) {
    const int32_t lanes = memory_.taps.bin_lanes();
    memory_.bin_row.resize(size_t(layout_.planes) * lanes);
    for (int32_t ph = 0; ph < params_.options.pooled_height; ++ph) {
      kernels_.look_up_buffer_rows(
          memory_.bins.view(), weigh_samples(ph), layout_.planes, memory_.taps.lanes(),
          memory_.bin_row.data(), lanes, lanes);
      kernels_.interleave(
          memory_.bin_row.data(), layout_.planes, lanes, params_.options.pooled_width,
          to + ph * bin_row_stride);
    }
  }

  // [planes][lanes]: the weighted samples of bin row ph. Valid until the next call.
  const acc_t* weigh_samples(int32_t ph) {
    const AxisTaps<coord_t>& y = memory_.taps.axes().y;
    const int32_t lanes = memory_.taps.lanes();
    clear(memory_.samples, int64_t(layout_.planes) * lanes + kRowSumPadding);
    const auto add = [&](const acc_t* weights, const acc_t* pixels) {
      kernels_.add_weighted(weights, pixels, layout_.planes, lanes, memory_.samples.data());
    };
    if (memory_.taps.reads_more_rows_than_samples()) {
      for (int32_t iy = y.sample_begin[ph]; iy < y.sample_begin[ph + 1]; ++iy) {
        const AxisSample<coord_t>& sample = y.samples[iy];
        add(memory_.weights.of_sample_row(sample.prob_map), memory_.pixels.at(sample.pixels));
      }
    } else {
      const acc_t* weights = memory_.weights.of_bin_row(ph);
      for (int32_t row = y.bin_span[ph].begin; row < y.bin_span[ph].end; ++row, weights += lanes) {
        add(weights, memory_.pixels.at(y.touched[row]));
      }
    }
    return memory_.samples.data();
  }
};

}  // namespace shape_roi_align::cpu
