// Storage types of the CPU kernels, and their conversion to and from the accumulate type.
#pragma once

#include <cstdint>
#include <cstring>

namespace shape_roi_align::cpu {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
// double for f64; float for f32, f16 and bf16.
template <typename T>
using accumulate_t = typename Accumulate<T>::type;

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline double load(double value) {
  return value;
}
inline float load(float value) {
  return value;
}
inline float load(BFloat16 value) {
  return float_of(uint32_t(value.bits) << 16);
}
inline float load(Half value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(value.bits & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) {  // infinity or NaN
    return float_of(sign | 0x70000000u | magnitude);
  }
  // Scaling by 2^112 rebiases the exponent and normalises subnormals, exactly.
  return float_of(sign | bits_of(float_of(magnitude) * 0x1p112f));
}

inline void store(double value, double* to) {
  *to = value;
}
inline void store(float value, float* to) {
  *to = value;
}
inline void store(float value, BFloat16* to) {
  const uint32_t bits = bits_of(value);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to->bits = is_nan ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline void store(float value, Half* to) {
  const uint32_t bits = bits_of(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    to->bits = sign | 0x7e00;
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or above
    to->bits = sign | 0x7c00;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5f aligns the last bits
    to->bits = static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
  } else {
    to->bits = static_cast<uint16_t>(
        sign | ((magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13));
  }
}

}  // namespace shape_roi_align::cpu
