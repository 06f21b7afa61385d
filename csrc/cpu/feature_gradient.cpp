// Gradient of the features, in the gather form: every pixel adds up the gradients of the bins that
// read it and is written once, even if zero. A work item owns some channels of a band of pixel rows
// of one image and processes the boxes in a fixed order. There are no races, and results are
// bitwise identical for any number of threads.
#include <cstring>
#include <limits>

#include "cpu/bands.h"
#include "cpu/boxes/box_arguments.h"
#include "cpu/jobs.h"
#include "cpu/layout/planes.h"
#include "cpu/layout/pooled_gradient.h"
#include "cpu/parallel.h"
#include "cpu/row_sum_feature_gradient.h"
#include "cpu/simd/streaming.h"
#include "cpu/taps/bin_weights.h"
#include "cpu/taps/pixel_taps.h"

namespace shape_roi_align::cpu {
namespace {

template <typename T>
int64_t bytes_of(const Params& params, const FeatureGradients& gradients) {
  int64_t pixels = 0;
  for (int32_t level = 0; level < params.num_levels; ++level) {
    if (gradients.levels[level].data != nullptr) {
      pixels += int64_t(gradients.levels[level].height) * gradients.levels[level].width;
    }
  }
  return params.num_images * params.channels * pixels * int64_t(sizeof(T));
}

template <typename T, typename coord_t>
class BandGradient {
 public:
  using acc_t = accumulate_t<T>;

  BandGradient(
      const Params& params, const PooledTensor& grad, const FeatureGradients& gradients,
      BoxSpan<coord_t> boxes)
      : params_(params),
        gradients_(gradients),
        boxes_(boxes),
        is_large_(bytes_of<T>(params, gradients) >= kLargeResult),
        pooled_(grad, params.options),
        by_rows_(params, grad, boxes, is_large_) {}

  void compute(const Band& band) {
    const FeatureMap& gradient = gradients_.levels[band.level];
    if (differentiates_rows_first<T>(params_, gradient)) {
      by_rows_.compute(band, gradient);
      return;
    }
    const bool is_innermost = has_channels_innermost(gradient, params_.channels);
    block_ = is_innermost && pooled_.is_in_place()
                 ? static_cast<int32_t>(band.channels)
                 : channel_block<T>(gradient.width, band.channels, kernels_.planar_block);
    grid_ = pixel_row_grid(gradient);
    collect_taps(band, gradient.width);
    const int32_t rows = band.rows.end - band.rows.begin;
    for_each_block(band.channel, band.channels, block_, [&](int64_t c, int32_t channels) {
      const acc_t* bins = pooled_.is_in_place() ? pooled_.data() + c : pack_bins(c, channels);
      T* to = static_cast<T*>(gradient.data) + band.image * gradient.image_stride +
              c * gradient.channel_stride + band.rows.begin * gradient.row_stride;
      if (is_innermost) {
        write_pixels(gradient, rows, bins, channels, to);
      } else {
        write_planes(gradient, rows, bins, channels, to);
      }
    });
    finish_streaming();
  }

 private:
  // Bin rows of one box that read the band.
  struct BinRows {
    int64_t box;  // k
    Range<int32_t> rows;
  };

  const Params& params_;
  const FeatureGradients& gradients_;
  const BoxSpan<coord_t> boxes_;
  const bool is_large_;
  const Kernels<T>& kernels_ = kernels<T>();
  const PooledGradient<T> pooled_;
  RowSumFeatureGradient<T, coord_t> by_rows_;
  BoxAxes<coord_t> axes_;
  typename BinWeights<coord_t>::Memory weights_;
  std::vector<coord_t> converted_prob_map_;
  UnsortedPixelTaps<acc_t> unsorted_taps_;
  PixelTaps<acc_t> taps_;  // sources: offsets of bins from the block's first channel
  int32_t block_ = 0;      // channels per block
  PlaneGrid grid_;         // of a pixel row of the gradient
  std::vector<BinRows> bin_rows_;
  std::vector<acc_t> packed_bins_;
  std::vector<acc_t> pixels_;
  std::vector<T> stage_;

