// What forward and backward do with the boxes of a call: geometry, order, probability map, dynamic
// scheduling.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <vector>

#include "cpu/simd/kernels.h"
#include "cpu/taps.h"
#include "params.h"

namespace shape_roi_align::cpu {

// Coordinates in double where features or boxes are, else in float.
template <typename T, typename box_t>
using coordinate_t =
    std::conditional_t<std::is_same_v<T, double> || std::is_same_v<box_t, double>, double, float>;

template <typename T>
struct Box {
  int64_t index;  // k
  int32_t level;
  bool is_sampled;  // false: output and gradients are 0
  BoxGeometry<T> geometry;
  Range<int32_t> rows;     // of the feature map: those that samples may read are among them
  Range<int32_t> columns;  // likewise
};

// Calls f(type instance) with the storage type named by `type`.
template <typename F>
void dispatch(ScalarType type, F f) {
  switch (type) {
    case ScalarType::kDouble:
      return f(double{});
    case ScalarType::kFloat:
      return f(float{});
    case ScalarType::kHalf:
      return f(Half{});
    case ScalarType::kBFloat16:
      return f(BFloat16{});
  }
}

// f(feature type instance, box type instance)
template <typename F>
void dispatch(const Params& params, F f) {
  dispatch(params.feature_type, [&](auto feature) {
    if (params.roi_type == ScalarType::kDouble) {
      f(feature, double{});
    } else {
      f(feature, float{});
    }
  });
}

// Cells of a map of `size` >= 1 cells that samples of the axis may read, at least one.
template <typename T>
Range<int32_t> readable_cells(const Axis<T>& axis, int32_t size) {
  const double end = double(axis.start) + double(axis.extent);
  const double error = coordinate_error(axis);
  const double first = std::floor(std::min(double(axis.start), end) - error) - 1;
  const double last = std::ceil(std::max(double(axis.start), end) + error) + 1;
  const int32_t begin = static_cast<int32_t>(std::clamp<double>(first, 0, size - 1));
  return {begin, static_cast<int32_t>(std::clamp<double>(last, begin, size - 1)) + 1};
}

// All boxes, sorted by level, image and first row so that neighbours share cache. Throws on a batch
// index or level out of range.
template <typename T, typename box_t>
std::vector<Box<T>> sorted_boxes(const Params& params) {
  const auto* rois = static_cast<const box_t*>(params.rois);
  std::vector<Box<T>> boxes;
  boxes.reserve(params.num_rois);
  for (int64_t k = 0; k < params.num_rois; ++k) {
    const box_t* roi = rois + 5 * k;
    const int64_t level = params.roi_levels == nullptr ? 0 : params.roi_levels[k];
    STD_TORCH_CHECK(
        level >= 0 && level < params.num_levels, "boxes[", k, "] has level ", level, " of ",
        params.num_levels);
    STD_TORCH_CHECK(
        is_batch_index(roi[0], params.num_images), "boxes[", k, "] has batch index ", roi[0],
        ", but input holds ", params.num_images, " images");
    const FeatureMap& map = params.levels[level];
    const BoxGeometry<T> geometry =
        make_box_geometry<T>(roi, T(map.spatial_scale), params.num_images, params.options);
    const bool is_sampled =
        geometry.valid && geometry.inverse_count > T(0) && map.height > 0 && map.width > 0;
    Box<T> box{k, static_cast<int32_t>(level), is_sampled, geometry, {0, 0}, {0, 0}};
    if (is_sampled) {
      box.rows = readable_cells(geometry.y, map.height);
      box.columns = readable_cells(geometry.x, map.width);
    }
    boxes.push_back(box);
  }
  const auto key = [](const Box<T>& box) {
    return std::tuple(box.level, box.geometry.batch, box.rows.begin, box.index);
  };
  std::sort(boxes.begin(), boxes.end(), [&](const Box<T>& a, const Box<T>& b) {
    return key(a) < key(b);
  });
  return boxes;
}

// The probability map of box k as T[map_height, map_width]; null without maps. `converted` keeps it
// alive.
template <typename T>
const T* map_of_box(const Params& params, int64_t k, std::vector<T>& converted) {
  if (params.prob_maps == nullptr) {
    return nullptr;
  }
  const int64_t cells = int64_t(params.map_height) * params.map_width;
  const T* map = nullptr;
  dispatch(params.map_type, [&](auto instance) {
    using map_t = decltype(instance);
    const map_t* from = static_cast<const map_t*>(params.prob_maps) + k * cells;
    if constexpr (std::is_same_v<map_t, T>) {
      map = from;
    } else {
      converted.resize(cells);
      std::transform(from, from + cells, converted.begin(), [](map_t value) {
        return static_cast<T>(load(value));
      });
      map = converted.data();
    }
  });
  return map;
}

template <typename T, typename weight_t>
void build_axes(const Params& params, const Box<T>& box, BoxTaps<T, weight_t>& taps) {
  constexpr int64_t kMaxTaps = 1 << 30;  // they are counted in 32 bits
  const FeatureMap& map = params.levels[box.level];
  taps.build_axes(
      box.geometry, map.height, map.width, params.map_height, params.map_width,
      params.options.map_aligned);
  STD_TORCH_CHECK(
      taps.num_taps() <= kMaxTaps, "boxes[", box.index, "] needs more than ", kMaxTaps,
      " weights of pixels in its bins");
}

// A bound on the pixels along an axis, each counted for every bin that it is in.
template <typename T>
double pixels_along(const Axis<T>& axis, int32_t size) {
  const double per_bin =
      std::min(2.0 * axis.samples, std::fabs(double(axis.extent)) / axis.bins + 3.0);
  return std::min(axis.bins * per_bin, size + 3.0 * axis.bins);
}

// A bound on the taps of a box, cheap enough to plan memory by.
template <typename T>
double taps_bound(const Box<T>& box, const FeatureMap& map) {
  return pixels_along(box.geometry.y, map.height) * pixels_along(box.geometry.x, map.width);
}

// f(worker state, i) for i in [0, n), balanced dynamically. Which thread serves i must not matter.
// make_state() makes one state per thread.
template <typename MakeState, typename F>
void parallel_dynamic(int64_t n, MakeState make_state, F f) {
  const int64_t threads = std::min<int64_t>(n, torch::stable::get_num_threads());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      auto state = make_state();
      for (int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) {
        f(state, i);
      }
    }
  });
}

}  // namespace shape_roi_align::cpu
