// The operators as scalar loops in double, from the formula in params.h. Only the coordinates of
// samples are rounded as in geometry.h, in the coordinate type, because they decide which pixels a
// sample reads. The only code shared with the kernels is the conversion of 16-bit types.
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

// Elements are in the order of contiguous tensors.
struct ExpectedResults {
  std::vector<Expected> output;
  std::vector<std::vector<Expected>> features;
  std::vector<Expected> prob_maps;
  std::vector<Expected> rois;
};

ExpectedResults expect(const Call& call);

// Estimate of the oracle's steps for a call; at least the number of samples that read pixels.
double oracle_steps(const Params& params);

}  // namespace fuzz
