#include "cuda/jobs.h"
#include "cuda/stream_launcher.h"

namespace shape_roi_align::cuda {

void forward_on(cudaStream_t stream, const Params& params, const PooledTensor& output) {
  forward(params, output, LaunchOptions{}, StreamLauncher{stream});
}

}  // namespace shape_roi_align::cuda
