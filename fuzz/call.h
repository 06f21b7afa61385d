// A call of the operators, forward and backward, decoded from a fuzzer's bytes.
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
  kAdjoint,     // too many samples for the oracle: adjoint identity, on positive values
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
  bool is_channels_last() const;  // whether all inputs are
};

// How large a call may be.
struct Limits {
  int64_t elements;  // of the feature maps of all levels; also of the pooled tensor
  int32_t height;    // of a feature map
  int32_t width;
  int32_t bins;  // along one axis
  int64_t num_rois;
  double oracle_steps;   // calls with more steps are not compared with the oracle
  double adjoint_steps;  // calls with more steps get fewer samples per bin
};

// Decodes a call from a part of the bytes; targets read their own settings from the other bytes.
// Describes the call if the environment variable FUZZ_DESCRIBE is set.
Call make_call(Bytes& bytes, const Limits& limits);

PooledTensor to_pooled_tensor(const Tensor& tensor);

// Memory for the results. It is poisoned; if `zeroed`, the gradients of prob_maps and rois are
// zeroed instead. Results that are not requested have no elements.
struct Results {
  Tensor output;                 // [K, C, PH, PW]
  std::vector<Tensor> features;  // L x [N, C, H_l, W_l]
  Tensor prob_maps;              // [K, 1, Mh, Mw]
  Tensor rois;                   // [1, 1, K, 5]

  Results(const Call& call, bool zeroed);
  FeatureGradients feature_gradients(const Call& call) const;
  std::vector<const Tensor*> all() const;
};

// The bytes of all operands of a call, for check_unchanged().
std::vector<std::vector<uint8_t>> copy_operands(const Call& call);

// Prints the call to stderr.
void describe(const Call& call);

// Describes the call and aborts.
[[noreturn]] void fail(const Call& call, const char* what);

}  // namespace fuzz
