// Checks of the operators' arguments and their translation to Params, shared by forward and
// backward and by the devices.  The Python functions have checked what a user can get wrong and
// raised typed errors; these checks keep a direct call of the operators (C++, AOTInductor) from
// reading out of bounds. STD_TORCH_CHECK raises RuntimeError.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <optional>
#include <vector>

#include "params.h"

namespace shape_roi_align {

using torch::headeronly::MemoryFormat;
using torch::stable::Tensor;

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

// Whether strides are exactly those of a dense tensor whose dimensions, innermost first, are
// `order`. Dimensions of one element do not count.
inline bool has_dense_strides(const Tensor& tensor, const std::array<int64_t, 4>& order) {
  int64_t expected = 1;
  for (const int64_t dim : order) {
    if (tensor.size(dim) != 1 && tensor.stride(dim) != expected) {
      return false;
    }
    expected *= tensor.size(dim);
  }
  return true;
}

inline bool is_contiguous(const Tensor& tensor) {
  return tensor.numel() == 0 || has_dense_strides(tensor, {3, 2, 1, 0});
}

// channels_last and not contiguous as well.
inline bool prefers_channels_last(const Tensor& tensor) {
  return !is_contiguous(tensor) && has_dense_strides(tensor, {1, 3, 2, 0});
}

// Asked first: a call through the dispatcher costs as much as a small box.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline MemoryFormat memory_format_of(const Tensor& tensor) {
  return prefers_channels_last(tensor) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline MemoryFormat output_memory_format(const std::vector<Tensor>& inputs) {
  for (const Tensor& input : inputs) {
    if (!prefers_channels_last(input)) {
      return MemoryFormat::Contiguous;
    }
  }
  return MemoryFormat::ChannelsLast;
}

// On the device of `like`.
inline Tensor empty(
    const std::vector<int64_t>& size, torch::headeronly::ScalarType type, const Tensor& like,
    MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty(size, type, std::nullopt, like.device(), std::nullopt, format);
}

inline Tensor zeros(
    const std::vector<int64_t>& size, torch::headeronly::ScalarType type, const Tensor& like,
    MemoryFormat format = MemoryFormat::Contiguous) {
  Tensor tensor = empty(size, type, like, format);
  torch::stable::zero_(tensor);
  return tensor;
}

inline std::vector<int64_t> size_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

inline FeatureMap to_feature_map(const Tensor& tensor, double spatial_scale) {
  FeatureMap map;
  map.data = tensor.data_ptr();
  map.image_stride = tensor.stride(0);
  map.channel_stride = tensor.stride(1);
  map.row_stride = tensor.stride(2);
  map.column_stride = tensor.stride(3);
  map.height = static_cast<int32_t>(tensor.size(2));
  map.width = static_cast<int32_t>(tensor.size(3));
  map.spatial_scale = spatial_scale;
  return map;
}

inline PooledMap to_pooled_map(const Tensor& tensor) {
  return {
      tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

// Params and the contiguous tensors its pointers lead to.
struct Call {
  Params params;
  Tensor rois;
  std::optional<Tensor> levels;
  std::optional<Tensor> prob_maps;
};

inline Call check_call(
    const std::vector<Tensor>& inputs,          // L x [N, C, H_l, W_l]
    const Tensor& rois,                         // [K, 5]
    const std::optional<Tensor>& levels,        // [K]
    const std::optional<Tensor>& prob_maps,     // [K, Mh, Mw]
    const std::vector<double>& spatial_scales,  // L
    int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned,
    bool map_aligned) {
  constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
  const int64_t num_levels = static_cast<int64_t>(inputs.size());
  STD_TORCH_CHECK(
      num_levels >= 1 && num_levels <= kMaxLevels, "inputs must hold 1 to ", kMaxLevels,
      " feature maps, got ", num_levels);
  STD_TORCH_CHECK(
      static_cast<int64_t>(spatial_scales.size()) == num_levels,
      "spatial_scales must hold one scale per feature map, ", num_levels, ", got ",
      spatial_scales.size());
  STD_TORCH_CHECK(
      pooled_height >= 1 && pooled_width >= 1 && pooled_height <= kMaxInt32 / pooled_width,
      "output_size must be at least 1 in both directions, got ", pooled_height, " x ",
      pooled_width);
  STD_TORCH_CHECK(
      sampling_ratio <= (1 << 15), "sampling_ratio must be at most ", 1 << 15, ", got ",
      sampling_ratio);
  STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, "rois must have shape [K, 5]");
  const Tensor& first = inputs[0];
  STD_TORCH_CHECK(
      first.dim() == 4, "inputs[0] must have shape [N, C, H, W], got ", first.dim(), " dimensions");

  Call call{Params{}, as_contiguous(rois), std::nullopt, std::nullopt};
  Params& params = call.params;
  params.num_levels = static_cast<int32_t>(num_levels);
  params.num_images = first.size(0);
  params.channels = first.size(1);
  params.num_rois = rois.size(0);
  params.feature_type = to_scalar_type(first.scalar_type(), "inputs");
  for (int64_t l = 0; l < num_levels; ++l) {
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

  params.roi_type = to_scalar_type(rois.scalar_type(), "rois");
  STD_TORCH_CHECK(
      params.roi_type == ScalarType::kDouble || params.roi_type == ScalarType::kFloat,
      "rois must be float64 or float32");
  STD_TORCH_CHECK(rois.device() == first.device(), "rois must be on the device of inputs");
  params.rois = call.rois.data_ptr();

  if (levels.has_value()) {
    STD_TORCH_CHECK(
        levels->dim() == 1 && levels->size(0) == params.num_rois,
        "levels must have shape [K] with K=", params.num_rois, " boxes");
    STD_TORCH_CHECK(
        levels->scalar_type() == torch::headeronly::ScalarType::Long, "levels must be int64");
    STD_TORCH_CHECK(levels->device() == first.device(), "levels must be on the device of inputs");
    call.levels = as_contiguous(*levels);
    params.roi_levels = static_cast<const int64_t*>(call.levels->data_ptr());
  } else {
    STD_TORCH_CHECK(num_levels == 1, "levels is required with more than one feature map");
  }

  if (prob_maps.has_value()) {
    STD_TORCH_CHECK(
        prob_maps->dim() == 3 && prob_maps->size(0) == params.num_rois,
        "prob_maps must have shape [K, Mh, Mw] with K=", params.num_rois, " boxes");
    STD_TORCH_CHECK(
        prob_maps->size(1) >= 1 && prob_maps->size(2) >= 1 && prob_maps->size(1) < kMaxInt32 &&
            prob_maps->size(2) < kMaxInt32,
        "prob_maps must have at least one cell in both directions");
    STD_TORCH_CHECK(
        prob_maps->device() == first.device(), "prob_maps must be on the device of inputs");
    params.map_type = to_scalar_type(prob_maps->scalar_type(), "prob_maps");
    call.prob_maps = as_contiguous(*prob_maps);
    params.prob_maps = call.prob_maps->data_ptr();
    params.map_height = static_cast<int32_t>(prob_maps->size(1));
    params.map_width = static_cast<int32_t>(prob_maps->size(2));
  }

  params.options = {
      static_cast<int32_t>(pooled_height), static_cast<int32_t>(pooled_width),
      static_cast<int32_t>(sampling_ratio > 0 ? sampling_ratio : -1), aligned, map_aligned};
  return call;
}

// Of the backward alone: grad is [K, C, PH, PW], output_mask has one entry per feature map, then
// prob_maps, then rois.
inline void check_backward(
    const Params& params, const Tensor& grad, const Tensor& input,
    const std::vector<bool>& output_mask) {
  STD_TORCH_CHECK(
      grad.dim() == 4 && grad.size(0) == params.num_rois && grad.size(1) == params.channels &&
          grad.size(2) == params.options.pooled_height &&
          grad.size(3) == params.options.pooled_width,
      "grad must have the shape of the output, [K, C, PH, PW]");
  STD_TORCH_CHECK(grad.scalar_type() == input.scalar_type(), "grad must have the dtype of inputs");
  STD_TORCH_CHECK(grad.device() == input.device(), "grad must be on the device of inputs");
  STD_TORCH_CHECK(
      static_cast<int64_t>(output_mask.size()) == params.num_levels + 2, "output_mask must have ",
      params.num_levels + 2, " entries, got ", output_mask.size());
}

}  // namespace shape_roi_align
