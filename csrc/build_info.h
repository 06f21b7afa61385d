// Build facts. setup.py writes them to a header; a build by CMake leaves them empty.
#pragma once

#if __has_include(<shape_roi_align_build_facts.h>)
#include <shape_roi_align_build_facts.h>
#else
#define SHAPE_ROI_ALIGN_VERSION ""
#define SHAPE_ROI_ALIGN_TORCH_VERSION ""
#define SHAPE_ROI_ALIGN_CUDA_COMPILER ""
#define SHAPE_ROI_ALIGN_CUDA_ARCHITECTURES ""
#endif

namespace shape_roi_align {

struct BuildFact {
  const char* name;
  const char* value;
};

inline constexpr BuildFact kBuildFacts[] = {
    {"version", SHAPE_ROI_ALIGN_VERSION},
    {"torch", SHAPE_ROI_ALIGN_TORCH_VERSION},  // version of the headers
    {"cuda", SHAPE_ROI_ALIGN_CUDA_COMPILER},   // empty without CUDA, like the next
    {"cuda_architectures", SHAPE_ROI_ALIGN_CUDA_ARCHITECTURES},
    {"compiler", __VERSION__},
};

}  // namespace shape_roi_align
