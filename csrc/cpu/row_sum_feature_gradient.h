// Gradient of the features of a band of pixel rows, rows first: see readers/row_sums.h. For each
// pixel row, the weighted gradients of the bin rows (or sample rows) that read it are added up; its
// pixels then gather their columns from the sum. Boxes are added one by one, in a fixed order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/bands.h"
#include "cpu/readers/row_sums.h"
#include "cpu/simd/streaming.h"

namespace shape_roi_align::cpu {

template <typename T, typename coord_t>
class RowSumFeatureGradient {
 public:
  using acc_t = accumulate_t<T>;

  RowSumFeatureGradient(
      const Params& params, const PooledTensor& grad, BoxSpan<coord_t> boxes, bool is_large)
      : params_(params), grad_(grad), boxes_(boxes), is_large_(is_large) {}

  // band: with all channels. gradient: of the band's level.
  void compute(const Band& band, const FeatureMap& gradient) {
    layout_ = lanes_of_channels(params_, gradient);
    rows_ = band.rows;
    const int32_t elements = gradient.width * layout_.interleaved;
    row_size_ = elements;
    plane_size_ = int64_t(rows_.end - rows_.begin) * row_size_;
    clear(pixels_, layout_.planes * plane_size_);
    is_touched_.assign(rows_.end - rows_.begin, false);
    for (size_t b = band.begin; b < band.end; ++b) {
      const Box<coord_t>& box = boxes_[b];
      if (box.rows.begin < rows_.end && rows_.begin < box.rows.end) {
        add(box);
      }
    }
    write(band, gradient, elements);
  }

 private:
  const Kernels<T>& kernels_ = kernels<T>();
  const Params& params_;
  const PooledTensor& grad_;
  const BoxSpan<coord_t> boxes_;
  const bool is_large_;
  ElementRows layout_;
  Range<int32_t> rows_;   // of the band
  int64_t row_size_ = 0;  // elements from one row of pixels_ to the next
  int64_t plane_size_ = 0;
  std::vector<acc_t> pixels_;     // [planes][rows of the band][row_size_]
  std::vector<bool> is_touched_;  // [rows of the band]
  BoxRowTaps<acc_t, coord_t> taps_;
  LaneTapsTable<acc_t> columns_;          // transposed
  LaneTapsTable<acc_t> bins_of_samples_;  // transposed
  SourceRows<acc_t> sources_;
  SampleWeights<acc_t, coord_t> weights_;
  std::vector<acc_t> sum_;
  std::vector<acc_t> row_;
  std::vector<acc_t> bins_;  // [planes][bin rows][lanes of bins]
  std::vector<acc_t>
      sample_gradients_;        // [planes][lanes of samples]: gradient of each sample's bin
  std::vector<acc_t> samples_;  // [pixel rows][planes][lanes of samples]

  void add(const Box<coord_t>& box) {
    const bool has_map = params_.prob_maps != nullptr;
    taps_.assign(params_, box, layout_.interleaved, has_map, kernels_.lanes);
    const AxisTaps<coord_t>& y = taps_.axes().y;
    // The touched pixel rows inside the band, and the bin rows that read them.
    const auto first = std::lower_bound(y.touched.begin(), y.touched.end(), rows_.begin);
    const auto last = std::lower_bound(first, y.touched.end(), rows_.end);
    if (first == last || taps_.elements() == 0) {
      return;
    }
    const Range<int32_t> pixel_rows{*first, *(last - 1) + 1};
    const Range<int32_t> bin_rows = bin_rows_touching(
        y, {static_cast<int32_t>(first - y.touched.begin()),
            static_cast<int32_t>(last - y.touched.begin())});
    taps_.assign_transposed_columns(columns_);
    sum_.resize(taps_.lanes() + kRowSumPadding);
    const int32_t row_length = taps_.bin_lanes();
    const int32_t num_bin_rows = bin_rows.end - bin_rows.begin;
    clear(bins_, int64_t(layout_.planes) * num_bin_rows * row_length + kRowSumPadding);
    copy_bin_rows<T>(
        grad_, box.index, bin_rows, params_.options.pooled_width, layout_, row_length, bins_.data(),
        row_);
    if (has_map) {
      add_samples(box, pixel_rows, bin_rows);
    } else {
      sources_.assign_pixels(taps_.axes(), pixel_rows, bin_rows, row_length);
      add_rows(bins_, int64_t(num_bin_rows) * row_length, pixel_rows);
    }
    for (auto row = first; row != last; ++row) {
      is_touched_[*row - rows_.begin] = true;
    }
  }

