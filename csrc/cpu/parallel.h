// Loops over work items of unequal size.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace shape_roi_align::cpu {

// Calls f(worker, i) for i in [0, n); a thread that has finished takes the next i. make_worker()
// is called once per thread. Results must not depend on which worker gets which i.
template <typename MakeWorker, typename F>
void parallel_dynamic(int64_t n, MakeWorker make_worker, F f) {
  const int64_t threads = std::min<int64_t>(n, torch::stable::get_num_threads());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      auto worker = make_worker();
      for (int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) {
        f(worker, i);
      }
    }
  });
}

}  // namespace shape_roi_align::cpu
