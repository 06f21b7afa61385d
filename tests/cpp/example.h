// One box whose pooled value is computed by hand.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <cstdio>

struct Example {
  at::Tensor features =
      at::arange(4.0).view({1, 1, 1, 4}) + 10 * at::arange(4.0).view({1, 1, 4, 1});
  at::Tensor rois = at::tensor({0.0, 1.0, 1.0, 3.0, 3.0}).view({1, 5}).to(at::kFloat);
  at::Tensor prob_maps = at::tensor({0.1, 0.2, 0.3, 0.4}).view({1, 2, 2}).to(at::kFloat);
};

// Samples at x, y in {1.5, 2.5}: features x + 10 y = 16.5, 17.5; 26.5, 27.5. Their map coordinates
// are 0.5 and 1.5 (clamped to 1): probabilities 0.25, 0.3; 0.35, 0.4. The mean of the products is
// 29.65 / 4.
inline int report(const char* program, const at::Tensor& pooled) {
  const double value = pooled.item<double>();
  std::printf("%s: %.4f, expected 7.4125\n", program, value);
  return std::fabs(value - 7.4125) < 1e-5 ? 0 : 1;
}
