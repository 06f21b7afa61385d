// Build facts and the instruction set in use. shape_roi_align/_build_info.py reads them through
// ctypes. The strings live as long as the library.
#include "build_info.h"

#include <exception>
#include <string>

#include "cpu/simd/instruction_set.h"

#define SHAPE_ROI_ALIGN_EXPORT extern "C" __attribute__((visibility("default")))

// A line "name<tab>value" per fact.
SHAPE_ROI_ALIGN_EXPORT const char* shape_roi_align_build_info() {
  static const std::string kLines = [] {
    std::string lines;
    for (const shape_roi_align::BuildFact& fact : shape_roi_align::kBuildFacts) {
      lines += std::string(fact.name) + '\t' + fact.value + '\n';
    }
    return lines;
  }();
  return kLines.c_str();
}

// "name<tab>", or "<tab>error" if SHAPE_ROI_ALIGN_CPU_CAPABILITY names no known instruction set.
SHAPE_ROI_ALIGN_EXPORT const char* shape_roi_align_cpu_capability() {
  static const std::string kAnswer = [] {
    try {
      return shape_roi_align::cpu::instruction_set_name() + std::string("\t");
    } catch (const std::exception& error) {
      return std::string("\t") + error.what();
    }
  }();
  return kAnswer.c_str();
}
