#include "capabilities.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace shape_roi_align::cpu {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512"};

Capability best_of_processor() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  return avx512 ? Capability::kAvx512 : avx2 ? Capability::kAvx2 : Capability::kPortable;
#else
  return Capability::kPortable;
#endif
}

Capability choose() {
  const Capability best = best_of_processor();
  if (const char* name = std::getenv("SHAPE_ROI_ALIGN_CPU_CAPABILITY")) {
    for (int i = 0; i < 3; ++i) {
      if (std::strcmp(name, kNames[i]) == 0) {
        return std::min(best, static_cast<Capability>(i));
      }
    }
  }
  return best;
}

}  // namespace

Capability capability() {
  static const Capability kChosen = choose();
  return kChosen;
}

const char* capability_name() {
  return kNames[static_cast<int>(capability())];
}

}  // namespace shape_roi_align::cpu
