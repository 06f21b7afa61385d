// Which instruction set the CPU kernels use.
#pragma once

#include "kernels.h"

namespace shape_roi_align::cpu {

enum class Capability { kPortable, kAvx2, kAvx512 };

// The best of this processor, or the one named by SHAPE_ROI_ALIGN_CPU_CAPABILITY ("portable",
// "avx2", "avx512") if the processor has it. Decided once per process.
Capability capability();
const char* capability_name();

template <typename T>
const Kernels<T>& portable_kernels();
template <typename T>
const Kernels<T>& avx2_kernels();
template <typename T>
const Kernels<T>& avx512_kernels();

}  // namespace shape_roi_align::cpu
