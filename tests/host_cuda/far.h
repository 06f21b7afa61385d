// Tensors whose element offsets exceed 32 bits, in little memory.
#pragma once

#include <sys/mman.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>

namespace cuda_on_host {

using Four = std::array<int64_t, 4>;

// A copy of a tensor in which every stride other than 1 is multiplied by a factor.
class FarTensor {
 public:
  // near: the original elements; bring_back() copies the elements back to it.
  FarTensor(void* near, const Four& sizes, const Four& strides, int64_t factor, size_t element_size)
      : near_(static_cast<char*>(near)),
        sizes_(sizes),
        near_strides_(strides),
        strides_(strides),
        element_size_(element_size) {
    int64_t last = 0;
    for (int i = 0; i < 4; ++i) {
      strides_[i] *= strides[i] == 1 ? 1 : factor;
      last += sizes[i] > 0 ? (sizes[i] - 1) * strides_[i] : 0;
    }
    // Keeps the alignment of the original.
    const uintptr_t misalignment = reinterpret_cast<uintptr_t>(near) % kAlignment;
    bytes_ = (last + 1) * element_size + kAlignment;
    pages_ = mmap(
        nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
        0);
    if (pages_ == MAP_FAILED) {
      throw std::runtime_error("no address space");
    }
    data_ = static_cast<char*>(pages_) + misalignment;
    for_each([&](char* here, char* there) { std::memcpy(there, here, element_size_); });
  }
  FarTensor(const FarTensor&) = delete;
  FarTensor& operator=(const FarTensor&) = delete;
  ~FarTensor() {
    munmap(pages_, bytes_);
  }

  void* data() const {
    return data_;
  }
  const Four& strides() const {
    return strides_;
  }
  void bring_back() const {
    for_each([&](char* here, char* there) { std::memcpy(here, there, element_size_); });
  }

 private:
  static constexpr uintptr_t kAlignment = 16;

  char* near_;
  Four sizes_;
  Four near_strides_;
  Four strides_;
  size_t element_size_;
  size_t bytes_;
  void* pages_;
  char* data_;

  template <typename F>
  void for_each(F f) const {
    Four at;
    const auto offset = [&](const Four& strides) {
      int64_t elements = 0;
      for (int i = 0; i < 4; ++i) {
        elements += at[i] * strides[i];
      }
      return elements * int64_t(element_size_);
    };
    for (at[0] = 0; at[0] < sizes_[0]; ++at[0]) {
      for (at[1] = 0; at[1] < sizes_[1]; ++at[1]) {
        for (at[2] = 0; at[2] < sizes_[2]; ++at[2]) {
          for (at[3] = 0; at[3] < sizes_[3]; ++at[3]) {
            f(near_ + offset(near_strides_), data_ + offset(strides_));
          }
        }
      }
    }
  }
};

}  // namespace cuda_on_host
