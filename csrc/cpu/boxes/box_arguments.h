// The axes and the probability map of one box, from the arguments of a call.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/boxes/boxes.h"
#include "cpu/simd/dispatch.h"
#include "cpu/taps/axis_taps.h"

namespace shape_roi_align::cpu {

template <typename T>
void assign_axes(const Params& params, const Box<T>& box, BoxAxes<T>& axes) {
  constexpr int64_t kMaxTaps = 1 << 30;  // counted in 32 bits
  const FeatureMap& feature_map = params.levels[box.level];
  axes.assign(
      box.geometry, feature_map.height, feature_map.width, params.prob_map_height,
      params.prob_map_width, params.options.map_aligned);
  STD_TORCH_CHECK(
      axes.num_taps() <= kMaxTaps, "boxes[", box.index, "] needs more than ", kMaxTaps,
      " weights, one per bin and pixel");
}

// T[prob_map_height, prob_map_width] of box k, or null without prob_maps. Points into prob_maps or
// into `converted`.
template <typename T>
const T* prob_map_of_box(const Params& params, int64_t k, std::vector<T>& converted) {
  if (params.prob_maps == nullptr) {
    return nullptr;
  }
  const int64_t cells = int64_t(params.prob_map_height) * params.prob_map_width;
  const T* prob_map = nullptr;
  dispatch(params.prob_map_type, [&](auto instance) {
    using prob_map_t = decltype(instance);
    const prob_map_t* from = static_cast<const prob_map_t*>(params.prob_maps) + k * cells;
    if constexpr (std::is_same_v<prob_map_t, T>) {
      prob_map = from;
    } else {
      converted.resize(cells);
      std::transform(from, from + cells, converted.begin(), [](prob_map_t value) {
        return static_cast<T>(load(value));
      });
      prob_map = converted.data();
    }
  });
  return prob_map;
}

}  // namespace shape_roi_align::cpu
