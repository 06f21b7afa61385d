// Explains why this build cannot launch a kernel on this machine, and how to fix it.
#pragma once

#include <string>

namespace shape_roi_align::cuda {

// name: from cudaGetErrorName. major, minor: the GPU's compute capability. architectures: the
// build's targets, as in TORCH_CUDA_ARCH_LIST. Returns an empty string for other errors.
inline std::string explain_launch_error(
    const std::string& name, int major, int minor, const std::string& architectures) {
  const std::string capability = std::to_string(major) + '.' + std::to_string(minor);
  const std::string gpu = "a GPU of compute capability " + capability;
  const std::string rebuild =
      "Build for this GPU, in the source folder: SHAPE_ROI_ALIGN_CUDA=1 TORCH_CUDA_ARCH_LIST=" +
      capability + " pip install --force-reinstall --no-deps --no-build-isolation .";
  if (name == "cudaErrorNoKernelImageForDevice") {
    return "shape_roi_align has no CUDA kernels for " + gpu + ": they were built for " +
           architectures + ". " + rebuild;
  }
  if (name == "cudaErrorUnsupportedPtxVersion" || name == "cudaErrorInvalidPtx" ||
      name == "cudaErrorJitCompilerNotFound") {
    return "shape_roi_align has only PTX for " + gpu +
           ", which the driver here cannot compile: kernels were built for " + architectures +
           ". Update the driver. Or: " + rebuild;
  }
  if (name == "cudaErrorInsufficientDriver") {
    return "The CUDA driver is older than the toolkit that built shape_roi_align. Update the "
           "driver. Or build with an older toolkit.";
  }
  return {};
}

}  // namespace shape_roi_align::cuda
