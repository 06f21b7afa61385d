// Storage types of the CUDA kernels, and their conversion to and from the accumulate type.
#pragma once

#ifdef SHAPE_ROI_ALIGN_CUDA_ON_HOST
#include "cuda_on_host.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace shape_roi_align::cuda {

// double for f64; float for f32, f16 and bf16.
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

// Adjacent elements that one thread reads or writes in one access, at most 16 bytes.
constexpr int32_t kVectorBytes = 16;
template <typename T>
constexpr int32_t kVectorWidth = kVectorBytes / sizeof(T);

// `width` adjacent elements, not converted: elements of 2 bytes take fewer registers this way.
template <int32_t width, typename T>
struct Vector {
  static_assert(width == kVectorWidth<T>);
  uint4 bits;

  __device__ void load(const T* from) {
    bits = *reinterpret_cast<const uint4*>(from);
  }
  __device__ void convert(accumulate_t<T>* to) const {
    T values[width];
    std::memcpy(static_cast<void*>(values), &bits, sizeof(bits));
#pragma unroll
    for (int32_t i = 0; i < width; ++i) {
      to[i] = cuda::load(values[i]);
    }
  }
};
template <typename T>
struct Vector<1, T> {
  T value;

  __device__ void load(const T* from) {
    value = *from;
  }
  __device__ void convert(accumulate_t<T>* to) const {
    to[0] = cuda::load(value);
  }
};

template <int32_t width, typename T>
__device__ void store_vector(const accumulate_t<T>* from, T* to) {
  if constexpr (width == 1) {
    store(from[0], to);
  } else {
    static_assert(width == kVectorWidth<T>);
    T values[width];
#pragma unroll
    for (int32_t i = 0; i < width; ++i) {
      store(from[i], values + i);
    }
    uint4 bits;
    std::memcpy(&bits, values, sizeof(bits));
    __stcs(reinterpret_cast<uint4*>(to), bits);  // streaming store: keeps features in the caches
  }
}

}  // namespace shape_roi_align::cuda
