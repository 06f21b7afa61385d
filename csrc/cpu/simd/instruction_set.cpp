#include "cpu/simd/instruction_set.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

namespace shape_roi_align::cpu {
namespace {

constexpr const char* kVariable = "SHAPE_ROI_ALIGN_CPU_CAPABILITY";
constexpr const char* kNames[] = {"portable", "avx2", "avx512"};  // indexed by InstructionSet

#if defined(__x86_64__)
// Clang 16 rejects "f16c" in __builtin_cpu_supports.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

InstructionSet best_of_processor() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  return avx512 ? InstructionSet::kAvx512
         : avx2 ? InstructionSet::kAvx2
                : InstructionSet::kPortable;
#else
  return InstructionSet::kPortable;
#endif
}

InstructionSet parse(const std::string& name) {
  const auto found = std::find(std::begin(kNames), std::end(kNames), name);
  if (found == std::end(kNames)) {
    std::string known;
    for (const char* each : kNames) {
      known += (known.empty() ? "" : ", ") + std::string(each);
    }
    throw std::invalid_argument(
        std::string(kVariable) + " must be one of " + known + ", got '" + name + "'");
  }
  return static_cast<InstructionSet>(found - std::begin(kNames));
}

InstructionSet choose() {
  const char* name = std::getenv(kVariable);
  const bool is_set = name != nullptr && *name != '\0';
  return is_set ? std::min(best_of_processor(), parse(name)) : best_of_processor();
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet kChosen = choose();
  return kChosen;
}

const char* instruction_set_name() {
  return kNames[static_cast<int>(instruction_set())];
}

}  // namespace shape_roi_align::cpu