  // Adds the rows of `from`, weighted as sources_ says, to the pixel rows.
  void add_rows(const std::vector<acc_t>& from, int64_t plane_stride, Range<int32_t> pixel_rows) {
    const RowSumsArguments<acc_t> pool{sources_.view(), columns_.view(), taps_.lanes(),
                                       layout_.planes,  sum_.data(),     0};
    acc_t* to = pixels_.data() + (pixel_rows.begin - rows_.begin) * row_size_ +
                taps_.first_column() * layout_.interleaved;
    kernels_.add_buffer_rows(
        pool, from.data(), plane_stride, to, plane_size_, row_size_, taps_.elements());
  }

  // With a probability map: adds the gradients of samples to the pixel rows that the samples read.
  void add_samples(const Box<coord_t>& box, Range<int32_t> pixel_rows, Range<int32_t> bin_rows) {
    const AxisTaps<coord_t>& y = taps_.axes().y;
    const int32_t lanes = taps_.lanes();
    const int64_t bin_lanes = taps_.bin_lanes();
    weights_.assign(params_, box, taps_);
    taps_.assign_transposed_bins(bins_of_samples_);
    sample_gradients_.resize(size_t(layout_.planes) * lanes);
    clear(samples_, int64_t(pixel_rows.end - pixel_rows.begin) * layout_.planes * lanes);
    for (int32_t ph = bin_rows.begin; ph < bin_rows.end; ++ph) {
      kernels_.look_up_buffer_rows(
          bins_of_samples_.view(), bins_.data() + (ph - bin_rows.begin) * bin_lanes, layout_.planes,
          (bin_rows.end - bin_rows.begin) * bin_lanes, sample_gradients_.data(), lanes, lanes);
      const acc_t* weights = weights_.of_bin_row(ph);
      for (int32_t i = y.bin_span[ph].begin; i < y.bin_span[ph].end; ++i, weights += lanes) {
        const int64_t row = y.touched[i] - pixel_rows.begin;
        if (row >= 0 && row < pixel_rows.end - pixel_rows.begin) {
          kernels_.add_weighted(
              weights, sample_gradients_.data(), layout_.planes, lanes,
              samples_.data() + row * layout_.planes * lanes);
        }
      }
    }
    sources_.assign_identity(pixel_rows.end - pixel_rows.begin, int64_t(layout_.planes) * lanes);
    add_rows(samples_, lanes, pixel_rows);
  }

  void write(const Band& band, const FeatureMap& gradient, int32_t elements) {
    T* first = static_cast<T*>(gradient.data) + band.image * gradient.image_stride +
               rows_.begin * gradient.row_stride;
    const ElementRows wanted = element_rows(gradient, params_.channels);
    const bool interleaves = wanted.interleaved != layout_.interleaved;
    const size_t row_bytes = sizeof(T) * gradient.width * wanted.interleaved;
    for (int32_t plane = 0; plane < wanted.planes; ++plane) {
      T* to = first + plane * gradient.channel_stride;
      const acc_t* from = pixels_.data() + plane * plane_size_;
      for (size_t row = 0; row < is_touched_.size(); ++row) {
        if (is_touched_[row] && interleaves) {
          kernels_.interleave(from, layout_.planes, plane_size_, elements, to);
        } else if (is_touched_[row]) {
          kernels_.copy_from_buffer(from, elements, to);
        } else if (is_large_) {
          stream_zeros(to, row_bytes);
        } else {
          std::memset(static_cast<void*>(to), 0, row_bytes);
        }
        from += row_size_;
        to += gradient.row_stride;
      }
    }
    finish_streaming();
  }
};

}  // namespace shape_roi_align::cpu
