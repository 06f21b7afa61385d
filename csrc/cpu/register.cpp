// The operators on CPU tensors.
#include <torch/csrc/stable/library.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <tuple>

#include "cpu/jobs.h"
#include "cpu/simd/streaming.h"
#include "tensor_arguments.h"

namespace shape_roi_align {
namespace {

// Fresh memory costs a page fault per page, more than what is computed into it. Allocators map
// tensors of this size afresh; where one keeps the memory, the advice stays with it.
Tensor on_huge_pages(Tensor tensor) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t end = begin + tensor.numel() * tensor.element_size();
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  if (end - begin >= cpu::kLargeResult) {
    madvise(reinterpret_cast<void*>(first), (end - first) / kPage * kPage, MADV_HUGEPAGE);
  }
#endif
  return tensor;
}

Tensor sa_roi_align_forward_cpu(
    const std::vector<Tensor>& inputs, const Tensor& rois, const std::optional<Tensor>& levels,
    const std::optional<Tensor>& prob_maps, const std::vector<double>& spatial_scales,
    int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned,
    bool map_aligned) {
  const Call call = check_call(
      inputs, rois, levels, prob_maps, spatial_scales, pooled_height, pooled_width, sampling_ratio,
      aligned, map_aligned);
  const Params& params = call.params;
  Tensor output = on_huge_pages(empty(
      {params.num_rois, params.channels, pooled_height, pooled_width}, inputs[0].scalar_type(),
      inputs[0], output_memory_format(inputs)));
  cpu::forward(params, to_pooled_map(output));
  return output;
}

std::tuple<std::vector<Tensor>, Tensor, Tensor> sa_roi_align_backward_cpu(
    const Tensor& grad, const std::vector<Tensor>& inputs, const Tensor& rois,
    const std::optional<Tensor>& levels, const std::optional<Tensor>& prob_maps,
    const std::vector<double>& spatial_scales, int64_t pooled_height, int64_t pooled_width,
    int64_t sampling_ratio, bool aligned, bool map_aligned, const std::vector<bool>& output_mask) {
  const Call call = check_call(
      inputs, rois, levels, prob_maps, spatial_scales, pooled_height, pooled_width, sampling_ratio,
      aligned, map_aligned);
  const Params& params = call.params;
  check_backward(params, grad, inputs[0], output_mask);
  const PooledMap pooled = to_pooled_map(grad);
  const size_t num_levels = inputs.size();

  std::vector<Tensor> grad_inputs;
  std::vector<FeatureMap> maps(num_levels);
  bool any = false;
  for (size_t l = 0; l < num_levels; ++l) {
    const Tensor& input = inputs[l];
    if (!output_mask[l]) {
      grad_inputs.push_back(empty({0}, input.scalar_type(), input));
      continue;
    }
    any = true;
    grad_inputs.push_back(
        on_huge_pages(empty(size_of(input), input.scalar_type(), input, memory_format_of(input))));
    maps[l] = to_feature_map(grad_inputs.back(), spatial_scales[l]);
  }
  if (any) {
    cpu::feature_gradient(params, pooled, maps.data());
  }

  const bool wants_maps = output_mask[num_levels] && prob_maps.has_value();
  const bool wants_rois = output_mask[num_levels + 1];
  const auto roi_type = rois.scalar_type();
  Tensor grad_maps = wants_maps ? zeros(size_of(*prob_maps), prob_maps->scalar_type(), rois)
                                : empty({0}, roi_type, rois);
  Tensor grad_rois = wants_rois ? zeros(size_of(rois), roi_type, rois) : empty({0}, roi_type, rois);
  if (wants_maps || wants_rois) {
    cpu::map_and_box_gradient(
        params, pooled, wants_maps ? grad_maps.data_ptr() : nullptr,
        wants_rois ? grad_rois.data_ptr() : nullptr);
  }
  return {grad_inputs, grad_maps, grad_rois};
}

}  // namespace
}  // namespace shape_roi_align

STABLE_TORCH_LIBRARY_IMPL(shape_roi_align, CPU, m) {
  m.impl("sa_roi_align", TORCH_BOX(&shape_roi_align::sa_roi_align_forward_cpu));
  m.impl("_sa_roi_align_backward", TORCH_BOX(&shape_roi_align::sa_roi_align_backward_cpu));
}
