// Stands in for torch's header in the fuzzers: parallel loops run on one thread.
#pragma once

#include <cstdint>

namespace torch::stable {

// The number of threads for which the kernels divide their work. Results must not depend on it.
inline uint32_t num_threads = 1;

inline uint32_t get_num_threads() {
  return num_threads;
}

template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t grain_size, const F& f) {
  for (int64_t i = begin; i < end; i += grain_size) {
    f(i, i + grain_size < end ? i + grain_size : end);
  }
}

}  // namespace torch::stable
