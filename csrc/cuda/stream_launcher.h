// A Launcher, as launch.h defines it, for a CUDA stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>

#include <cstdint>

namespace shape_roi_align::cuda {

struct StreamLauncher {
  cudaStream_t stream;

  template <typename Kernel, typename... Arguments>
  void operator()(
      Kernel kernel, int64_t blocks, int32_t threads, const Arguments&... arguments) const {
    kernel<<<static_cast<unsigned>(blocks), threads, 0, stream>>>(arguments...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace shape_roi_align::cuda
