// Decides when few channels are processed rows first (readers/row_sums.h). The order of summation
// differs from the other readers', so the decision depends only on channels, layout, map and number
// of bins. Limits are fitted to timings with AVX-512 and AVX2.
#pragma once

#include <cstdint>

#include "cpu/layout/element_rows.h"
#include "cpu/simd/kernels.h"

namespace shape_roi_align::cpu {

// Whether a row fills enough lanes. Interleaved channels fill the lanes together.
template <typename T>
bool fills_lanes(const Params& params, const ElementRows& rows) {
  const int64_t lanes_of_row = int64_t(params.options.pooled_width) * rows.interleaved;
  const int32_t lanes = kernels<T>().lanes;
  return rows.exist() &&
         (rows.interleaved > 1 ? lanes_of_row >= 2 * lanes : 4 * lanes_of_row >= lanes);
}

constexpr int64_t kMaxChannelsWithoutPermutes = 3;

// Whether boxes of a level are pooled rows first.
template <typename T>
bool pools_rows_first(const Params& params, const FeatureMap& feature_map) {
  const ElementRows rows = element_rows(feature_map, params.channels);
  const bool has_map = params.prob_maps != nullptr;
  const bool is_wide = params.options.pooled_width > kernels<T>().lanes;
  int64_t max_channels = kMaxChannelsWithoutPermutes;
  if (kernels<T>().look_up != nullptr && rows.interleaved > 1) {
    max_channels = !has_map ? 8 : is_wide ? 6 : 4;
  } else if (kernels<T>().look_up != nullptr) {
    max_channels = !has_map ? 32 : is_wide ? 15 : 8;
  }
  return params.channels <= max_channels && fills_lanes<T>(params, rows);
}

// Whether the gradients of a level (features, maps and boxes) are computed rows first.
template <typename T>
bool differentiates_rows_first(const Params& params, const FeatureMap& feature_map) {
  const ElementRows rows = element_rows(feature_map, params.channels);
  int64_t max_channels = kMaxChannelsWithoutPermutes;
  if (kernels<T>().look_up != nullptr) {
    max_channels = rows.interleaved > 1 ? 8 : 15;
  }
  return params.channels <= max_channels && fills_lanes<T>(params, rows);
}

// The arrangement of channels in the lanes. With a probability map, each channel is a plane, so
// that all channels share the weights of the samples. Without a map, channels stay as they are
// stored.
inline ElementRows lanes_of_channels(const Params& params, const FeatureMap& feature_map) {
  const ElementRows rows = element_rows(feature_map, params.channels);
  return params.prob_maps == nullptr ? rows : ElementRows{1, static_cast<int32_t>(params.channels)};
}

}  // namespace shape_roi_align::cpu
