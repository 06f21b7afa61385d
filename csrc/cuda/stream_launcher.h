// A Launcher, as launch.h defines it, for a CUDA stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <string>

#include "cuda/launch_error.h"

namespace shape_roi_align::cuda {

// Throws std::runtime_error.
inline void report_launch_error(cudaError_t error) {
  int device = 0;
  int major = 0;
  int minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  const std::string explanation = explain_launch_error(
      cudaGetErrorName(error), major, minor, SHAPE_ROI_ALIGN_CUDA_ARCHITECTURES);
  STD_TORCH_CHECK(explanation.empty(), explanation);
  STD_CUDA_CHECK(error);
}

struct StreamLauncher {
  cudaStream_t stream;

  template <typename Kernel, typename... Arguments>
  void operator()(
      Kernel kernel, int64_t blocks, int32_t threads, const Arguments&... arguments) const {
    kernel<<<static_cast<unsigned>(blocks), threads, 0, stream>>>(arguments...);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) {
      report_launch_error(error);
    }
  }
};

}  // namespace shape_roi_align::cuda
