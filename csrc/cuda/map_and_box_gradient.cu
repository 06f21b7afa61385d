#include "cuda/jobs.h"
#include "cuda/stream_launcher.h"

namespace shape_roi_align::cuda {

void map_and_box_gradient_on(
    cudaStream_t stream, const Params& params, const PooledTensor& grad,
    const MapAndBoxGradients& gradients, void* scratch) {
  map_and_box_gradient(params, grad, gradients, scratch, LaunchOptions{}, StreamLauncher{stream});
}

}  // namespace shape_roi_align::cuda
