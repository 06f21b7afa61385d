// Checks the operators' arguments and converts them to Params, for forward and backward on all
// devices.
//
// The Python functions detect user errors and raise typed errors. The checks here prevent direct
// calls of the operators (C++, AOTInductor) from reading out of bounds; STD_TORCH_CHECK raises
// RuntimeError.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "memory_format.h"
#include "params.h"

namespace shape_roi_align {

inline ScalarType to_scalar_type(torch::headeronly::ScalarType type, const char* name) {
  switch (type) {
    case torch::headeronly::ScalarType::Double:
      return ScalarType::kDouble;
    case torch::headeronly::ScalarType::Float:
      return ScalarType::kFloat;
    case torch::headeronly::ScalarType::Half:
      return ScalarType::kHalf;
    case torch::headeronly::ScalarType::BFloat16:
      return ScalarType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, name, " must be float64, float32, float16 or bfloat16");
  }
}

inline FeatureMap to_feature_map(const Tensor& tensor, double spatial_scale) {
  return {
      tensor.data_ptr(),
      tensor.stride(0),
      tensor.stride(1),
      tensor.stride(2),
      tensor.stride(3),
      static_cast<int32_t>(tensor.size(2)),
      static_cast<int32_t>(tensor.size(3)),
      spatial_scale};
}

