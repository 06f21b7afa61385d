// Fuzzes the CUDA kernels, run on the host, as launch.h configures them.
#include "cuda_on_host.h"

#include "call.h"
#include "check.h"
#include "cuda/launch_map_and_box_gradient.h"
#include "cuda/launch_transpose.h"

using namespace shape_roi_align;

namespace {

// A block of threads emulated on the host takes about a hundred times as long as a plain loop.
constexpr fuzz::Limits kLimits{300, 7, 9, 4, 3, 5'000, 20'000};

struct HostLauncher {
  template <typename Kernel, typename... Arguments>
  void operator()(
      Kernel kernel, int64_t blocks, int32_t threads, const Arguments&... arguments) const {
    cuda_on_host::launch({static_cast<unsigned>(blocks)}, {static_cast<unsigned>(threads)}, [&] {
      kernel(arguments...);
    });
  }
};

cuda::LaunchOptions make_options(fuzz::Bytes& bytes) {
  constexpr int32_t kThreads[] = {cuda::kWarp, cuda::kWarp, cuda::kWarp, 2 * cuda::kWarp};
  constexpr int64_t kBlocks[] = {1, 3, cuda::kMaxBlocks, cuda::kMaxBlocks};
  constexpr int64_t kWantedBlocks[] = {1, 1, 2, 8};
  constexpr int64_t kScratch[] = {0, 100, 16 << 20, 16 << 20};
  cuda::LaunchOptions options;
  const uint8_t shape = bytes.byte();
  options.threads = kThreads[shape % 4];
  options.blocks = kBlocks[shape / 4 % 4];
  options.wanted_blocks = kWantedBlocks[shape / 16 % 4];
  options.scratch = kScratch[shape / 64];
  const uint8_t few = bytes.byte();
  options.few_channels = few % 2 == 0 ? cuda::kWarp : 0;
  options.few_boxes = few / 2 % 2 == 0 ? cuda::kBoxesPerWord : 0;
  cuda_on_host::order = static_cast<cuda_on_host::Order>(few / 4 % 3);
  options.copied = few / 12 % 2 == 0 ? options.copied : 0;
  return options;
}

fuzz::Block zeroed(int64_t bytes) {
  fuzz::Block block(bytes);
  std::memset(block.data(), 0, bytes);
  return block;
}

// Dense tensors with channels innermost, as the operator allocates them.
fuzz::Tensor with_channels_innermost(const fuzz::Tensor& like) {
  return {like.type, like.sizes, fuzz::dense_strides(like.sizes, fuzz::kChannelsLast)};
}

void run(const fuzz::Call& call, const fuzz::Results& results, const cuda::LaunchOptions& options) {
  const Params& params = call.params;
  const HostLauncher launch;
  const auto transpose = [&](const cuda::TransposedCopy& copy) {
    cuda::transpose(copy, params.feature_type, options, launch);
  };
  cuda::forward(params, fuzz::to_pooled_tensor(results.output), options, launch);
  const fuzz::Tensor channels_last = with_channels_innermost(call.grad);
  const PooledTensor grad = fuzz::to_pooled_tensor(channels_last);
  transpose(cuda::copy_of(fuzz::to_pooled_tensor(call.grad), params, grad.data));
  if (call.asks_any_level()) {
    const FeatureGradients gradients = results.feature_gradients(call);
    const cuda::FeatureGradientPlan plan(params, gradients, options);
    const fuzz::Block boxes(plan.boxes);
    const fuzz::Block images = zeroed(plan.images);
    const fuzz::Block bits = zeroed(plan.bits);
    cuda::feature_gradient(
        params, grad, gradients, boxes.data(), images.data(), bits.data(), options, launch);
  }
  if (call.asks_prob_maps || call.asks_rois) {
    std::vector<fuzz::Tensor> copies;
    const auto allocate = [&](int32_t level) {
      return copies.emplace_back(with_channels_innermost(call.inputs[level])).data();
    };
    const Params copied = cuda::with_copied_features(params, options, allocate, transpose);
    const cuda::MapAndBoxScratch sizes(copied, call.asks_prob_maps, call.asks_rois, options);
    const fuzz::Block scratch(sizes.bytes());
    cuda::map_and_box_gradient(
        copied, cuda::prefers_channels_innermost(copied) ? grad : fuzz::to_pooled_tensor(call.grad),
        {call.asks_prob_maps ? results.prob_maps.data() : nullptr,
         call.asks_rois ? results.rois.data() : nullptr},
        scratch.data(), options, launch);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Bytes bytes(data, size);
  const cuda::LaunchOptions options = make_options(bytes);
  const fuzz::Call call = fuzz::make_call(bytes, kLimits);
  const auto operands = fuzz::copy_operands(call);
  const fuzz::Results results(call, false);
  run(call, results, options);
  fuzz::check_unchanged(call, operands);
  fuzz::check_results(call, results);
  return 0;
}
