// The CPU operators on plain pointers.
#pragma once

#include "params.h"

namespace shape_roi_align::cpu {

// output: [K, C, PH, PW] of params.feature_type, each box dense in memory.
void forward(const Params& params, const PooledMap& output);

// gradients[l]: [N, C, H_l, W_l] of params.feature_type, all of it written; data is null where not
// asked for.
void feature_gradient(const Params& params, const PooledMap& grad, const FeatureMap* gradients);

// grad_maps: [K, Mh, Mw] of params.map_type or null. grad_rois: [K, 5] of params.roi_type or null.
// Both contiguous and zeroed.
void map_and_box_gradient(
    const Params& params, const PooledMap& grad, void* grad_maps, void* grad_rois);

}  // namespace shape_roi_align::cpu
