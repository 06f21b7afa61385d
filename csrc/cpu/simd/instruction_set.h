// The instruction set that the CPU kernels use in this process.
#pragma once

namespace shape_roi_align::cpu {

enum class InstructionSet { kPortable, kAvx2, kAvx512 };  // ascending

// The best instruction set of this processor, or a lower one if SHAPE_ROI_ALIGN_CPU_CAPABILITY
// ("portable", "avx2" or "avx512") names it. An instruction set that the processor lacks has no
// effect. Chosen once per process. Throws std::invalid_argument if the variable holds any other
// nonempty value.
InstructionSet instruction_set();

// "portable", "avx2" or "avx512". Throws like instruction_set().
const char* instruction_set_name();

}  // namespace shape_roi_align::cpu
