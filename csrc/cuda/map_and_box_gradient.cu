#include "cuda/jobs.h"
#include "cuda/stream_launcher.h"

namespace shape_roi_align::cuda {

void map_and_box_gradient_on(
    cudaStream_t stream, const Params& params, const PooledTensor& grad, void* grad_prob_maps,
    void* grad_rois) {
  map_and_box_gradient(
      params, grad, grad_prob_maps, grad_rois, LaunchOptions{}, StreamLauncher{stream});
}

}  // namespace shape_roi_align::cuda
