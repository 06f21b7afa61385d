// Allocates the tensors of results and of feature gradients.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "memory_format.h"
#include "tensor_arguments.h"

namespace shape_roi_align {

// On the device of `like`.
inline Tensor empty(
    const std::vector<int64_t>& size, torch::headeronly::ScalarType type, const Tensor& like,
    MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty(size, type, std::nullopt, like.device(), std::nullopt, format);
}

inline Tensor zeros(
    const std::vector<int64_t>& size, torch::headeronly::ScalarType type, const Tensor& like) {
  Tensor tensor = empty(size, type, like);
  torch::stable::zero_(tensor);
  return tensor;
}

inline std::vector<int64_t> size_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

// Placeholder of shape [0] for a gradient that is not requested.
inline Tensor no_gradient(torch::headeronly::ScalarType type, const Tensor& like) {
  return empty({0}, type, like);
}

// [K, C, PH, PW], uninitialised.
inline Tensor empty_output(const CheckedOperands& call) {
  const Params& params = call.params;
  const Tensor& input = call.inputs[0];
  return empty(
      {params.num_rois, params.channels, params.options.pooled_height, params.options.pooled_width},
      input.scalar_type(), input, output_memory_format(call.inputs));
}

// L tensors: uninitialised gradients in the layouts of the feature maps, or no_gradient.
inline std::vector<Tensor> empty_feature_gradients(const CheckedBackwardOperands& call) {
  std::vector<Tensor> gradients;
  for (size_t l = 0; l < call.inputs.size(); ++l) {
    const Tensor& input = call.inputs[l];
    gradients.push_back(
        call.wants_input(l)
            ? empty(size_of(input), input.scalar_type(), input, gradient_memory_format(input))
            : no_gradient(input.scalar_type(), input));
  }
  return gradients;
}

// gradients: what empty_feature_gradients returned.
inline FeatureGradients to_feature_gradients(
    const CheckedBackwardOperands& call, const std::vector<Tensor>& gradients) {
  FeatureGradients result{};
  for (size_t l = 0; l < gradients.size(); ++l) {
    if (call.wants_input(l)) {
      result.levels[l] = to_feature_map(gradients[l], call.params.levels[l].spatial_scale);
    }
  }
  return result;
}

}  // namespace shape_roi_align
