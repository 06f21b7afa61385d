// Memory formats of tensors: which one a tensor has, and which one results get.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <vector>

namespace shape_roi_align {

using torch::headeronly::MemoryFormat;
using torch::stable::Tensor;

// Whether strides are exactly those of a dense tensor whose dimensions, innermost first, are
// `order`. Dimensions of one element do not count.
inline bool has_dense_strides(const Tensor& tensor, const std::array<int64_t, 4>& order) {
  int64_t expected = 1;
  for (const int64_t dim : order) {
    if (tensor.size(dim) != 1 && tensor.stride(dim) != expected) {
      return false;
    }
    expected *= tensor.size(dim);
  }
  return true;
}

inline bool is_contiguous(const Tensor& tensor) {
  return tensor.numel() == 0 || has_dense_strides(tensor, {3, 2, 1, 0});
}

// channels_last and not also contiguous.
inline bool is_channels_last(const Tensor& tensor) {
  return !is_contiguous(tensor) && has_dense_strides(tensor, {1, 3, 2, 0});
}

// Avoids a dispatcher call for contiguous tensors; that call costs as much as pooling a small box.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// For the gradient of a feature map.
inline MemoryFormat gradient_memory_format(const Tensor& input) {
  return is_channels_last(input) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// For the pooled tensor of all feature maps.
inline MemoryFormat output_memory_format(const std::vector<Tensor>& inputs) {
  for (const Tensor& input : inputs) {
    if (!is_channels_last(input)) {
      return MemoryFormat::Contiguous;
    }
  }
  return MemoryFormat::ChannelsLast;
}

}  // namespace shape_roi_align
