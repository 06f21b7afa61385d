// Prints the scratch that the launchers plan for the gradients. Reads integers, one line per call.
//
// scratch maps: gradients of maps and boxes, launch_map_and_box_gradient.h. Reads num_rois channels
// pooled_height pooled_width prob_map_height prob_map_width feature_type roi_type prob_map_type
// wants_prob_maps wants_rois; writes bytes shares boxes cells.
//
// scratch features: gradient of the features, launch.h. Reads num_rois channels num_images
// feature_type roi_type channels_innermost, then for each of two levels: height, width, and whether
// its gradient is requested. Writes the bytes of boxes, images and bits, then pixels_per_warp.
#include "cuda_on_host.h"

#include "cuda/launch_map_and_box_gradient.h"

#include <iostream>
#include <string_view>

using namespace shape_roi_align;

namespace {

ScalarType read_type() {
  int32_t type = 0;
  std::cin >> type;
  return static_cast<ScalarType>(type);
}

void plan_maps() {
  Params params{};
  params.num_levels = 1;
  SamplingOptions& sampling = params.options;
  while (std::cin >> params.num_rois >> params.channels >> sampling.pooled_height >>
         sampling.pooled_width >> params.prob_map_height >> params.prob_map_width) {
    params.feature_type = read_type();
    params.roi_type = read_type();
    params.prob_map_type = read_type();
    bool wants_prob_maps, wants_rois;
    std::cin >> wants_prob_maps >> wants_rois;
    const cuda::MapAndBoxScratch scratch(
        params, wants_prob_maps, wants_rois, cuda::LaunchOptions{});
    std::cout << scratch.bytes() << ' ' << scratch.shares << ' ' << scratch.boxes << ' '
              << scratch.cells << '\n';
  }
}

void plan_features() {
  Params params{};
  params.num_levels = 2;
  while (std::cin >> params.num_rois >> params.channels >> params.num_images) {
    params.feature_type = read_type();
    params.roi_type = read_type();
    bool channels_innermost;
    std::cin >> channels_innermost;
    FeatureGradients gradients{};
    for (int32_t l = 0; l < params.num_levels; ++l) {
      FeatureMap& level = params.levels[l];
      bool is_asked;
      std::cin >> level.height >> level.width >> is_asked;
      level.channel_stride = channels_innermost ? 1 : int64_t(level.height) * level.width;
      gradients.levels[l] = level;
      gradients.levels[l].data = is_asked ? &params : nullptr;  // never dereferenced
    }
    const cuda::FeatureGradientPlan plan(params, gradients, cuda::LaunchOptions{});
    std::cout << plan.boxes << ' ' << plan.images << ' ' << plan.bits << ' '
              << plan.tiles.pixels_per_warp << '\n';
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view of = argc == 2 ? argv[1] : "";
  if (of != "maps" && of != "features") {
    std::cerr << "usage: scratch maps|features\n";
    return 2;
  }
  of == "maps" ? plan_maps() : plan_features();
}
