// The operators' schemas. cpu/register.cpp and cuda/register.cu register the kernels.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(shape_roi_align, m) {
  m.def(
      "sa_roi_align(Tensor[] inputs, Tensor rois, Tensor? levels, Tensor? prob_maps, float[] "
      "spatial_scales, "
      "SymInt pooled_height, SymInt pooled_width, int sampling_ratio, bool aligned, bool "
      "map_aligned, bool average=True) -> Tensor");
  // output_mask: one entry per feature map, then prob_maps, then rois. A gradient that is not
  // requested is an empty tensor of shape [0].
  m.def(
      "_sa_roi_align_backward(Tensor grad, Tensor[] inputs, Tensor rois, Tensor? levels, Tensor? "
      "prob_maps, "
      "float[] spatial_scales, SymInt pooled_height, SymInt pooled_width, int sampling_ratio, bool "
      "aligned, bool map_aligned, bool average, "
      "bool[] output_mask) -> (Tensor[], Tensor, Tensor)");
}
