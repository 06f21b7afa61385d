// Fuzzes the CPU kernels of the instruction set that SHAPE_ROI_ALIGN_CPU_CAPABILITY names.
#include <torch/csrc/stable/ops.h>

#include <cstdio>
#include <stdexcept>

#include "call.h"
#include "check.h"
#include "cpu/jobs.h"
#include "cpu/simd/instruction_set.h"

using namespace shape_roi_align;

namespace {

constexpr fuzz::Limits kLimits{4000, 26, 40, 8, 70, 40'000, 200'000};

void run(const fuzz::Call& call, const fuzz::Results& results) {
  const Params& params = call.params;
  cpu::forward(params, cpu::sort_boxes(params), fuzz::to_pooled_tensor(results.output));
  cpu::SortedBoxes boxes = cpu::sort_boxes(params);
  const PooledTensor grad = fuzz::to_pooled_tensor(call.grad);
  if (call.asks_any_level()) {
    cpu::feature_gradient(params, boxes, grad, results.feature_gradients(call));
  }
  if (call.asks_prob_maps || call.asks_rois) {
    cpu::map_and_box_gradient(
        params, std::move(boxes), grad, call.asks_prob_maps ? results.prob_maps.data() : nullptr,
        call.asks_rois ? results.rois.data() : nullptr);
  }
}

void run_bad(const fuzz::Call& call) {
  try {
    cpu::sort_boxes(call.params);
  } catch (const std::runtime_error&) {
    return;
  }
  fuzz::fail(call, "a batch index or a level out of range was accepted");
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  std::fprintf(stderr, "instruction set: %s\n", cpu::instruction_set_name());
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Bytes bytes(data, size);
  const uint8_t threads = bytes.byte();
  const fuzz::Call call = fuzz::make_call(bytes, kLimits);
  const auto operands = fuzz::copy_operands(call);
  if (call.has_bad_box) {
    run_bad(call);
    return 0;
  }
  torch::stable::num_threads = 1 + threads % 4;
  const fuzz::Results results(call, true);
  run(call, results);
  fuzz::check_unchanged(call, operands);
  if (threads >= 192) {
    torch::stable::num_threads = 1 + threads % 7;
    const fuzz::Results again(call, true);
    run(call, again);
    fuzz::check_equal(call, results, again);
  }
  fuzz::check_results(call, results);
  return 0;
}
