// Stores that bypass the caches and so avoid reading each cache line before it is written.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace shape_roi_align::cpu {

// Results of at least this many bytes bypass the caches.
constexpr int64_t kLargeResult = 16 << 20;

#if defined(__SSE2__)
// Writes n bytes; whole cache lines bypass the caches. value(i) returns the 16 bytes at byte i;
// write(begin, end) writes the bytes before the first and after the last whole line. Other threads
// see the lines after finish_streaming().
template <typename Value, typename Write>
void stream_lines(void* to, size_t n, Value value, Write write) {
  constexpr size_t kLine = 64;
  constexpr size_t kVector = sizeof(__m128i);
  char* out = static_cast<char*>(to);
  const size_t before = std::min((kLine - reinterpret_cast<uintptr_t>(out) % kLine) % kLine, n);
  write(size_t(0), before);
  size_t i = before;
  for (; i + kLine <= n; i += kLine) {
    for (size_t j = i; j < i + kLine; j += kVector) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(out + j), value(j));
    }
  }
  write(i, n);
}

// memcpy that bypasses the caches.
inline void stream(void* to, const void* from, size_t n) {
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
  stream_lines(
      to, n, [&](size_t i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)); },
      [&](size_t begin, size_t end) { std::memcpy(out + begin, in + begin, end - begin); });
}

// memset to 0 that bypasses the caches.
inline void stream_zeros(void* to, size_t n) {
  char* out = static_cast<char*>(to);
  stream_lines(
      to, n, [](size_t) { return _mm_setzero_si128(); },
      [&](size_t begin, size_t end) { std::memset(out + begin, 0, end - begin); });
}

inline void finish_streaming() {
  _mm_sfence();
}
#else
inline void stream(void* to, const void* from, size_t n) {
  std::memcpy(to, from, n);
}

inline void stream_zeros(void* to, size_t n) {
  std::memset(to, 0, n);
}

inline void finish_streaming() {}
#endif

}  // namespace shape_roi_align::cpu
