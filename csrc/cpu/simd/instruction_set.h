// The instruction set that the CPU kernels use in this process.
#pragma once

namespace shape_roi_align::cpu {

enum class InstructionSet { kPortable, kAvx2, kAvx512 };  // worst first

// The best instruction set of this processor. SHAPE_ROI_ALIGN_CPU_CAPABILITY ("portable", "avx2" or
// "avx512") lowers it; a name that the processor does not support has no effect. The first result
// is kept for the life of the process. Throws std::invalid_argument if the variable has any other
// value, except the empty string.
InstructionSet instruction_set();

// "portable", "avx2" or "avx512". Throws like instruction_set().
const char* instruction_set_name();

}  // namespace shape_roi_align::cpu
