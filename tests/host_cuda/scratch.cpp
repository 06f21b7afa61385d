// Scratch of the gradients of maps and boxes, as launch_map_and_box_gradient.h plans it. Reads, per
// line, integers: num_rois channels pooled_height pooled_width prob_map_height prob_map_width
// feature_type roi_type prob_map_type wants_prob_maps wants_rois. Writes: bytes shares boxes cells.
#include "cuda_on_host.h"

#include "cuda/launch_map_and_box_gradient.h"

#include <iostream>

using namespace shape_roi_align;

int main() {
  Params params{};
  params.num_levels = 1;
  int32_t feature_type, roi_type, prob_map_type;
  bool wants_prob_maps, wants_rois;
  SamplingOptions& sampling = params.options;
  while (std::cin >> params.num_rois >> params.channels >> sampling.pooled_height >>
         sampling.pooled_width >> params.prob_map_height >> params.prob_map_width >> feature_type >>
         roi_type >> prob_map_type >> wants_prob_maps >> wants_rois) {
    params.feature_type = static_cast<ScalarType>(feature_type);
    params.roi_type = static_cast<ScalarType>(roi_type);
    params.prob_map_type = static_cast<ScalarType>(prob_map_type);
    const cuda::MapAndBoxScratch scratch(
        params, wants_prob_maps, wants_rois, cuda::LaunchOptions{});
    std::cout << scratch.bytes() << ' ' << scratch.shares << ' ' << scratch.boxes << ' '
              << scratch.cells << '\n';
  }
}
