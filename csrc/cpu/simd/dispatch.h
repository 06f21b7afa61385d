// Dispatches from the scalar types in Params to C++ types.
#pragma once

#include "cpu/simd/scalar.h"
#include "params.h"

namespace shape_roi_align::cpu {

// Calls f(instance) with an instance of the storage type.
template <typename F>
void dispatch(ScalarType type, F f) {
  switch (type) {
    case ScalarType::kDouble:
      return f(double{});
    case ScalarType::kFloat:
      return f(float{});
    case ScalarType::kHalf:
      return f(Half{});
    case ScalarType::kBFloat16:
      return f(BFloat16{});
  }
}

// Coordinates are double if features or boxes are double, else float.
inline bool has_double_coordinates(const Params& params) {
  return params.feature_type == ScalarType::kDouble || params.roi_type == ScalarType::kDouble;
}

// Calls f(feature instance, coordinate instance).
template <typename F>
void dispatch(const Params& params, F f) {
  switch (params.feature_type) {
    case ScalarType::kDouble:
      return f(double{}, double{});
    case ScalarType::kFloat:
      return has_double_coordinates(params) ? f(float{}, double{}) : f(float{}, float{});
    case ScalarType::kHalf:
      return has_double_coordinates(params) ? f(Half{}, double{}) : f(Half{}, float{});
    case ScalarType::kBFloat16:
      return has_double_coordinates(params) ? f(BFloat16{}, double{}) : f(BFloat16{}, float{});
  }
}

}  // namespace shape_roi_align::cpu
