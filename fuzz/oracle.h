// The operators as scalar loops in double, from the formula in params.h. Coordinates of samples are
// rounded as geometry.h says, in the type of coordinates: they decide which pixels a sample reads.
// Shares no code with the kernels but the conversion of 16-bit types.
#pragma once

#include <cstdint>
#include <vector>

#include "call.h"

namespace fuzz {

// An element of a result.
struct Expected {
  double value = 0;
  double magnitude = 0;  // sum of the absolute values of its terms
  int64_t terms = 0;
};

// In the order of the elements of contiguous tensors.
struct ExpectedResults {
  std::vector<Expected> output;
  std::vector<std::vector<Expected>> features;
  std::vector<Expected> prob_maps;
  std::vector<Expected> rois;
};

ExpectedResults expect(const Call& call);

// Steps that the oracle would take for a call; at least as many as samples that read pixels.
double oracle_steps(const Params& params);

}  // namespace fuzz
