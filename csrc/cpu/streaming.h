// Writing results too large for the caches without reading the memory first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace shape_roi_align::cpu {

// Bytes from which a result is not expected back from a cache.
constexpr int64_t kLargeResult = 16 << 20;

#if defined(__SSE2__)
// memcpy past the caches: whole lines are neither read before they are written nor displace others.
// Other threads see them after finish_streaming().
inline void stream(void* to, const void* from, size_t n) {
  constexpr size_t kLine = 64;
  constexpr size_t kVector = sizeof(__m128i);
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
  const size_t before = std::min((kLine - reinterpret_cast<uintptr_t>(out) % kLine) % kLine, n);
  std::memcpy(out, in, before);
  size_t i = before;
  for (; i + kLine <= n; i += kLine) {
    for (size_t j = i; j < i + kLine; j += kVector) {
      _mm_stream_si128(
          reinterpret_cast<__m128i*>(out + j),
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + j)));
    }
  }
  std::memcpy(out + i, in + i, n - i);
}

inline void finish_streaming() {
  _mm_sfence();
}
#else
inline void stream(void* to, const void* from, size_t n) {
  std::memcpy(to, from, n);
}

inline void finish_streaming() {}
#endif

}  // namespace shape_roi_align::cpu
