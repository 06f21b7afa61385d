// The jobs of the CUDA operators on a stream. Each job has a source file of its own, so that
// they compile in parallel.
#pragma once

#include <cuda_runtime.h>

#include "cuda/launch.h"
#include "cuda/launch_map_and_box_gradient.h"
#include "cuda/launch_transpose.h"

namespace shape_roi_align::cuda {

// Contracts: launch.h, launch_map_and_box_gradient.h and launch_transpose.h.
void forward_on(cudaStream_t stream, const Params& params, const PooledTensor& output);

void feature_gradient_on(
    cudaStream_t stream, const Params& params, const PooledTensor& grad,
    const FeatureGradients& gradients, void* boxes, void* images, void* bits);

void map_and_box_gradient_on(
    cudaStream_t stream, const Params& params, const PooledTensor& grad,
    const MapAndBoxGradients& gradients, void* scratch);

void transpose_on(cudaStream_t stream, const TransposedCopy& copy, ScalarType type);

}  // namespace shape_roi_align::cuda
