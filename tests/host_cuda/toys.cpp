// Small correct and faulty kernels that show what cuda_on_host.h detects. usage: toys NAME; prints
// "ok" if the result is correct.
#include "cuda_on_host.h"

#include <cstring>
#include <numeric>

namespace {

constexpr int kThreads = 64;

enum class Fault {
  kNone,
  kNoBarrier,
  kOverrun,
  kOverrunByFunction,
  kSomeReturn,
  kDifferentBarriers,
  kSomeLanes,
  kNotWritten
};

// out[i] = sum of in, which starts with 1
template <Fault fault>
__global__ void sum_kernel(const int* in, int* out) {
  __shared__ int values[kThreads];
  __shared__ int after[kThreads];
  const int thread = threadIdx.x;
  if (fault != Fault::kNotWritten || thread % 2 == 0) {
    after[thread] = in[0] - 1;
  }
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

// out[i] = sum of in over the warp of i
template <Fault fault>
__global__ void sum_over_warp_kernel(const int* in, int* out) {
  __shared__ int values[kThreads];
  int sum = in[threadIdx.x];
  for (int distance = 16; distance > 1; distance /= 2) {
    if (fault == Fault::kSomeLanes && threadIdx.x == 3) {
      continue;
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  }
  values[threadIdx.x] = sum;
  if (fault != Fault::kNoBarrier) {
    __syncwarp();
  }
  out[threadIdx.x] = sum + values[threadIdx.x ^ 1];
}

// out[i] = sum of in over the lanes of the warp up to lane i, plus in of the next lane
__global__ void scan_kernel(const int* in, int* out) {
  const unsigned all = 0xffffffffu;
  const int lane = threadIdx.x % 32;
  int sum = in[threadIdx.x];
  for (int distance = 1; distance < 32; distance *= 2) {
    const int before = __shfl_up_sync(all, sum, distance);
    sum += lane >= distance ? before : 0;
  }
  out[threadIdx.x] = sum + __shfl_sync(all, in[threadIdx.x], lane + 1);
}

__global__ void vote_kernel(unsigned* out) {
  const unsigned all = 0xffffffffu;
  // The second warp votes less often.
  for (unsigned i = 0; i < 2 - threadIdx.x / 32; ++i) {
    out[threadIdx.x] = __ballot_sync(all, threadIdx.x % 3 == i);
  }
  out[threadIdx.x] += __popc(0b1011u);
}

__global__ void count_kernel(unsigned* bits, int* largest) {
  const int i = blockDim.x * blockIdx.x + threadIdx.x;
  atomicOr(bits, 1u << i % 5);
  atomicMax(largest, i % 100);
}

template <int offset>
__global__ void copy_kernel(const float* in, float* out) {
  if (threadIdx.x == 0) {
    *reinterpret_cast<uint4*>(out) = *reinterpret_cast<const uint4*>(in + offset);
  }
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

template <Fault fault>
bool sums_over_warps() {
  std::vector<int> in(kThreads);
  std::iota(in.begin(), in.end(), 1);
  std::vector<int> out(kThreads);
  cuda_on_host::launch(
      {1}, {kThreads}, [&] { sum_over_warp_kernel<fault>(in.data(), out.data()); });
  std::vector<int> expected(kThreads, 32 * 33 / 2);
  std::fill(expected.begin() + 32, expected.end(), 32 * 33 / 2 + 32 * 32);
  return out == expected;
}

bool scans() {
  std::vector<int> in(kThreads);
  std::iota(in.begin(), in.end(), 0);
  std::vector<int> out(kThreads);
  cuda_on_host::launch({1}, {kThreads}, [&] { scan_kernel(in.data(), out.data()); });
  std::vector<int> expected(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    const int first = i / 32 * 32;
    expected[i] = (first + i) * (i - first + 1) / 2 + first + (i + 1) % 32;
  }
  return out == expected;
}

bool votes() {
  std::vector<unsigned> out(kThreads);
  cuda_on_host::launch({1}, {kThreads}, [&] { vote_kernel(out.data()); });
  // The last votes are of lanes 1, 4, 7, ...: thread % 3 is 1 in the first warp, 0 in the second.
  return out == std::vector<unsigned>(kThreads, 0x92492492u + 3);
}

bool combines_atomically() {
  unsigned bits = 0;
  int largest = 0;
  cuda_on_host::launch({3}, {kThreads}, [&] { count_kernel(&bits, &largest); });
  return bits == 0b11111 && largest == 99;
}

template <int offset>
bool copies() {
  alignas(16) float in[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  alignas(16) float out[4] = {};
  cuda_on_host::launch({1}, {kThreads}, [&] { copy_kernel<offset>(in, out); });
  return std::equal(out, out + 4, in + offset);
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
      {"not_written", sums<Fault::kNotWritten>},
      {"syncthreads_or", reduces_predicates},
      {"shuffle", sums_over_warps<Fault::kNone>},
      {"shuffle_of_some_lanes", sums_over_warps<Fault::kSomeLanes>},
      {"no_warp_barrier", sums_over_warps<Fault::kNoBarrier>},
      {"scan", scans},
      {"ballot", votes},
      {"atomics", combines_atomically},
      {"aligned_vector", copies<4>},
      {"unaligned_vector", copies<1>},
  };
  for (const auto& toy : toys) {
    if (std::strcmp(toy.name, argv[1]) == 0) {
      std::puts(toy.run() ? "ok" : "wrong result");
      return 0;
    }
  }
  return 2;
}
