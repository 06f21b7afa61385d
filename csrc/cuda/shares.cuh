// Partial gradients of the probability maps and of the boxes, one per share of a box, and the
// kernel that sums them.
#pragma once

#include "cuda/block.cuh"
#include "params.h"

namespace shape_roi_align::cuda {

// Where the blocks of a launch write: each share of a box has its own gradients. Only the cells
// [first_cell, first_cell + cells) of the maps are written.
template <typename T>
struct ShareGradients {
  T* prob_maps;  // [shares, K, cells], or null
  T* rois;       // [shares, K, 5], or null
  int64_t first_cell;
  int64_t cells;
};

// A gradient and its partial sums, one per share.
struct SharesOfGradient {
  void* sums;      // [shares, size]
  void* gradient;  // [size] of `type`
  ScalarType type;
  int64_t size;  // 0: nothing to do
};

template <typename T>
__device__ void store_as(ScalarType type, T value, void* gradient, int64_t i) {
  switch (type) {
    case ScalarType::kDouble:
      return store(static_cast<double>(value), static_cast<double*>(gradient) + i);
    case ScalarType::kFloat:
      return store(static_cast<float>(value), static_cast<float*>(gradient) + i);
    case ScalarType::kHalf:
      return store(static_cast<float>(value), static_cast<__half*>(gradient) + i);
    case ScalarType::kBFloat16:
      return store(static_cast<float>(value), static_cast<__nv_bfloat16*>(gradient) + i);
  }
}

// Called by all threads of the grid.
template <typename T>
__device__ void sum_shares(const SharesOfGradient& of, int32_t shares) {
  const T* sums = static_cast<const T*>(of.sums);
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
#pragma unroll 1
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < of.size; i += step) {
    T sum = sums[i];
#pragma unroll 8  // loads of several shares are in flight
    for (int32_t share = 1; share < shares; ++share) {
      sum += sums[share * of.size + i];
    }
    store_as(of.type, sum, of.gradient, i);
  }
}

// Adds the shares of both gradients in a fixed order, in T, and rounds each sum once.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads) sum_shares_kernel(
    const __grid_constant__ SharesOfGradient prob_maps,
    const __grid_constant__ SharesOfGradient rois, const int32_t shares) {
  sum_shares<T>(prob_maps, shares);
  sum_shares<T>(rois, shares);
}

}  // namespace shape_roi_align::cuda
