// The operators on CUDA tensors.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../checks.h"
#include "launch.h"

namespace shape_roi_align {
namespace {

class StreamLauncher {
 public:
  explicit StreamLauncher(const Tensor& tensor) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename Kernel, typename... Arguments>
  void operator()(
      Kernel kernel, int64_t blocks, int32_t threads, const Arguments&... arguments) const {
    kernel<<<static_cast<unsigned>(blocks), threads, 0, stream_>>>(arguments...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  cudaStream_t stream_;
};

torch::headeronly::ScalarType torch_type(ScalarType type) {
  return type == ScalarType::kDouble ? torch::headeronly::ScalarType::Double
                                     : torch::headeronly::ScalarType::Float;
}

Tensor sa_roi_align_forward_cuda(
    const std::vector<Tensor>& inputs,          // L x [N, C, H_l, W_l]
    const Tensor& rois,                         // [K, 5]
    const std::optional<Tensor>& levels,        // [K]
    const std::optional<Tensor>& prob_maps,     // [K, Mh, Mw]
    const std::vector<double>& spatial_scales,  // L
    int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned,
    bool map_aligned) {
  const Call call = check_call(
      inputs, rois, levels, prob_maps, spatial_scales, pooled_height, pooled_width, sampling_ratio,
      aligned, map_aligned);
  const Params& params = call.params;
  const torch::stable::accelerator::DeviceGuard guard(inputs[0].get_device_index());
  Tensor output = empty(
      {params.num_rois, params.channels, pooled_height, pooled_width}, inputs[0].scalar_type(),
      inputs[0], output_memory_format(inputs));
  cuda::forward(params, to_pooled_map(output), cuda::LaunchOptions{}, StreamLauncher(inputs[0]));
  return output;
}

// Gradients of the feature maps, each in the layout of its map; shape [0] where not asked for.
std::vector<Tensor> feature_gradients(
    const Params& params, const Tensor& grad, const std::vector<Tensor>& inputs,
    const std::vector<double>& spatial_scales, const std::vector<bool>& output_mask,
    bool deterministic) {
  const StreamLauncher launch(grad);
  const auto type = inputs[0].scalar_type();
  // Gathered gradients are summed in registers; scattered ones in memory, hence in the accumulate
  // type.
  const bool is_half =
      params.feature_type == ScalarType::kHalf || params.feature_type == ScalarType::kBFloat16;
  const auto sum_type = is_half ? torch::headeronly::ScalarType::Float : type;
  std::vector<Tensor> gradients;
  cuda::FeatureGradients maps{};
  bool is_asked = false;
  for (size_t l = 0; l < inputs.size(); ++l) {
    if (!output_mask[l]) {
      gradients.push_back(empty({0}, type, grad));
      continue;
    }
    is_asked = true;
    const std::vector<int64_t> size = size_of(inputs[l]);
    const MemoryFormat format = memory_format_of(inputs[l]);
    gradients.push_back(
        deterministic ? empty(size, type, grad, format) : zeros(size, sum_type, grad, format));
    maps.levels[l] = to_feature_map(gradients[l], spatial_scales[l]);
  }
  if (is_asked && deterministic) {
    const Tensor footprints = empty(
        {params.num_rois * static_cast<int64_t>(sizeof(cuda::BoxFootprint))},
        torch::headeronly::ScalarType::Byte, grad);
    cuda::gather_feature_gradient(
        params, to_pooled_map(grad), maps, static_cast<cuda::BoxFootprint*>(footprints.data_ptr()),
        cuda::LaunchOptions{}, launch);
  } else if (is_asked) {
    cuda::scatter_feature_gradient(
        params, to_pooled_map(grad), maps, cuda::LaunchOptions{}, launch);
    for (Tensor& gradient : gradients) {
      gradient = torch::stable::to(gradient, type);
    }
  }
  return gradients;
}

std::tuple<std::vector<Tensor>, Tensor, Tensor> sa_roi_align_backward_cuda(
    const Tensor& grad,                         // [K, C, PH, PW]
    const std::vector<Tensor>& inputs,          // L x [N, C, H_l, W_l]
    const Tensor& rois,                         // [K, 5]
    const std::optional<Tensor>& levels,        // [K]
    const std::optional<Tensor>& prob_maps,     // [K, Mh, Mw]
    const std::vector<double>& spatial_scales,  // L
    int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned,
    bool map_aligned,
    const std::vector<bool>& output_mask,  // L + 2: each map of inputs, prob_maps, rois
    bool deterministic) {
  const Call call = check_call(
      inputs, rois, levels, prob_maps, spatial_scales, pooled_height, pooled_width, sampling_ratio,
      aligned, map_aligned);
  const Params& params = call.params;
  check_backward(params, grad, inputs[0], output_mask);
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  std::vector<Tensor> grad_inputs =
      feature_gradients(params, grad, inputs, spatial_scales, output_mask, deterministic);

  const auto type = torch_type(cuda::coordinate_type(params));
  const bool wants_maps = output_mask[inputs.size()] && prob_maps.has_value();
  const bool wants_rois = output_mask[inputs.size() + 1];
  Tensor grad_maps = wants_maps ? zeros(size_of(*prob_maps), type, grad) : empty({0}, type, grad);
  Tensor grad_rois = wants_rois ? empty(size_of(rois), type, grad) : empty({0}, type, grad);
  if (wants_maps || wants_rois) {
    cuda::map_and_box_gradient(
        params, to_pooled_map(grad), wants_maps ? grad_maps.data_ptr() : nullptr,
        wants_rois ? grad_rois.data_ptr() : nullptr, cuda::LaunchOptions{}, StreamLauncher(grad));
  }
  if (prob_maps.has_value()) {
    grad_maps = torch::stable::to(grad_maps, prob_maps->scalar_type());
  }
  return {grad_inputs, grad_maps, torch::stable::to(grad_rois, rois.scalar_type())};
}

}  // namespace
}  // namespace shape_roi_align

STABLE_TORCH_LIBRARY_IMPL(shape_roi_align, CUDA, m) {
  m.impl("sa_roi_align", TORCH_BOX(&shape_roi_align::sa_roi_align_forward_cuda));
  m.impl("_sa_roi_align_backward", TORCH_BOX(&shape_roi_align::sa_roi_align_backward_cuda));
}
