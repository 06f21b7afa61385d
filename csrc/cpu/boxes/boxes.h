// The boxes of a call in the order in which the jobs process them.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <tuple>
#include <variant>
#include <vector>

#include "cpu/simd/dispatch.h"
#include "params.h"

namespace shape_roi_align::cpu {

// T: the type of coordinates.
template <typename T>
struct Box {
  int64_t index;  // k
  int32_t level;
  BoxGeometry<T> geometry;
  Range<int32_t> rows;     // of the feature map: a superset of the rows that samples read
  Range<int32_t> columns;  // likewise
};

template <typename T>
using BoxSpan = std::span<const Box<T>>;

template <typename T>
struct Boxes {
  // Sorted by level, image, first row, index, so that consecutive boxes share cached pixels.
  std::vector<Box<T>> sampled;
  std::vector<int64_t> unsampled;  // indices of boxes whose output and gradients are 0
};

// A superset of the rows (or columns) that samples of the axis read; never empty. size: rows (or
// columns) of the feature map, at least 1.
template <typename T>
Range<int32_t> readable(const Axis<T>& axis, int32_t size) {
  const double end = double(axis.start) + double(axis.extent);
  const double error = coordinate_error(axis);
  const double first = std::floor(std::min(double(axis.start), end) - error) - 1;
  const double last = std::ceil(std::max(double(axis.start), end) + error) + 1;
  const int32_t begin = static_cast<int32_t>(std::clamp<double>(first, 0, size - 1));
  return {begin, static_cast<int32_t>(std::clamp<double>(last, begin, size - 1)) + 1};
}

// rois: [K, 5]. Throws on a batch index or level out of range.
template <typename T, typename roi_t>
Boxes<T> sort_boxes(const Params& params, const roi_t* rois) {
  Boxes<T> boxes;
  boxes.sampled.reserve(params.num_rois);
  for (int64_t k = 0; k < params.num_rois; ++k) {
    const roi_t* roi = rois + 5 * k;
    const int64_t level = params.roi_levels == nullptr ? 0 : params.roi_levels[k];
    STD_TORCH_CHECK(
        level >= 0 && level < params.num_levels, "boxes[", k, "] has level ", level, " of ",
        params.num_levels);
    STD_TORCH_CHECK(
        is_batch_index(roi[0], params.num_images), "boxes[", k, "] has batch index ", roi[0],
        ", but input holds ", params.num_images, " images");
    const FeatureMap& feature_map = params.levels[level];
    const BoxGeometry<T> geometry =
        make_box_geometry<T>(roi, T(feature_map.spatial_scale), params.num_images, params.options);
    if (!geometry.valid || !(geometry.share > T(0)) || feature_map.height == 0 ||
        feature_map.width == 0) {
      boxes.unsampled.push_back(k);
      continue;
    }
    boxes.sampled.push_back(
        {k, static_cast<int32_t>(level), geometry, readable(geometry.y, feature_map.height),
         readable(geometry.x, feature_map.width)});
  }
  const auto key = [](const Box<T>& box) {
    return std::tuple(box.level, box.geometry.batch, box.rows.begin, box.index);
  };
  std::sort(boxes.sampled.begin(), boxes.sampled.end(), [&](const Box<T>& a, const Box<T>& b) {
    return key(a) < key(b);
  });
  return boxes;
}

// Boxes<T>, where T is the coordinate type that dispatch(params, f) chooses.
using SortedBoxes = std::variant<Boxes<float>, Boxes<double>>;

inline SortedBoxes sort_boxes(const Params& params) {
  if (params.roi_type == ScalarType::kDouble) {
    return sort_boxes<double>(params, static_cast<const double*>(params.rois));
  }
  const float* rois = static_cast<const float*>(params.rois);
  if (has_double_coordinates(params)) {
    return sort_boxes<double>(params, rois);
  }
  return sort_boxes<float>(params, rois);
}

// The end of the run of boxes, from `begin` on, with the same level and image. begin: below
// boxes.size().
template <typename T>
size_t end_of_image(BoxSpan<T> boxes, size_t begin) {
  size_t end = begin;
  while (end < boxes.size() && boxes[end].level == boxes[begin].level &&
         boxes[end].geometry.batch == boxes[begin].geometry.batch) {
    ++end;
  }
  return end;
}

}  // namespace shape_roi_align::cpu
