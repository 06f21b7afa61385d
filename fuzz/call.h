// A call of the operators, forward and backward, made of a fuzzer's bytes.
#pragma once

#include <cstdint>
#include <vector>

#include "bytes.h"
#include "tensor.h"

namespace fuzz {

using shape_roi_align::FeatureGradients;
using shape_roi_align::FeatureMap;
using shape_roi_align::kMaxLevels;
using shape_roi_align::Params;
using shape_roi_align::PooledTensor;

enum class Check {
  kOracle,      // results are compared with the oracle's
  kAdjoint,     // too many samples for the oracle; all values are positive
  kOnlyMemory,  // some values are not finite
};

struct Call {
  Params params{};             // points into the tensors
  std::vector<Tensor> inputs;  // L x [N, C, H_l, W_l]
  Tensor rois;                 // [1, 1, K, 5]
  Block levels;                // int64[K]
  Tensor prob_maps;            // [K, 1, Mh, Mw], or no elements
  Tensor grad;                 // [K, C, PH, PW]
  std::vector<bool> asks_level;
  bool asks_prob_maps = false;
  bool asks_rois = false;
  Check check = Check::kOracle;
  // Whether a batch index or a level is out of range.
  bool has_bad_box = false;

  bool asks_any_level() const;
  bool is_channels_last() const;  // all inputs
};

// How large a call may be.
struct Limits {
  int64_t elements;  // of the feature maps of all levels, and of the pooled tensor
  int32_t height;    // of a feature map
  int32_t width;
  int32_t bins;  // along an axis
  int64_t num_rois;
  double oracle_steps;   // compared with the oracle up to here
  double adjoint_steps;  // fewer samples per bin, above
};

// Reads a part of the bytes; a target reads its own settings from the others. Describes the call
// where the environment has FUZZ_DESCRIBE.
Call make_call(Bytes& bytes, const Limits& limits);

PooledTensor to_pooled_tensor(const Tensor& tensor);

// Poisoned, but with `zeroed` for the gradients of prob_maps and rois. What is not asked for has no
// elements.
struct Results {
  Tensor output;                 // [K, C, PH, PW]
  std::vector<Tensor> features;  // L x [N, C, H_l, W_l]
  Tensor prob_maps;              // [K, 1, Mh, Mw]
  Tensor rois;                   // [1, 1, K, 5]

  Results(const Call& call, bool zeroed);
  FeatureGradients feature_gradients(const Call& call) const;
  std::vector<const Tensor*> all() const;
};

// The bytes of all tensors of a call, to see that it did not change them.
std::vector<std::vector<uint8_t>> copy_operands(const Call& call);

// To stderr.
void describe(const Call& call);

// Describes the call and aborts.
[[noreturn]] void fail(const Call& call, const char* what);

}  // namespace fuzz
