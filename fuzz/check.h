// Checks on the results of a call.
#pragma once

#include "call.h"

namespace fuzz {

// Checks that every element is written, that no guard is touched, and that the values match the
// oracle or satisfy the adjoint identity.
void check_results(const Call& call, const Results& results);

// Checks that the results are bitwise equal.
void check_equal(const Call& call, const Results& a, const Results& b);

// operands: from copy_operands(), before the kernels ran.
void check_unchanged(const Call& call, const std::vector<std::vector<uint8_t>>& operands);

}  // namespace fuzz
