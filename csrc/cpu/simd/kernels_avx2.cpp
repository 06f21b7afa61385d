// The kernels for x86-64 processors with AVX2, FMA and F16C (2013 and later).
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <utility>

#include "cpu/simd/kernels.h"

// After the includes: only functions of this file may use the instruction set.
// clang-format off
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
// clang-format on

namespace shape_roi_align::cpu {
namespace avx2 {
#define VECTOR_BYTES 32
#define ACCUMULATORS 8
#include "cpu/simd/kernels.inl"
}  // namespace avx2
}  // namespace shape_roi_align::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace shape_roi_align::cpu {
template <typename T>
const Kernels<T>& avx2_kernels() {
  return avx2::table<T>();
}

template const Kernels<double>& avx2_kernels<double>();
template const Kernels<float>& avx2_kernels<float>();
template const Kernels<Half>& avx2_kernels<Half>();
template const Kernels<BFloat16>& avx2_kernels<BFloat16>();
}  // namespace shape_roi_align::cpu
#endif
