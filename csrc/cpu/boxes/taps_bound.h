// Cheap upper bounds on the number of taps of a box, for planning memory and work.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/boxes/boxes.h"

namespace shape_roi_align::cpu {

// Bound on the number of rows (or columns) that a bin touches, summed over bins. size: of the
// feature map.
template <typename T>
double entries_bound(const Axis<T>& axis, int32_t size) {
  const double per_bin =
      std::min(2.0 * axis.samples, std::fabs(double(axis.extent)) / axis.bins + 3.0);
  return std::min(axis.bins * per_bin, size + 3.0 * axis.bins);
}

template <typename T>
double taps_bound(const Box<T>& box, const FeatureMap& feature_map) {
  return entries_bound(box.geometry.y, feature_map.height) *
         entries_bound(box.geometry.x, feature_map.width);
}

}  // namespace shape_roi_align::cpu
