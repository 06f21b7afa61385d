// Storage types of the CUDA kernels and their conversion to the type they are accumulated in.
#pragma once

#ifdef SHAPE_ROI_ALIGN_CUDA_ON_HOST
#include "cuda_on_host.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include <type_traits>

namespace shape_roi_align::cuda {

// f64 accumulates in f64; f32, f16 and bf16 in f32.
template <typename T>
using accumulate_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ inline double load(double value) {
  return value;
}
__device__ inline float load(float value) {
  return value;
}
__device__ inline float load(__half value) {
  return __half2float(value);
}
__device__ inline float load(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

__device__ inline void store(double value, double* to) {
  *to = value;
}
__device__ inline void store(float value, float* to) {
  *to = value;
}
__device__ inline void store(float value, __half* to) {
  *to = __float2half_rn(value);
}
__device__ inline void store(float value, __nv_bfloat16* to) {
  *to = __float2bfloat16_rn(value);
}

}  // namespace shape_roi_align::cuda
