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

// Whether the pixels, or the gradients of pixels, of a level are taken rows first. Limits are
// fitted to times with AVX-512 and AVX2.
template <typename T>
bool sums_rows(const Params& params, const FeatureMap& feature_map) {
  const int32_t lanes = kernels<T>().lanes;
  const bool can_permute = kernels<T>().look_up != nullptr;
  const ElementRows rows = element_rows(feature_map, params.channels);
  const int64_t lanes_of_row = int64_t(params.options.pooled_width) * rows.interleaved;
  if (rows.interleaved > 1) {
    return params.channels <= (can_permute ? 8 : 3) && lanes_of_row >= 2 * lanes;
  }
  return rows.exist() && params.channels <= (can_permute ? 15 : 3) && 4 * lanes_of_row >= lanes;
}

// How the lanes of a level's rows hold channels. With a map, a plane each, so that all channels
// share the weights of the samples; without one, as they lie.
inline ElementRows lanes_of_channels(const Params& params, const FeatureMap& feature_map) {
  const ElementRows rows = element_rows(feature_map, params.channels);
  return params.prob_maps == nullptr ? rows : ElementRows{1, static_cast<int32_t>(params.channels)};
}

// The weights that the map gives the samples of a box, all channels alike: by rows of samples, or
// by the pixel rows that these read.
template <typename acc_t, typename coord_t>
class SampleWeights {
 public:
  // Without a map p is 1. taps: of samples; outlives the calls of of_bin_row.
  void assign(const Params& params, const Box<coord_t>& box, BoxRowTaps<acc_t, coord_t>& taps) {
    taps_ = &taps;
    width_ = params.prob_map_width;
    prob_map_ = prob_map_of_box<acc_t>(params, box.index, converted_);
    row_.assign(taps.lanes(), acc_t(1));
    sum_.resize(width_ + kRowSumPadding);
    if (prob_map_ != nullptr) {
      taps.assign_map_columns(columns_);
    }
  }

  // [lanes]: the map at the samples of one row. Valid until the next call.
  const acc_t* of_sample_row(const Interpolation<coord_t>& y) {
    if (prob_map_ != nullptr) {
      const SingleRow<acc_t> row(y, width_);
      const RowSums<acc_t> pool{row.view(), columns_.view(), width_, 1, sum_.data(), 0};
      kernels<acc_t>().pool_rows(pool, prob_map_, 0, row_.data(), 0, 0, taps_->lanes());
    }
    return row_.data();
  }

