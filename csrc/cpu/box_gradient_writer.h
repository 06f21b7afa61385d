// Writes the gradients of probability maps and boxes to memory.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/boxes/boxes.h"
#include "cpu/simd/dispatch.h"

namespace shape_roi_align::cpu {

// Sums over samples of d(loss)/d(sample coordinate), unweighted and weighted by u or v.
template <typename T>
struct AxisGradient {
  T sum = 0;
  T times_uv = 0;

  void add(T gradient, T uv) {
    sum += gradient;
    times_uv += gradient * uv;
  }
};

class BoxGradientWriter {
 public:
  // A gradient that is not requested is null.
  BoxGradientWriter(const Params& params, void* grad_prob_maps, void* grad_rois)
      : params_(params), grad_prob_maps_(grad_prob_maps), grad_rois_(grad_rois) {}

  bool wants_prob_maps() const {
    return grad_prob_maps_ != nullptr;
  }
  bool wants_rois() const {
    return grad_rois_ != nullptr;
  }

  // gradient: [prob_map_height, prob_map_width]
  template <typename T>
  void write_prob_map(int64_t k, const std::vector<T>& gradient) const {
    dispatch(params_.prob_map_type, [&](auto instance) {
      using prob_map_t = decltype(instance);
      prob_map_t* to =
          static_cast<prob_map_t*>(grad_prob_maps_) + k * static_cast<int64_t>(gradient.size());
      for (const T value : gradient) {
        store(static_cast<accumulate_t<prob_map_t>>(value), to++);
      }
    });
  }

  template <typename T>
  void write_box(
      const Box<T>& box, const AxisGradient<T>& along_y, const AxisGradient<T>& along_x) const {
    if (params_.roi_type == ScalarType::kDouble) {
      write_box(box, along_y, along_x, static_cast<double*>(grad_rois_) + 5 * box.index);
    } else {
      write_box(box, along_y, along_x, static_cast<float*>(grad_rois_) + 5 * box.index);
    }
  }

 private:
  const Params& params_;
  void* grad_prob_maps_;
  void* grad_rois_;

  // grad_roi: [5] = (batch index, x1, y1, x2, y2).
  template <typename T, typename roi_t>
  void write_box(
      const Box<T>& box, const AxisGradient<T>& along_y, const AxisGradient<T>& along_x,
      roi_t* grad_roi) const {
    const T scale = static_cast<T>(params_.levels[box.level].spatial_scale);
    write_axis(box.geometry.x, along_x, scale, grad_roi + 1, grad_roi + 3);
    write_axis(box.geometry.y, along_y, scale, grad_roi + 2, grad_roi + 4);
  }

  // coordinate = edge1 * scale - offset + uv * extent, where extent = (edge2 - edge1) * scale
  // unless the extent is fixed at the minimum size.
  template <typename T, typename roi_t>
  static void write_axis(
      const Axis<T>& axis, const AxisGradient<T>& gradient, T scale, roi_t* edge1, roi_t* edge2) {
    const T extent_gradient = axis.extent_varies ? gradient.times_uv : T(0);
    *edge1 = static_cast<roi_t>(scale * (gradient.sum - extent_gradient));
    *edge2 = static_cast<roi_t>(scale * extent_gradient);
  }
};

}  // namespace shape_roi_align::cpu