  // width: of the feature map.
  void collect_taps(const Band& band, int32_t width) {
    unsorted_taps_.clear(int64_t(band.rows.end - band.rows.begin) * width);
    bin_rows_.clear();
    int64_t num_bins = 0;
    for (size_t b = band.begin; b < band.end; ++b) {
      const Box<coord_t>& box = boxes_[b];
      if (box.rows.begin < band.rows.end && band.rows.begin < box.rows.end) {
        assign_axes(params_, box, axes_);
        num_bins += collect_taps_of_box(band.rows, width, box.index, num_bins);
      }
    }
    STD_TORCH_CHECK(
        unsorted_taps_.taps().size() <= size_t(std::numeric_limits<int32_t>::max()),
        "too many boxes on one row of features");
    taps_.assign(unsorted_taps_);
  }

  // axes_ must hold the axes of box k. num_bins: bins of earlier boxes. Returns the number of bins
  // in the bin rows of the box that read the band.
  int64_t collect_taps_of_box(Range<int32_t> band, int32_t width, int64_t k, int64_t num_bins) {
    const AxisTaps<coord_t>& y = axes_.y;
    const AxisTaps<coord_t>& x = axes_.x;
    const auto index_of = [&](int32_t row) {
      return static_cast<int32_t>(
          std::lower_bound(y.touched.begin(), y.touched.end(), row) - y.touched.begin());
    };
    const Range<int32_t> touched{index_of(band.begin), index_of(band.end)};
    const Range<int32_t> rows = bin_rows_touching(y, touched);
    if (rows.begin == rows.end) {
      return 0;
    }
    bin_rows_.push_back({k, rows});
    const coord_t* prob_map = prob_map_of_box(params_, k, converted_prob_map_);
    BinWeights<coord_t> weights(axes_, prob_map, params_.prob_map_width, weights_);
    const int32_t entries = x.num_entries();
    int64_t bin = num_bins;
    for (int32_t ph = rows.begin; ph < rows.end; ++ph, bin += x.num_bins()) {
      const Range<int32_t> span = y.bin_span[ph];
      const Range<int32_t> here{
          std::max(span.begin, touched.begin), std::min(span.end, touched.end)};
      const coord_t* row_weights = weights.of_bin_row(ph, here);
      for (int32_t row = here.begin; row < here.end; ++row) {
        const int64_t first_pixel = int64_t(y.touched[row] - band.begin) * width;
        const coord_t* pixel_row_weights = row_weights + int64_t(row - span.begin) * entries;
        for (int32_t pw = 0; pw < x.num_bins(); ++pw) {
          const int64_t source = pooled_.is_in_place() ? pooled_.offset(k, ph * x.num_bins() + pw)
                                                       : (bin + pw) * block_;
          const Range<int32_t> columns = x.bin_span[pw];
          unsorted_taps_.add(
              first_pixel, x.touched.data() + columns.begin, columns.end - columns.begin, source,
              pixel_row_weights + x.entry_begin[pw]);
        }
      }
    }
    return bin - num_bins;
  }

  // [bins of bin_rows_][block_]: channels [c, c + channels).
  const acc_t* pack_bins(int64_t c, int32_t channels) {
    const int32_t bins_per_row = params_.options.pooled_width;
    int64_t num_bins = 0;
    for (const BinRows& bin_rows : bin_rows_) {
      num_bins += int64_t(bin_rows.rows.end - bin_rows.rows.begin) * bins_per_row;
    }
    packed_bins_.resize(size_t(num_bins + kernels_.lanes) * block_);
    acc_t* to = packed_bins_.data();
    for (const BinRows& bin_rows : bin_rows_) {
      pooled_.pack(bin_rows.box, bin_rows.rows, c, channels, to, block_);
      to += int64_t(bin_rows.rows.end - bin_rows.rows.begin) * bins_per_row * block_;
    }
    return packed_bins_.data();
  }

