#include "cuda/jobs.h"
#include "cuda/stream_launcher.h"

namespace shape_roi_align::cuda {

void feature_gradient_on(
    cudaStream_t stream, const Params& params, const PooledTensor& grad,
    const FeatureGradients& gradients, void* boxes, void* images, void* bits) {
  feature_gradient(
      params, grad, gradients, boxes, images, bits, LaunchOptions{}, StreamLauncher{stream});
}

}  // namespace shape_roi_align::cuda
