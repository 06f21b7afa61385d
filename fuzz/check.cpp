#include "check.h"

#include <cmath>
#include <cstdio>

#include "oracle.h"

namespace fuzz {
namespace {

bool is_finite(const Tensor& tensor) {
  for (int64_t at = 0; at < tensor.stored(); ++at) {
    if (!std::isfinite(tensor.get_stored(at))) {
      return false;
    }
  }
  return true;
}

template <typename F>
void for_each_element(const Tensor& tensor, F f) {
  for (int64_t i = 0; i < tensor.sizes[0]; ++i) {
    for (int64_t j = 0; j < tensor.sizes[1]; ++j) {
      for (int64_t k = 0; k < tensor.sizes[2]; ++k) {
        for (int64_t l = 0; l < tensor.sizes[3]; ++l) {
          f(i, j, k, l);
        }
      }
    }
  }
}

// The largest absolute value in a tensor; at least 1.
double largest_of(const Tensor& tensor) {
  double largest = 1;
  for (int64_t at = 0; at < tensor.stored(); ++at) {
    largest = std::max(largest, std::fabs(tensor.get_stored(at)));
  }
  return largest;
}

ScalarType accumulate_type(const Params& params) {
  return params.feature_type == ScalarType::kDouble ? ScalarType::kDouble : ScalarType::kFloat;
}

class Comparison {
 public:
  explicit Comparison(const Call& call)
      : call_(call), arithmetic_(precision_of(accumulate_type(call.params))) {
    // An underflowing product has an error of arithmetic_.smallest. Later factors multiply this
    // error.
    factor_ = largest_of(call.grad) * largest_of(call.prob_maps);
    for (int32_t l = 0; l < call.params.num_levels; ++l) {
      factor_ *= largest_of(call.inputs[l]);
      const double scale = std::fabs(call.params.levels[l].spatial_scale);
      factor_ *= std::isfinite(scale) ? std::max(1.0, scale) : 1;
    }
    constexpr double kMaxTerms = 1e5;
    may_overflow_ = !(factor_ * kMaxTerms < arithmetic_.largest);
  }

  void compare(const Tensor& got, const std::vector<Expected>& expected, const char* what) const {
    size_t at = 0;
    for_each_element(got, [&](int64_t i, int64_t j, int64_t k, int64_t l) {
      compare(got, got.get(i, j, k, l), expected[at++], what);
    });
  }

 private:
  const Call& call_;
  const Precision arithmetic_;
  double factor_;
  // Whether a product may overflow even if it has weight 0 in the result (a clamped coordinate).
  bool may_overflow_;

  void compare(const Tensor& got, double value, const Expected& expected, const char* what) const {
    const Precision stored = precision_of(got.type);
    if (may_overflow_ && !std::isfinite(value)) {
      return;
    }
    // Intermediate results may exceed the range, depending on the order of summation.
    const double most = std::min(stored.largest, arithmetic_.largest) / 4;
    if (!(expected.magnitude < most) || !(expected.magnitude * factor_ < most * 1e300)) {
      return;
    }
    const double roundings = double(2 * expected.terms + 64);
    const double error = roundings * arithmetic_.epsilon * expected.magnitude +
                         2 * stored.epsilon * std::fabs(expected.value) + stored.smallest +
                         roundings * arithmetic_.smallest * factor_;
    if (!(std::fabs(value - expected.value) <= error)) {
      std::fprintf(
          stderr, "got %.17g, expected %.17g with an error of at most %.3g\n", value,
          expected.value, error);
      fail(call_, what);
    }
  }
};

double dot(const Tensor& a, const Tensor& b) {
  double sum = 0;
  for_each_element(a, [&](int64_t i, int64_t j, int64_t k, int64_t l) {
    sum += a.get(i, j, k, l) * b.get(i, j, k, l);
  });
  return sum;
}

// <op(x, p), g> = <x, dx> = <p, dp>; all values are positive.
void check_adjoint(const Call& call, const Results& results) {
  for (const Tensor* tensor : results.all()) {
    if (!is_finite(*tensor)) {
      return;  // sums beyond the range of a 16-bit type
    }
  }
  constexpr double kRoundings = 1000;  // per element; at most one per term
  const Params& params = call.params;
  const double by_output = dot(results.output, call.grad);
  const auto check = [&](double sum, const Tensor& gradient, const char* what) {
    const Precision stored = precision_of(params.feature_type);
    const Precision of_gradient = precision_of(gradient.type);
    const Precision arithmetic = precision_of(accumulate_type(params));
    const double error =
        (2 * stored.epsilon + 2 * of_gradient.epsilon + kRoundings * arithmetic.epsilon) *
            by_output +
        2 * results.output.count() * stored.smallest + 2 * gradient.count() * of_gradient.smallest;
    if (!(std::fabs(sum - by_output) <= error)) {
      std::fprintf(stderr, "<output, grad> = %.17g, <operand, gradient> = %.17g\n", by_output, sum);
      fail(call, what);
    }
  };
  bool asks_all_levels = true;
  double by_features = 0;
  for (int32_t l = 0; l < params.num_levels; ++l) {
    asks_all_levels &= call.asks_level[l];
    if (call.asks_level[l]) {
      by_features += dot(results.features[l], call.inputs[l]);
    }
  }
  if (asks_all_levels) {
    check(by_features, results.features[0], "the gradient of the features is not adjoint");
  }
  if (call.asks_prob_maps) {
    check(
        dot(results.prob_maps, call.prob_maps), results.prob_maps,
        "the gradient of the maps is not adjoint");
  }
}

void check_written(const Call& call, const Results& results) {
  const auto check = [&](const Tensor& tensor, const char* what) {
    for (int64_t at = 0; at < tensor.stored(); ++at) {
      if (tensor.is_poison(at)) {
        std::fprintf(stderr, "element %lld was not written\n", static_cast<long long>(at));
        fail(call, what);
      }
    }
    if (!tensor.block.has_intact_guards()) {
      std::fprintf(stderr, "memory next to a result was written\n");
      fail(call, what);
    }
  };
  check(results.output, "output");
  for (const Tensor& gradient : results.features) {
    check(gradient, "gradient of features");
  }
  check(results.prob_maps, "gradient of prob_maps");
  check(results.rois, "gradient of rois");
}

}  // namespace

void check_results(const Call& call, const Results& results) {
  check_written(call, results);
  if (call.check == Check::kOnlyMemory) {
    return;
  }
  if (call.check == Check::kAdjoint) {
    return check_adjoint(call, results);
  }
  const ExpectedResults expected = expect(call);
  const Comparison comparison(call);
  comparison.compare(results.output, expected.output, "output");
  for (int32_t l = 0; l < call.params.num_levels; ++l) {
    comparison.compare(results.features[l], expected.features[l], "gradient of features");
  }
  comparison.compare(results.prob_maps, expected.prob_maps, "gradient of prob_maps");
  comparison.compare(results.rois, expected.rois, "gradient of rois");
}

void check_equal(const Call& call, const Results& a, const Results& b) {
  const auto all_a = a.all();
  const auto all_b = b.all();
  for (size_t i = 0; i < all_a.size(); ++i) {
    if (all_a[i]->block.copy() != all_b[i]->block.copy()) {
      fail(call, "results depend on the number of threads");
    }
  }
}

void check_unchanged(const Call& call, const std::vector<std::vector<uint8_t>>& operands) {
  if (copy_operands(call) != operands) {
    fail(call, "an operand was changed");
  }
}

}  // namespace fuzz