  // The taps of one pixel row of the band.
  TapMatrix<acc_t> taps_of_row(int32_t row, int32_t width) const {
    return {
        width, taps_.pixel_begin.data() + int64_t(row) * width, taps_.source.data(),
        taps_.weight.data()};
  }

  // to: first pixel of the band, in the first of the channels.
  void write_pixels(
      const FeatureMap& gradient, int32_t rows, const acc_t* bins, int32_t channels, T* to) const {
    for (int32_t row = 0; row < rows; ++row) {
      kernels_.gather_from_buffer(
          taps_of_row(row, gradient.width), bins, channels, to + row * gradient.row_stride,
          gradient.column_stride);
    }
  }

  // Plane rows are not cache-line aligned, so the rows of a large gradient are transposed in the
  // cache, several at a time, and streamed per channel.
  void write_planes(
      const FeatureMap& gradient, int32_t rows, const acc_t* bins, int32_t channels, T* to) {
    constexpr int64_t kStageBytes = 512 << 10;
    const int64_t width = gradient.width;
    const bool is_dense = gradient.column_stride == 1 && gradient.row_stride == width;
    const bool is_staged = is_dense && is_large_;
    const auto has_taps = [&](int32_t row, int32_t end) {
      return taps_.pixel_begin[row * width] != taps_.pixel_begin[end * width];
    };
    int32_t step = 1;
    if (is_dense && !has_taps(0, rows)) {
      step = rows;
    } else if (is_staged) {
      const int64_t fitting = kStageBytes / (channels * width * int64_t(sizeof(T)));
      step = static_cast<int32_t>(std::clamp<int64_t>(fitting, 1, rows));
    }
    for (int32_t row = 0; row < rows; row += step) {
      const int32_t end = std::min(row + step, rows);
      const size_t bytes = sizeof(T) * (end - row) * width;
      T* first = to + row * gradient.row_stride;
      if (gradient.column_stride == 1 && !has_taps(row, end)) {
        for (int32_t c = 0; c < channels; ++c) {
          void* plane = first + c * gradient.channel_stride;
          if (is_staged) {
            stream_zeros(plane, bytes);
          } else {
            std::memset(plane, 0, bytes);
          }
        }
      } else if (is_staged) {
        const int64_t plane = (end - row) * width;
        stage_.resize(channels * plane);
        for (int32_t r = row; r < end; ++r) {
          write_plane_row(
              taps_of_row(r, gradient.width), bins, channels, stage_.data() + (r - row) * width,
              plane);
        }
        for (int32_t c = 0; c < channels; ++c) {
          stream(first + c * gradient.channel_stride, stage_.data() + c * plane, bytes);
        }
      } else {
        write_plane_row(
            taps_of_row(row, gradient.width), bins, channels, first, gradient.channel_stride);
      }
    }
  }

  void write_plane_row(
      const TapMatrix<acc_t>& taps, const acc_t* bins, int32_t channels, T* to,
      int64_t channel_stride) {
    pixels_.resize(size_t(taps.rows + kernels_.lanes) * block_);
    kernels_.gather_between_buffers(taps, bins, channels, pixels_.data(), block_);
    kernels_.unpack(pixels_.data(), block_, grid_.planes(to, channel_stride, channels));
  }
};

}  // namespace

void feature_gradient(
    const Params& params, const SortedBoxes& sorted, const PooledTensor& grad,
    const FeatureGradients& gradients) {
  if (params.channels == 0) {
    return;
  }
  dispatch(params, [&](auto feature, auto coordinate) {
    using T = decltype(feature);
    using coord_t = decltype(coordinate);
    using Worker = BandGradient<T, coord_t>;
    const BoxSpan<coord_t> boxes(std::get<Boxes<coord_t>>(sorted).sampled);
    const std::vector<Band> bands = plan_bands<T, coord_t>(params, gradients, boxes);
    parallel_dynamic(
        static_cast<int64_t>(bands.size()), [&] { return Worker(params, grad, gradients, boxes); },
        [&](Worker& worker, int64_t i) { worker.compute(bands[i]); });
  });
}

}  // namespace shape_roi_align::cpu
