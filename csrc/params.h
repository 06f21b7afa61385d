// The contract of the operators, and the arguments of a call as plain data.
//
// clang-format off
// For box k on level l, s = spatial_scales[l], o = aligned ? 0.5 : 0, q = map_aligned ? 0.5 : 0:
//
//   out[k, c, ph, pw] = share * sum_{iy, ix} f_c(a, b) * p_k(u * Mw - q, v * Mh - q),   share = average ? 1 / (Sy * Sx) : 1   (paper eq. 4)
//   u = (pw + (ix + 0.5) / Sx) / PW,   a = x1 * s - o + u * (x2 - x1) * s   (v and b likewise)
//
// f is bilinear, 0 outside [-1, H] x [-1, W] and clamped to the border inside it; p is bilinear,
// clamped to the border.
//
//   inputs    : L feature maps [N, C, H_l, W_l], one dtype of f64, f32, f16, bf16, any strides
//   rois      : [K, 5] = (batch index, x1, y1, x2, y2), f32 or f64, image pixels
//   levels    : [K] int64, the feature map each box is pooled from; absent when L == 1
//   prob_maps : [K, Mh, Mw], f64, f32, f16 or bf16; absent: p = 1 (plain RoIAlign)
//   out       : [K, C, PH, PW], dtype of inputs; channels_last when every input is channels_last
//               and not contiguous
//
// A box that is not finite yields 0 and receives no gradient. A batch index or level out of range is
// an error on the CPU; on CUDA the box yields 0 and receives no gradient.
// clang-format on
#pragma once

#include <cstdint>

#include "geometry.h"

namespace shape_roi_align {

enum class ScalarType : int32_t { kDouble, kFloat, kHalf, kBFloat16 };

constexpr int32_t kMaxLevels = 8;

// One feature map, or the gradient of one: [num_images, channels, height, width] with strides in
// elements.
struct FeatureMap {
  void* data;
  int64_t image_stride;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;
  int32_t height;
  int32_t width;
  double spatial_scale;  // feature pixels per image pixel
};

// The gradients of all levels, of the features' type. data is null if not requested.
struct FeatureGradients {
  FeatureMap levels[kMaxLevels];
};

// A pooled tensor [K, channels, pooled_height, pooled_width] with strides in elements.
struct PooledTensor {
  void* data;
  int64_t box_stride;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;
};

// The arguments of a call. Pointers may be null only where a comment allows it.
struct Params {
  FeatureMap levels[kMaxLevels];
  int32_t num_levels;
  int64_t num_images;
  int64_t channels;
  int64_t num_rois;

  const void* rois;           // [K, 5] contiguous, f32 or f64
  const int64_t* roi_levels;  // [K], or null: all on level 0
  const void* prob_maps;      // [K, prob_map_height, prob_map_width] contiguous, or null: p = 1
  ScalarType feature_type;
  ScalarType roi_type;
  ScalarType prob_map_type;
  int32_t prob_map_height;  // 0 without prob_maps
  int32_t prob_map_width;   // likewise
  SamplingOptions options;
};

}  // namespace shape_roi_align
