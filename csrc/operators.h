// The signatures with which the dispatcher calls the operators on every device. Only this file and
// schema.cpp list the operands.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "tensor_arguments.h"

namespace shape_roi_align {

// Gradients of inputs (L), prob_maps and rois. A gradient that is not requested has shape [0].
using Gradients = std::tuple<std::vector<Tensor>, Tensor, Tensor>;

template <Tensor (*forward)(const CheckedOperands&)>
Tensor sa_roi_align(
    const std::vector<Tensor>& inputs, const Tensor& rois, const std::optional<Tensor>& levels,
    const std::optional<Tensor>& prob_maps, const std::vector<double>& spatial_scales,
    int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned,
    bool map_aligned, bool average) {
  return forward(CheckedOperands(
      {inputs, rois, levels, prob_maps, spatial_scales, pooled_height, pooled_width, sampling_ratio,
       aligned, map_aligned, average}));
}

template <Gradients (*backward)(const CheckedBackwardOperands&)>
Gradients sa_roi_align_backward(
    const Tensor& grad, const std::vector<Tensor>& inputs, const Tensor& rois,
    const std::optional<Tensor>& levels, const std::optional<Tensor>& prob_maps,
    const std::vector<double>& spatial_scales, int64_t pooled_height, int64_t pooled_width,
    int64_t sampling_ratio, bool aligned, bool map_aligned, bool average,
    const std::vector<bool>& output_mask) {
  return backward(CheckedBackwardOperands(
      grad,
      {inputs, rois, levels, prob_maps, spatial_scales, pooled_height, pooled_width, sampling_ratio,
       aligned, map_aligned, average},
      output_mask));
}

}  // namespace shape_roi_align
