#include "cpu/simd/kernels.h"

#include "cpu/simd/instruction_set.h"

namespace shape_roi_align::cpu {

template <typename T>
const Kernels<T>& kernels() {
#if defined(__x86_64__)
  switch (instruction_set()) {
    case InstructionSet::kAvx512:
      return avx512_kernels<T>();
    case InstructionSet::kAvx2:
      return avx2_kernels<T>();
    case InstructionSet::kPortable:
      break;
  }
#endif
  return portable_kernels<T>();
}

template const Kernels<double>& kernels<double>();
template const Kernels<float>& kernels<float>();
template const Kernels<Half>& kernels<Half>();
template const Kernels<BFloat16>& kernels<BFloat16>();

}  // namespace shape_roi_align::cpu