  // [touched pixel rows of bin row ph][lanes]: p times the weight of the pixel row, summed over
  // rows of samples. Valid until the next call.
  const acc_t* of_bin_row(int32_t ph) {
    const AxisTaps<coord_t>& y = taps_->axes().y;
    const Range<int32_t> span = y.bin_span[ph];
    const int64_t lanes = taps_->lanes();
    weights_.assign((span.end - span.begin) * lanes, acc_t(0));
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

// Pixel rows at the x of the samples of a box. Bin rows that follow one another share two pixel
// rows; these are kept.
template <typename T, typename coord_t>
class RowsAtSamples {
 public:
  using acc_t = accumulate_t<T>;

  // columns: of the taps' results, or of their derivatives. All outlive the calls of at(). The taps
  // are of single channels.
  void assign(
      const FeatureMap& feature_map, const Box<coord_t>& box, int64_t channels,
      const BoxRowTaps<acc_t, coord_t>& taps, const LaneTapsTable<acc_t>& columns) {
    feature_map_ = &feature_map;
    rows_of_pixels_ = element_rows(feature_map, channels);
    source_ = image_data<T>(feature_map, box.geometry.batch) +
              taps.first_column() * feature_map.column_stride;
    lanes_ = taps.lanes();
    sum_.resize(taps.elements() + kRowSumPadding);
    pool_ = {{},          columns.view(),        taps.elements(), rows_of_pixels_.planes,
             sum_.data(), feature_map.row_stride};
    held_[0] = held_[1] = kNone;
  }

  // [channels][lanes]: of a pixel row. Valid until the next but one call.
  const acc_t* at(int32_t row) {
    const int32_t i = row % 2;
    if (held_[i] != row) {
      held_[i] = row;
      rows_[i].resize(size_t(rows_of_pixels_.interleaved) * pool_.planes * lanes_);
      look_up(SingleRow<acc_t>(row * feature_map_->row_stride), rows_[i].data());
    }
    return rows_[i].data();
  }

  // [channels][lanes]: at the y of a row of samples, or its derivative. Valid until the next call.
  const acc_t* at(const Interpolation<coord_t>& y) {
    return between(SingleRow<acc_t>(y, feature_map_->row_stride));
  }
  const acc_t* slope_at(const Interpolation<coord_t>& y) {
    return between(SingleRow<acc_t>::slope(y, feature_map_->row_stride));
  }

 private:
  static constexpr int32_t kNone = -1;

  const FeatureMap* feature_map_ = nullptr;
  ElementRows rows_of_pixels_;
  const T* source_ = nullptr;
  int32_t lanes_ = 0;
  RowSums<acc_t> pool_;
  std::vector<acc_t> sum_;
  int32_t held_[2] = {kNone, kNone};
  std::vector<acc_t> rows_[2];

  const acc_t* between(const SingleRow<acc_t>& row) {
    held_[0] = kNone;
    rows_[0].resize(size_t(rows_of_pixels_.interleaved) * pool_.planes * lanes_);
    look_up(row, rows_[0].data());
    return rows_[0].data();
  }

  void look_up(const SingleRow<acc_t>& row, acc_t* to) {
    const Kernels<T>& table = kernels<T>();
    pool_.rows = row.view();
    if (rows_of_pixels_.interleaved > 1) {
      table.sum_row(pool_, source_);
      table.look_up_buffer_rows(
          pool_.columns, sum_.data(), rows_of_pixels_.interleaved, 1, to, lanes_, lanes_);
    } else {
      table.pool_rows_to_buffer(
          pool_, source_, feature_map_->channel_stride, to, lanes_, 0, lanes_);
    }
  }
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
    SampleWeights<acc_t, coord_t> weights;
    RowsAtSamples<T, coord_t> pixels;
    std::vector<acc_t> sum;
    std::vector<acc_t> samples;
    std::vector<acc_t> bin_row;
  };

  // Of a level that it can read, it reads all boxes.
  static constexpr bool kExcludesOthers = true;
  static bool can_read(const Job& job, const FeatureMap& feature_map) {
    const ElementRows pixels = element_rows(feature_map, job.params.channels);
    const bool writes_alike =
        !job.bin_rows.exist() || job.bin_rows.interleaved == pixels.interleaved;
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
        box_(boxes[item.begin]),
        feature_map_(params.levels[box_.level]),
        layout_(lanes_of_channels(params, feature_map_)),
        is_interleaved_(element_rows(feature_map_, params.channels).interleaved > 1),
        memory_(memory) {
    const bool has_map = params.prob_maps != nullptr;
    memory_.taps.assign(
        params, box_, layout_.interleaved,
        is_interleaved_ ? static_cast<int32_t>(params.channels) : 1, has_map, kernels_.lanes);
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
  const bool is_interleaved_;  // pixels and bins
  Memory& memory_;

  void pool(T* to, int64_t plane_stride, int64_t bin_row_stride) {
    const BoxRowTaps<acc_t, coord_t>& taps = memory_.taps;
    const int32_t results = params_.options.pooled_width * layout_.interleaved;
    if (params_.prob_maps != nullptr) {
      pool_samples(to, plane_stride, bin_row_stride, results);
      return;
    }
    memory_.sum.resize(taps.elements() + kRowSumPadding);
    const RowSums<acc_t> pool{memory_.rows.view(), memory_.columns.view(), taps.elements(),
                              layout_.planes,      memory_.sum.data(),     feature_map_.row_stride};
    kernels_.pool_rows(
        pool,
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
    memory_.samples.assign(size_t(layout_.planes) * lanes + kRowSumPadding, acc_t(0));
    const auto add = [&](const acc_t* weights, const acc_t* pixels) {
      kernels_.add_weighted(weights, pixels, layout_.planes, lanes, memory_.samples.data());
    };
    if (memory_.taps.has_rows_apart()) {
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
