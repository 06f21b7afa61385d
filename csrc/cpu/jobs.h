// The three jobs of the CPU operators, on plain pointers. `boxes` are the boxes of `params`.
#pragma once

#include "cpu/boxes/boxes.h"
#include "params.h"

namespace shape_roi_align::cpu {

// output: [K, C, PH, PW] of params.feature_type, each box dense in memory. All of it is written.
void forward(const Params& params, SortedBoxes boxes, const PooledTensor& output);

// gradients.levels[l]: [N, C, H_l, W_l] of params.feature_type, all of it written. data is null for
// a level whose gradient is not requested.
void feature_gradient(
    const Params& params, const SortedBoxes& boxes, const PooledTensor& grad,
    const FeatureGradients& gradients);

// grad_prob_maps: [K, Mh, Mw] of params.prob_map_type, or null. grad_rois: [K, 5] of
// params.roi_type, or null. Both contiguous and zeroed.
void map_and_box_gradient(
    const Params& params, SortedBoxes boxes, const PooledTensor& grad, void* grad_prob_maps,
    void* grad_rois);

}  // namespace shape_roi_align::cpu
