// The instruction set that the CPU kernels use in this process.
#pragma once

namespace shape_roi_align::cpu {

enum class InstructionSet { kPortable, kAvx2, kAvx512 };  // worst first

// The best one of this processor. SHAPE_ROI_ALIGN_CPU_CAPABILITY ("portable", "avx2" or "avx512")
// lowers it; a name that the processor does not support changes nothing. Constant once it has
// returned. Throws std::invalid_argument for any other value but the empty one.
InstructionSet instruction_set();

// "portable", "avx2" or "avx512". Throws like instruction_set().
const char* instruction_set_name();

}  // namespace shape_roi_align::cpu
