// The operators on CPU tensors.
#include <torch/csrc/stable/library.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

#include "cpu/jobs.h"
#include "cpu/simd/streaming.h"
#include "operators.h"
#include "results.h"

namespace shape_roi_align {
namespace {

// New memory costs one page fault per page. These faults take longer than computing the contents;
// huge pages reduce their number. Allocators map new memory for tensors of this size. If an
// allocator reuses the memory, the advice remains in force.
void advise_huge_pages(const Tensor& tensor) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t end = begin + tensor.numel() * tensor.element_size();
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  if (end - begin >= cpu::kLargeResult) {
    madvise(reinterpret_cast<void*>(first), (end - first) / kPage * kPage, MADV_HUGEPAGE);
  }
#endif
}

Tensor forward_cpu(const CheckedOperands& call) {
  Tensor output = empty_output(call);
  advise_huge_pages(output);
  cpu::forward(call.params, cpu::sort_boxes(call.params), to_pooled_tensor(output));
  return output;
}

Gradients backward_cpu(const CheckedBackwardOperands& call) {
  const Params& params = call.params;
  const auto roi_type = call.rois.scalar_type();
  const bool wants_prob_maps = call.wants_prob_maps();
  const bool wants_rois = call.wants_rois();
  const std::vector<Tensor> grad_inputs = empty_feature_gradients(call);
  for (const Tensor& gradient : grad_inputs) {
    advise_huge_pages(gradient);
  }
  Tensor grad_prob_maps =
      wants_prob_maps ? zeros(size_of(*call.prob_maps), call.prob_maps->scalar_type(), call.rois)
                      : no_gradient(roi_type, call.rois);
  Tensor grad_rois = wants_rois ? zeros(size_of(call.rois), roi_type, call.rois)
                                : no_gradient(roi_type, call.rois);
  if (!call.wants_any_input() && !wants_prob_maps && !wants_rois) {
    return {grad_inputs, grad_prob_maps, grad_rois};
  }
  cpu::SortedBoxes boxes = cpu::sort_boxes(params);
  const PooledTensor grad = to_pooled_tensor(call.grad);
  if (call.wants_any_input()) {
    cpu::feature_gradient(params, boxes, grad, to_feature_gradients(call, grad_inputs));
  }
  if (wants_prob_maps || wants_rois) {
    cpu::map_and_box_gradient(
        params, std::move(boxes), grad, wants_prob_maps ? grad_prob_maps.data_ptr() : nullptr,
        wants_rois ? grad_rois.data_ptr() : nullptr);
  }
  return {grad_inputs, grad_prob_maps, grad_rois};
}

}  // namespace
}  // namespace shape_roi_align

STABLE_TORCH_LIBRARY_IMPL(shape_roi_align, CPU, m) {
  using namespace shape_roi_align;
  m.impl("sa_roi_align", TORCH_BOX(&sa_roi_align<forward_cpu>));
  m.impl("_sa_roi_align_backward", TORCH_BOX(&sa_roi_align_backward<backward_cpu>));
}
