// The kernels for any processor, in the compiler's baseline (SSE2 on x86-64, NEON on Arm).
#include <algorithm>
#include <utility>

#include "cpu/simd/kernels.h"

namespace shape_roi_align::cpu {
namespace portable {
#define VECTOR_BYTES 16
#define ACCUMULATORS 8
#include "cpu/simd/kernels.inl"
}  // namespace portable

template <typename T>
const Kernels<T>& portable_kernels() {
  return portable::table<T>();
}

template const Kernels<double>& portable_kernels<double>();
template const Kernels<float>& portable_kernels<float>();
template const Kernels<Half>& portable_kernels<Half>();
template const Kernels<BFloat16>& portable_kernels<BFloat16>();
}  // namespace shape_roi_align::cpu
