// The operators on CUDA tensors.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/on_stream.h"
#include "tensor_arguments.h"

namespace shape_roi_align {
namespace {

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

torch::headeronly::ScalarType torch_type(ScalarType type) {
  return type == ScalarType::kDouble ? torch::headeronly::ScalarType::Double
                                     : torch::headeronly::ScalarType::Float;
}

void check_counts(const Params& params) {
  STD_TORCH_CHECK(
      cuda::counts_fit(params), "On CUDA the number of boxes, the pixels of an image and ",
      cuda::kBatch, " times the bins of a box must be less than 2^31 - 4096, got ", params.num_rois,
      " boxes of ", params.options.pooled_height, " x ", params.options.pooled_width, " bins");
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
  check_counts(params);
  const torch::stable::accelerator::DeviceGuard guard(inputs[0].get_device_index());
  Tensor output = empty(
      {params.num_rois, params.channels, pooled_height, pooled_width}, inputs[0].scalar_type(),
      inputs[0], output_memory_format(inputs));
  cuda::forward_on(current_stream(inputs[0]), params, to_pooled_map(output));
  return output;
}

// Gradients of the feature maps, each in the layout of its map; shape [0] where not asked for.
// grad: channels are innermost.
std::vector<Tensor> feature_gradients(
    const Params& params, const Tensor& grad, const std::vector<Tensor>& inputs,
    const std::vector<double>& spatial_scales, const std::vector<bool>& output_mask) {
  using torch::headeronly::ScalarType::Byte;
  std::vector<Tensor> gradients;
  cuda::FeatureGradients maps{};
  bool wants_any = false;
  for (size_t l = 0; l < inputs.size(); ++l) {
    const auto type = inputs[l].scalar_type();
    if (output_mask[l]) {
      gradients.push_back(empty(size_of(inputs[l]), type, grad, memory_format_of(inputs[l])));
      maps.levels[l] = to_feature_map(gradients[l], spatial_scales[l]);
      wants_any = true;
    } else {
      gradients.push_back(empty({0}, type, grad));
    }
  }
  if (!wants_any) {
    return gradients;
  }
  const cuda::FeatureGradientScratch scratch(params, maps, cuda::LaunchOptions{});
  // The boxes too: kernels write their members and copy them whole, and compute-sanitizer's
  // initcheck would report the padding.
  const Tensor zeroed = zeros({scratch.boxes + scratch.images + scratch.bits}, Byte, grad);
  char* const boxes = static_cast<char*>(zeroed.data_ptr());
  char* const images = boxes + scratch.boxes;
  cuda::feature_gradient_on(
      current_stream(grad), params, to_pooled_map(grad), maps, boxes, images,
      images + scratch.images);
  return gradients;
}

// Gradients of the maps and the boxes, shape [0] where not asked for.
std::tuple<Tensor, Tensor> map_and_box_gradients(
    const Params& params, const Tensor& grad, const Tensor& rois,
    const std::optional<Tensor>& prob_maps, bool wants_maps, bool wants_rois) {
  const auto type = torch_type(cuda::coordinate_type(params));
  const int64_t shares = cuda::map_and_box_shares(params, cuda::LaunchOptions{});
  const auto with_shares = [&](const Tensor& like) {
    std::vector<int64_t> size = size_of(like);
    size.insert(size.begin(), shares);
    return size;
  };
  Tensor of_maps = wants_maps ? zeros(with_shares(*prob_maps), type, grad) : empty({0}, type, grad);
  Tensor of_rois = wants_rois ? empty(with_shares(rois), type, grad) : empty({0}, type, grad);
  if (wants_maps || wants_rois) {
    cuda::map_and_box_gradient_on(
        current_stream(grad), params, to_pooled_map(grad),
        wants_maps ? of_maps.data_ptr() : nullptr, wants_rois ? of_rois.data_ptr() : nullptr);
  }
  const auto add_shares = [&](const Tensor& of_shares, bool is_wanted, const Tensor& like) {
    const Tensor sum = !is_wanted    ? of_shares
                       : shares == 1 ? torch::stable::select(of_shares, 0, 0)
                                     : torch::stable::sum(of_shares, {{0}});
    return torch::stable::to(sum, like.scalar_type());
  };
  return {
      prob_maps.has_value() ? add_shares(of_maps, wants_maps, *prob_maps) : of_maps,
      add_shares(of_rois, wants_rois, rois)};
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
    const std::vector<bool>& output_mask) {  // L + 2: each map of inputs, prob_maps, rois
  const Call call = check_call(
      inputs, rois, levels, prob_maps, spatial_scales, pooled_height, pooled_width, sampling_ratio,
      aligned, map_aligned);
  const Params& params = call.params;
  check_backward(params, grad, inputs[0], output_mask);
  check_counts(params);
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const bool wants_features =
      std::find(output_mask.begin(), output_mask.end() - 2, true) != output_mask.end() - 2;
  const bool wants_maps = output_mask[inputs.size()] && prob_maps.has_value();
  const bool wants_rois = output_mask[inputs.size() + 1];
  const bool reads_by_channels = cuda::prefers_channels_innermost(params);
  const bool by_channels = wants_features || ((wants_maps || wants_rois) && reads_by_channels);
  const Tensor grad_by_channels =
      by_channels ? torch::stable::contiguous(grad, MemoryFormat::ChannelsLast) : grad;
  std::vector<Tensor> grad_inputs =
      feature_gradients(params, grad_by_channels, inputs, spatial_scales, output_mask);
  auto [grad_maps, grad_rois] = map_and_box_gradients(
      params, reads_by_channels ? grad_by_channels : grad, rois, prob_maps, wants_maps, wants_rois);
  return {grad_inputs, grad_maps, grad_rois};
}

}  // namespace
}  // namespace shape_roi_align

STABLE_TORCH_LIBRARY_IMPL(shape_roi_align, CUDA, m) {
  m.impl("sa_roi_align", TORCH_BOX(&shape_roi_align::sa_roi_align_forward_cuda));
  m.impl("_sa_roi_align_backward", TORCH_BOX(&shape_roi_align::sa_roi_align_backward_cuda));
}
