// The work items of the gradient of the features: bands of pixel rows.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/boxes/boxes.h"
#include "cpu/boxes/taps_bound.h"
#include "cpu/readers/row_sum_limits.h"
#include "cpu/simd/kernels.h"

namespace shape_roi_align::cpu {

// A range of channels and of pixel rows of one image, and the boxes of that image.
struct Band {
  int32_t level;
  int64_t image;
  Range<int32_t> rows;
  int64_t channel;
  int64_t channels;
  size_t begin;  // of the boxes
  size_t end;
};

// Pixel rows per band such that the band's taps fit in the cache. taps: number over all boxes of
// the image. row_limit: upper limit on the rows.
inline int32_t rows_of_taps(const FeatureMap& gradient, double taps, int64_t row_limit) {
  constexpr double kTapsOfBand = 1 << 16;  // 2 to 3 MB, if boxes are spread evenly
  constexpr int64_t kMaxPixels = 1 << 30;  // per band; pixels are counted in 32 bits
  const double max_rows = double(std::min(row_limit, kMaxPixels / gradient.width));
  return static_cast<int32_t>(
      std::max(std::min(kTapsOfBand * gradient.height / (taps + 1), max_rows), 1.0));
}

// Pixel rows per band such that the band's accumulators stay in the cache. Each band recomputes the
// taps of its boxes, so bands are as tall as the cache and the number of threads allow. More
// threads do not make bands lower than kMinRows.
template <typename T>
int32_t rows_of_row_sums(const Params& params, const FeatureMap& gradient, int64_t row_limit) {
  constexpr int64_t kBandBytes = 1 << 20;
  constexpr int64_t kMinRows = 16;
  const int64_t row_bytes = params.channels * gradient.width * int64_t(sizeof(accumulate_t<T>));
  const int64_t rows = std::min(std::max(row_limit, kMinRows), kBandBytes / row_bytes);
  return static_cast<int32_t>(std::clamp<int64_t>(rows, 1, gradient.height));
}

// Divides all gradients whose data is not null into bands.
template <typename T, typename coord_t>
std::vector<Band> plan_bands(
    const Params& params, const FeatureGradients& gradients, BoxSpan<coord_t> boxes) {
  constexpr int32_t kMaxRows = 16;
  constexpr int64_t kBandsPerThread = 4;  // bounds the idle time of threads at the end
  int64_t total_rows = 0;
  for (int32_t level = 0; level < params.num_levels; ++level) {
    if (gradients.levels[level].data != nullptr) {
      total_rows += params.num_images * gradients.levels[level].height;
    }
  }
  const int64_t wanted = kBandsPerThread * static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t rows_per_band = std::clamp<int64_t>(total_rows / wanted, 4, kMaxRows);
  const int64_t num_bands = std::max<int64_t>(total_rows / rows_per_band, 1);
  const int64_t fewest_channels = 4 * kernels<T>().lanes;  // amortises building a band's taps
  const int64_t channels_per_band = std::max(
      params.channels * num_bands / wanted / fewest_channels * fewest_channels, fewest_channels);

  std::vector<Band> bands;
  size_t begin = 0;
  for (int32_t level = 0; level < params.num_levels; ++level) {
    const FeatureMap& gradient = gradients.levels[level];
    for (int64_t image = 0; image < params.num_images; ++image) {
      size_t end = begin;
      double taps = 0;
      while (end < boxes.size() && boxes[end].level == level &&
             boxes[end].geometry.batch == image) {
        taps += taps_bound(boxes[end++], gradient);
      }
      if (gradient.data != nullptr && gradient.width > 0) {
        const bool by_rows = differentiates_rows_first<T>(params, gradient);
        const int64_t channels = by_rows ? params.channels : channels_per_band;
        const int32_t rows = by_rows ? rows_of_row_sums<T>(params, gradient, total_rows / wanted)
                                     : rows_of_taps(gradient, taps, rows_per_band);
        for (int32_t row = 0; row < gradient.height; row += rows) {
          for (int64_t c = 0; c < params.channels; c += channels) {
            bands.push_back(
                {level,
                 image,
                 {row, std::min(row + rows, gradient.height)},
                 c,
                 std::min(channels, params.channels - c),
                 begin,
                 end});
          }
        }
      }
      begin = end;
    }
  }
  return bands;
}

}  // namespace shape_roi_align::cpu
