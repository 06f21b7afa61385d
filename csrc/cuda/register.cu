// The operators on CUDA tensors.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>

#include <cstdint>
#include <utility>

#include "cuda/jobs.h"
#include "operators.h"
#include "results.h"

namespace shape_roi_align {
namespace {

using torch::stable::accelerator::DeviceGuard;

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_counts(const Params& params) {
  STD_TORCH_CHECK(
      cuda::counts_fit(params), "On CUDA the number of boxes, the pixels of an image and ",
      cuda::kLargeBatch, " times the bins of a box must be less than 2^31 - 4096, got ",
      params.num_rois, " boxes of ", params.options.pooled_height, " x ",
      params.options.pooled_width, " bins");
}

Tensor forward_cuda(const CheckedOperands& call) {
  check_counts(call.params);
  const Tensor& input = call.inputs[0];
  const DeviceGuard guard(input.get_device_index());
  Tensor output = empty_output(call);
  cuda::forward_on(current_stream(input), call.params, to_pooled_tensor(output));
  return output;
}

// grad: of the call, with channels innermost.
std::vector<Tensor> feature_gradients(const CheckedBackwardOperands& call, const Tensor& grad) {
  using torch::headeronly::ScalarType::Byte;
  std::vector<Tensor> tensors = empty_feature_gradients(call);
  if (!call.wants_any_input()) {
    return tensors;
  }
  const FeatureGradients gradients = to_feature_gradients(call, tensors);
  const cuda::FeatureGradientPlan scratch(call.params, gradients, cuda::LaunchOptions{});
  // Boxes are zeroed too. Kernels write single members but copy whole boxes, so compute-sanitizer's
  // initcheck would report the uninitialised padding.
  const int64_t bytes = scratch.bytes();
  const Tensor zeroed = empty({bytes}, Byte, grad);
  char* const boxes = static_cast<char*>(zeroed.data_ptr());
  const cudaStream_t stream = current_stream(grad);
  if (bytes > 0) {
    STD_CUDA_CHECK(cudaMemsetAsync(boxes, 0, bytes, stream));
  }
  char* const images = boxes + scratch.boxes;
  cuda::feature_gradient_on(
      stream, call.params, to_pooled_tensor(grad), gradients, boxes, images,
      images + scratch.images);
  return tensors;
}

// Gradients of prob_maps and rois. grad: of the call, in either layout.
std::pair<Tensor, Tensor> map_and_box_gradients(
    const CheckedBackwardOperands& call, const Tensor& grad) {
  using torch::headeronly::ScalarType::Byte;
  const bool wants_prob_maps = call.wants_prob_maps();
  const bool wants_rois = call.wants_rois();
  const auto empty_gradient = [&](bool is_wanted, const Tensor& of) {
    const auto type = of.scalar_type();
    return is_wanted ? empty(size_of(of), type, grad) : no_gradient(type, grad);
  };
  Tensor of_prob_maps =
      empty_gradient(wants_prob_maps, call.prob_maps.has_value() ? *call.prob_maps : call.rois);
  Tensor of_rois = empty_gradient(wants_rois, call.rois);
  if (wants_prob_maps || wants_rois) {
    std::vector<Tensor> copies;
    const Params params = cuda::with_copied_features(
        call.params, {},
        [&](int32_t level) {
          const Tensor& input = call.inputs[level];
          return copies.emplace_back(empty(size_of(input), input.scalar_type(), input)).data_ptr();
        },
        [&](const cuda::TransposedCopy& copy) {
          cuda::transpose_on(current_stream(grad), copy, call.params.feature_type);
        });
    const cuda::MapAndBoxScratch sizes(params, wants_prob_maps, wants_rois, cuda::LaunchOptions{});
    const Tensor scratch = empty({sizes.bytes()}, Byte, grad);
    cuda::map_and_box_gradient_on(
        current_stream(grad), params, to_pooled_tensor(grad),
        {wants_prob_maps ? of_prob_maps.data_ptr() : nullptr,
         wants_rois ? of_rois.data_ptr() : nullptr},
        scratch.data_ptr());
  }
  return {of_prob_maps, of_rois};
}

// A gradient of the output with channels innermost: a copy, or the gradient itself.
Tensor with_channels_innermost(const Tensor& grad, const Params& params) {
  if (has_dense_strides(grad, {1, 3, 2, 0})) {
    return grad;
  }
  Tensor copy = empty(size_of(grad), grad.scalar_type(), grad, MemoryFormat::ChannelsLast);
  cuda::transpose_on(
      current_stream(grad), cuda::copy_of(to_pooled_tensor(grad), params, copy.data_ptr()),
      params.feature_type);
  return copy;
}

Gradients backward_cuda(const CheckedBackwardOperands& call) {
  const Params& params = call.params;
  check_counts(params);
  const DeviceGuard guard(call.grad.get_device_index());
  const bool wants_maps_or_rois = call.wants_prob_maps() || call.wants_rois();
  const bool maps_prefer_channels_innermost =
      cuda::prefers_channels_innermost(params) || cuda::copies_features(params, {});
  const Tensor grad_channels_innermost =
      call.wants_any_input() || (wants_maps_or_rois && maps_prefer_channels_innermost)
          ? with_channels_innermost(call.grad, params)
          : call.grad;
  std::vector<Tensor> grad_inputs = feature_gradients(call, grad_channels_innermost);
  auto [grad_prob_maps, grad_rois] = map_and_box_gradients(
      call, maps_prefer_channels_innermost ? grad_channels_innermost : call.grad);
  return {grad_inputs, grad_prob_maps, grad_rois};
}

}  // namespace
}  // namespace shape_roi_align

STABLE_TORCH_LIBRARY_IMPL(shape_roi_align, CUDA, m) {
  using namespace shape_roi_align;
  m.impl("sa_roi_align", TORCH_BOX(&sa_roi_align<forward_cuda>));
  m.impl("_sa_roi_align_backward", TORCH_BOX(&sa_roi_align_backward<backward_cuda>));
}
