// Readers of a fuzzer's input bytes, and a random generator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fuzz {

// Reads input bytes in order. Past the end, every byte is 0.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  uint8_t byte() {
    return at_ == end_ ? 0 : *at_++;
  }
  bool flag() {
    return byte() % 2 != 0;
  }
  // In [low, high]; requires high - low < 256.
  int32_t integer(int32_t low, int32_t high) {
    return low + byte() % (high - low + 1);
  }
  template <typename T, size_t n>
  T choice(const T (&of)[n]) {
    static_assert(n <= 256);
    return of[byte() % n];
  }
  // The next bytes, reinterpreted as a value.
  template <typename T>
  T raw() {
    uint8_t bytes[sizeof(T)];
    for (uint8_t& each : bytes) {
      each = byte();
    }
    T value;
    std::memcpy(&value, bytes, sizeof(T));
    return value;
  }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
};

// SplitMix64 (Steele et al. 2014): fills tensors from a seed.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // In [low, high].
  int32_t integer(int32_t low, int32_t high) {
    return low + static_cast<int32_t>(next() % uint64_t(high - low + 1));
  }
  // In [0, 1), with 53 random bits.
  double uniform() {
    return double(next() >> 11) * 0x1p-53;
  }

 private:
  uint64_t state_;
};

}  // namespace fuzz
