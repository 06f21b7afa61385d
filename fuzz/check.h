// What must hold of the results of a call.
#pragma once

#include "call.h"

namespace fuzz {

// Every element is written, no guard is touched, values are those of the oracle or adjoint to one
// another.
void check_results(const Call& call, const Results& results);

// The same bits.
void check_equal(const Call& call, const Results& a, const Results& b);

// operands: of copy_operands() before the kernels ran.
void check_unchanged(const Call& call, const std::vector<std::vector<uint8_t>>& operands);

}  // namespace fuzz