inline PooledTensor to_pooled_tensor(const Tensor& tensor) {
  return {
      tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

// The operands of both operators, named as in the schemas.
struct Operands {
  const std::vector<Tensor>& inputs;          // L x [N, C, H_l, W_l]
  const Tensor& rois;                         // [K, 5]
  const std::optional<Tensor>& levels;        // [K]
  const std::optional<Tensor>& prob_maps;     // [K, Mh, Mw]
  const std::vector<double>& spatial_scales;  // L
  int64_t pooled_height;
  int64_t pooled_width;
  int64_t sampling_ratio;
  bool aligned;
  bool map_aligned;
  bool average;
};

// Checked operands.
class CheckedOperands {
 public:
  Params params{};
  const std::vector<Tensor>& inputs;
  const Tensor& rois;
  const std::optional<Tensor>& prob_maps;

  // The operands must outlive this object.
  explicit CheckedOperands(const Operands& operands)
      : inputs(operands.inputs), rois(operands.rois), prob_maps(operands.prob_maps) {
    set_options(operands);
    STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, "rois must have shape [K, 5]");
    set_inputs(operands.spatial_scales);
    set_rois();
    set_levels(operands.levels);
    if (prob_maps.has_value()) {
      set_prob_maps(*prob_maps);
    }
  }

 private:
  static constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

  // Own the memory that params points to.
  std::optional<Tensor> contiguous_rois_;
  std::optional<Tensor> contiguous_levels_;
  std::optional<Tensor> contiguous_prob_maps_;

  void set_options(const Operands& operands) {
    const int64_t num_levels = static_cast<int64_t>(operands.inputs.size());
    STD_TORCH_CHECK(
        num_levels >= 1 && num_levels <= kMaxLevels, "inputs must hold 1 to ", kMaxLevels,
        " feature maps, got ", num_levels);
    STD_TORCH_CHECK(
        static_cast<int64_t>(operands.spatial_scales.size()) == num_levels,
        "spatial_scales must hold one scale per feature map, ", num_levels, ", got ",
        operands.spatial_scales.size());
    STD_TORCH_CHECK(
        operands.pooled_height >= 1 && operands.pooled_width >= 1 &&
            operands.pooled_height <= kMaxInt32 / operands.pooled_width,
        "output_size must be at least 1 in both directions, got ", operands.pooled_height, " x ",
        operands.pooled_width);
    STD_TORCH_CHECK(
        operands.sampling_ratio <= (1 << 15), "sampling_ratio must be at most ", 1 << 15, ", got ",
        operands.sampling_ratio);
    params.options = {
        static_cast<int32_t>(operands.pooled_height),
        static_cast<int32_t>(operands.pooled_width),
        static_cast<int32_t>(operands.sampling_ratio > 0 ? operands.sampling_ratio : -1),
        operands.aligned,
        operands.map_aligned,
        operands.average};
  }

  void set_inputs(const std::vector<double>& spatial_scales) {
    const Tensor& first = inputs[0];
    STD_TORCH_CHECK(
        first.dim() == 4, "inputs[0] must have shape [N, C, H, W], got ", first.dim(),
        " dimensions");
    params.num_levels = static_cast<int32_t>(inputs.size());
    params.num_images = first.size(0);
    params.channels = first.size(1);
    params.feature_type = to_scalar_type(first.scalar_type(), "inputs");
    for (size_t l = 0; l < inputs.size(); ++l) {
      const Tensor& input = inputs[l];
      STD_TORCH_CHECK(
          input.dim() == 4, "inputs[", l, "] must have shape [N, C, H, W], got ", input.dim(),
          " dimensions");
      STD_TORCH_CHECK(
          input.size(0) == params.num_images && input.size(1) == params.channels, "inputs[", l,
          "] must have ", params.num_images, " images of ", params.channels,
          " channels like inputs[0], got ", input.size(0), " of ", input.size(1));
      STD_TORCH_CHECK(input.scalar_type() == first.scalar_type(), "inputs must have one dtype");
      STD_TORCH_CHECK(input.device() == first.device(), "inputs must be on one device");
      STD_TORCH_CHECK(
          input.size(2) < kMaxInt32 && input.size(3) < kMaxInt32, "inputs[", l,
          "] is too high or too wide");
      params.levels[l] = to_feature_map(input, spatial_scales[l]);
    }
  }

  void set_rois() {
    params.num_rois = rois.size(0);
    params.roi_type = to_scalar_type(rois.scalar_type(), "rois");
    STD_TORCH_CHECK(
        params.roi_type == ScalarType::kDouble || params.roi_type == ScalarType::kFloat,
        "rois must be float64 or float32");
    STD_TORCH_CHECK(rois.device() == inputs[0].device(), "rois must be on the device of inputs");
    contiguous_rois_ = as_contiguous(rois);
    params.rois = contiguous_rois_->data_ptr();
  }

  void set_levels(const std::optional<Tensor>& levels) {
    if (!levels.has_value()) {
      STD_TORCH_CHECK(inputs.size() == 1, "levels is required with more than one feature map");
      return;
    }
    STD_TORCH_CHECK(
        levels->dim() == 1 && levels->size(0) == params.num_rois,
        "levels must have shape [K] with K=", params.num_rois, " boxes");
    STD_TORCH_CHECK(
        levels->scalar_type() == torch::headeronly::ScalarType::Long, "levels must be int64");
    STD_TORCH_CHECK(
        levels->device() == inputs[0].device(), "levels must be on the device of inputs");
    contiguous_levels_ = as_contiguous(*levels);
    params.roi_levels = static_cast<const int64_t*>(contiguous_levels_->data_ptr());
  }

  void set_prob_maps(const Tensor& maps) {
    STD_TORCH_CHECK(
        maps.dim() == 3 && maps.size(0) == params.num_rois,
        "prob_maps must have shape [K, Mh, Mw] with K=", params.num_rois, " boxes");
    STD_TORCH_CHECK(
        maps.size(1) >= 1 && maps.size(2) >= 1 && maps.size(1) < kMaxInt32 &&
            maps.size(2) < kMaxInt32,
        "prob_maps must have at least one cell in both directions");
    STD_TORCH_CHECK(
        maps.device() == inputs[0].device(), "prob_maps must be on the device of inputs");
    params.prob_map_type = to_scalar_type(maps.scalar_type(), "prob_maps");
    contiguous_prob_maps_ = as_contiguous(maps);
    params.prob_maps = contiguous_prob_maps_->data_ptr();
    params.prob_map_height = static_cast<int32_t>(maps.size(1));
    params.prob_map_width = static_cast<int32_t>(maps.size(2));
  }
};

// Checked operands of the backward operator.
class CheckedBackwardOperands : public CheckedOperands {
 public:
  const Tensor& grad;  // [K, C, PH, PW]

  // output_mask: which gradients are requested. One entry per feature map, then prob_maps, then
  // rois.
  CheckedBackwardOperands(
      const Tensor& grad, const Operands& operands, const std::vector<bool>& output_mask)
      : CheckedOperands(operands), grad(grad), output_mask_(output_mask) {
    const Tensor& input = inputs[0];
    STD_TORCH_CHECK(
        grad.dim() == 4 && grad.size(0) == params.num_rois && grad.size(1) == params.channels &&
            grad.size(2) == params.options.pooled_height &&
            grad.size(3) == params.options.pooled_width,
        "grad must have the shape of the output, [K, C, PH, PW]");
    STD_TORCH_CHECK(
        grad.scalar_type() == input.scalar_type(), "grad must have the dtype of inputs");
    STD_TORCH_CHECK(grad.device() == input.device(), "grad must be on the device of inputs");
    STD_TORCH_CHECK(
        static_cast<int64_t>(output_mask.size()) == params.num_levels + 2, "output_mask must have ",
        params.num_levels + 2, " entries, got ", output_mask.size());
  }

  bool wants_input(size_t level) const {
    return output_mask_[level];
  }
  bool wants_any_input() const {
    return std::find(output_mask_.begin(), output_mask_.end() - 2, true) != output_mask_.end() - 2;
  }
  bool wants_prob_maps() const {
    return output_mask_[inputs.size()] && prob_maps.has_value();
  }
  bool wants_rois() const {
    return output_mask_[inputs.size() + 1];
  }

 private:
  const std::vector<bool>& output_mask_;
};

}  // namespace shape_roi_align
