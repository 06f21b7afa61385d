// Memory blocks with guards, and strided tensors in them.
#pragma once

#include <sanitizer/asan_interface.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/simd/scalar.h"
#include "params.h"

namespace fuzz {

using shape_roi_align::ScalarType;

constexpr int64_t size_of(ScalarType type) {
  return type == ScalarType::kDouble ? 8 : type == ScalarType::kFloat ? 4 : 2;
}

// Relative rounding error of a number near 1; the smallest positive number; the largest number.
struct Precision {
  double epsilon;
  double smallest;
  double largest;
};
inline Precision precision_of(ScalarType type) {
  switch (type) {
    case ScalarType::kDouble:
      return {0x1p-53, 0x1p-1074, std::numeric_limits<double>::max()};
    case ScalarType::kFloat:
      return {0x1p-24, 0x1p-149, std::numeric_limits<float>::max()};
    case ScalarType::kHalf:
      return {0x1p-11, 0x1p-24, 65504};
    case ScalarType::kBFloat16:
      return {0x1p-8, 0x1p-133, 0x1.fep127};
  }
  return {};
}

// A block of memory. The bytes before and after it are poisoned for AddressSanitizer.
// has_intact_guards() finds writes by instructions that AddressSanitizer does not instrument.
class Block {
 public:
  static constexpr uint8_t kPoison = 0xff;  // NaN in every type

  explicit Block(int64_t bytes = 0) : bytes_(bytes), memory_(new uint8_t[bytes + 2 * kGuard]) {
    std::memset(memory_.get(), kPoison, bytes + 2 * kGuard);
    __asan_poison_memory_region(memory_.get(), kGuard);
    __asan_poison_memory_region(data() + bytes, kGuard);
  }
  Block(Block&&) = default;
  Block& operator=(Block&& other) {
    unpoison();
    bytes_ = other.bytes_;
    memory_ = std::move(other.memory_);
    return *this;
  }
  ~Block() {
    unpoison();
  }

  uint8_t* data() const {
    return memory_.get() + kGuard;
  }
  int64_t bytes() const {
    return bytes_;
  }
  std::vector<uint8_t> copy() const {
    return {data(), data() + bytes_};
  }
  // Call once, at the end: afterwards, AddressSanitizer no longer watches the guards.
  bool has_intact_guards() const {
    unpoison();
    for (int64_t i = 0; i < kGuard; ++i) {
      if (memory_[i] != kPoison || data()[bytes_ + i] != kPoison) {
        return false;
      }
    }
    return true;
  }

 private:
  static constexpr int64_t kGuard = 64;  // bytes; as wide as the widest vector

  int64_t bytes_;
  std::unique_ptr<uint8_t[]> memory_;

  void unpoison() const {
    if (memory_ != nullptr) {
      __asan_unpoison_memory_region(memory_.get(), bytes_ + 2 * kGuard);
    }
  }
};

using Four = std::array<int64_t, 4>;

// Strides of a dense tensor whose dimensions, innermost first, are `order`.
inline Four dense_strides(const Four& sizes, const std::array<int, 4>& order) {
  Four strides;
  int64_t next = 1;
  for (const int dim : order) {
    strides[dim] = next;
    next *= std::max<int64_t>(sizes[dim], 1);
  }
  return strides;
}
constexpr std::array<int, 4> kContiguous{3, 2, 1, 0};
constexpr std::array<int, 4> kChannelsLast{1, 3, 2, 0};

// A tensor of four dimensions, in a block that ends at the tensor's last element.
class Tensor {
 public:
  ScalarType type = ScalarType::kDouble;
  Four sizes{};
  Four strides{};
  Block block;

  Tensor() = default;
  // offset: of the first element in the block, in elements.
  Tensor(ScalarType type, const Four& sizes, const Four& strides, int64_t offset = 0)
      : type(type), sizes(sizes), strides(strides), offset_(offset) {
    int64_t last = 0;
    for (int i = 0; i < 4; ++i) {
      last += (sizes[i] - 1) * strides[i];
    }
    block = Block((offset + (count() > 0 ? last + 1 : 0)) * size_of(type));
  }

  int64_t count() const {
    return sizes[0] * sizes[1] * sizes[2] * sizes[3];
  }
  int64_t stored() const {
    return block.bytes() / size_of(type);
  }
  void* data() const {
    return block.data() + offset_ * size_of(type);
  }
  double get(int64_t i, int64_t j, int64_t k, int64_t l) const {
    return get_stored(offset_ + i * strides[0] + j * strides[1] + k * strides[2] + l * strides[3]);
  }

  // at: position in the block, in elements.
  double get_stored(int64_t at) const {
    using namespace shape_roi_align::cpu;
    switch (type) {
      case ScalarType::kDouble:
        return at_position<double>(at);
      case ScalarType::kFloat:
        return at_position<float>(at);
      case ScalarType::kHalf:
        return load(at_position<Half>(at));
      case ScalarType::kBFloat16:
        return load(at_position<BFloat16>(at));
    }
    return 0;
  }
  void set_stored(int64_t at, double value) {
    using namespace shape_roi_align::cpu;
    switch (type) {
      case ScalarType::kDouble:
        return store(value, &at_position<double>(at));
      case ScalarType::kFloat:
        return store(static_cast<float>(value), &at_position<float>(at));
      case ScalarType::kHalf:
        return store(static_cast<float>(value), &at_position<Half>(at));
      case ScalarType::kBFloat16:
        return store(static_cast<float>(value), &at_position<BFloat16>(at));
    }
  }
  // Whether an element still holds the poison that Block wrote.
  bool is_poison(int64_t at) const {
    const uint8_t* first = block.data() + at * size_of(type);
    for (int64_t i = 0; i < size_of(type); ++i) {
      if (first[i] != Block::kPoison) {
        return false;
      }
    }
    return true;
  }

 private:
  int64_t offset_ = 0;

  template <typename T>
  T& at_position(int64_t at) const {
    return reinterpret_cast<T*>(block.data())[at];
  }
};

}  // namespace fuzz
