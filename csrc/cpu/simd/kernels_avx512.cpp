// The kernels for x86-64 processors with AVX-512 F, BW, DQ and VL.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <utility>

#include "cpu/simd/kernels.h"

// After the includes: only functions of this file may use the instruction set.
// clang-format off
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif
// clang-format on

namespace shape_roi_align::cpu {
namespace avx512 {
#define VECTOR_BYTES 64
#define ACCUMULATORS 16
#include "cpu/simd/kernels.inl"
}  // namespace avx512
}  // namespace shape_roi_align::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace shape_roi_align::cpu {
template <typename T>
const Kernels<T>& avx512_kernels() {
  return avx512::table<T>();
}

template const Kernels<double>& avx512_kernels<double>();
template const Kernels<float>& avx512_kernels<float>();
template const Kernels<Half>& avx512_kernels<Half>();
template const Kernels<BFloat16>& avx512_kernels<BFloat16>();
}  // namespace shape_roi_align::cpu
#endif
