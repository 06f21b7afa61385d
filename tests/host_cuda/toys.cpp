// Small kernels, right and wrong, that show what cuda_on_host.h finds. usage: toys NAME; prints
// "ok" when the result is right.
#include "cuda_on_host.h"

#include <cstring>
#include <numeric>

namespace {

constexpr int kThreads = 32;

enum class Fault {
  kNone,
  kNoBarrier,
  kOverrun,
  kOverrunByFunction,
  kSomeReturn,
  kDifferentBarriers
};

// out[i] = sum of in
template <Fault fault>
__global__ void sum_kernel(const int* in, int* out) {
  __shared__ int values[kThreads];
  __shared__ int after[kThreads];
  const int thread = threadIdx.x;
  after[thread] = 0;
  int* to = values;
  to[thread + (fault == Fault::kOverrun)] = in[thread];
  if (fault == Fault::kOverrunByFunction) {
    std::memset(values, 0, sizeof(values) + thread);
  }
  if (fault == Fault::kSomeReturn && thread == 3) {
    return;
  }
  if (fault == Fault::kDifferentBarriers && thread == 3) {
    __syncthreads();
  } else if (fault != Fault::kNoBarrier) {
    __syncthreads();
  }
  int sum = after[thread];
  for (int i = 0; i < kThreads; ++i) {
    sum += values[i];
  }
  out[thread] = sum;
}

__global__ void any_kernel(int* out) {
  out[threadIdx.x] = __syncthreads_or(threadIdx.x == 5) + __syncthreads_or(0);
}

__global__ void count_kernel(float* out) {
  atomicAdd(out, float(blockDim.x * blockIdx.x + threadIdx.x));
}

template <Fault fault>
bool sums() {
  std::vector<int> in(kThreads);
  std::iota(in.begin(), in.end(), 1);
  std::vector<int> out(kThreads);
  cuda_on_host::launch({1}, {kThreads}, [&] { sum_kernel<fault>(in.data(), out.data()); });
  return out == std::vector<int>(kThreads, kThreads * (kThreads + 1) / 2);
}

bool reduces_predicates() {
  std::vector<int> out(kThreads);
  cuda_on_host::launch({1}, {kThreads}, [&] { any_kernel(out.data()); });
  return out == std::vector<int>(kThreads, 1);
}

bool adds_atomically() {
  float out = 0;
  cuda_on_host::launch({3}, {kThreads}, [&] { count_kernel(&out); });
  return out == 3 * kThreads * (3 * kThreads - 1) / 2;
}

}  // namespace

int main(int, char** argv) {
  const struct {
    const char* name;
    bool (*run)();
  } toys[] = {
      {"right", sums<Fault::kNone>},
      {"no_barrier", sums<Fault::kNoBarrier>},
      {"overrun", sums<Fault::kOverrun>},
      {"overrun_by_function", sums<Fault::kOverrunByFunction>},
      {"some_return", sums<Fault::kSomeReturn>},
      {"different_barriers", sums<Fault::kDifferentBarriers>},
      {"syncthreads_or", reduces_predicates},
      {"atomic_add", adds_atomically},
  };
  for (const auto& toy : toys) {
    if (std::strcmp(toy.name, argv[1]) == 0) {
      std::puts(toy.run() ? "ok" : "wrong result");
      return 0;
    }
  }
  return 2;
}
