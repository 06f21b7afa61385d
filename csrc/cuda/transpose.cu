#include "cuda/jobs.h"
#include "cuda/stream_launcher.h"

namespace shape_roi_align::cuda {

void transpose_on(cudaStream_t stream, const TransposedCopy& copy, ScalarType type) {
  transpose(copy, type, LaunchOptions{}, StreamLauncher{stream});
}

}  // namespace shape_roi_align::cuda
