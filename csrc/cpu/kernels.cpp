#include "kernels.h"

#include "capabilities.h"

namespace shape_roi_align::cpu {

template <typename T>
const Kernels<T>& kernels() {
#if defined(__x86_64__)
  switch (capability()) {
    case Capability::kAvx512:
      return avx512_kernels<T>();
    case Capability::kAvx2:
      return avx2_kernels<T>();
    case Capability::kPortable:
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
