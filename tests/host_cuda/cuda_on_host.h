// Runs CUDA kernels on the host, so that the device code itself can be executed under sanitizers
// and on machines without a GPU.
//
// Blocks run one after the other. The threads of a block are fibers that switch at barriers, in a
// selectable order. A missing barrier gives a wrong result in some order. A barrier that not all
// threads reach aborts the program. With CUDA_ON_HOST_THREADS, the threads of a block are threads
// of the operating system, so that ThreadSanitizer detects races (with GCC, it misses stores of
// struct results of calls). Shuffles and votes are barriers of a warp. Shared arrays are separate
// static variables, which AddressSanitizer surrounds with red zones; in templates, it does so only
// because the kernels have internal linkage. Each launch fills the shared arrays with NaN first.
//
// Supports only what the kernels use: grids of one dimension, blocks of whole warps, static shared
// memory, __syncthreads, __syncthreads_or, __syncwarp, shuffles and ballots of whole warps, atomics
// on integers, 16-byte accesses (UndefinedBehaviorSanitizer checks their alignment), conversions of
// the half types. C++20, 64-bit Linux.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <source_location>
#include <vector>

#include "block_on_host.h"
#include "cpu/simd/scalar.h"
#include "symbols.h"

#define __host__
#define __device__
#define __global__ static
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))

struct dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

namespace cuda_on_host {

struct Indices {
  dim3 grid;
  dim3 block;
  dim3 block_index{0, 0, 0};
  dim3 thread_index{0, 0, 0};
};

// A symbol's size includes its red zone. Fills whole words, for speed: there are megabytes to fill
// at each launch.
__attribute__((no_sanitize("address", "thread", "undefined"))) inline void poison_shared_memory() {
  using Word = uint64_t __attribute__((may_alias));
  static const std::vector<Symbol> all = find_shared_memory();
  for (const Symbol& memory : all) {
    volatile char* at = memory.begin;
    volatile char* const end = at + memory.bytes;
    while (at < end) {
      if (reinterpret_cast<uintptr_t>(at) % sizeof(Word) == 0 &&
          end - at >= ptrdiff_t(sizeof(Word))) {
        *reinterpret_cast<volatile Word*>(at) = ~Word(0);
        at += sizeof(Word);
      } else {
        *at++ = static_cast<char>(0xff);
      }
    }
  }
}

inline Block* block = nullptr;
inline Order order = Order::kAscending;

#ifdef CUDA_ON_HOST_THREADS
inline thread_local Indices indices;
inline const Indices& current_indices() {
  return indices;
}
#else
inline std::vector<Indices> indices;
inline const Indices& current_indices() {
  return indices[block->current()];
}
#endif

// Calls kernel() on every thread of every block.
inline void launch(dim3 grid, dim3 threads, const std::function<void()>& kernel) {
  poison_shared_memory();
  Block running(static_cast<int>(threads.x));
  block = &running;
#ifndef CUDA_ON_HOST_THREADS
  running.order = order;
  indices.resize(threads.x);
#endif
  for (unsigned b = 0; b < grid.x; ++b) {
    running.run([&](int thread) {
      const Indices here{grid, threads, {b, 0, 0}, {static_cast<unsigned>(thread), 0, 0}};
#ifdef CUDA_ON_HOST_THREADS
      indices = here;
#else
      indices[thread] = here;
#endif
      kernel();
    });
  }
  block = nullptr;
}

}  // namespace cuda_on_host

#define gridDim (cuda_on_host::current_indices().grid)
#define blockDim (cuda_on_host::current_indices().block)
#define blockIdx (cuda_on_host::current_indices().block_index)
#define threadIdx (cuda_on_host::current_indices().thread_index)

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  cuda_on_host::block->wait({where});
}

inline int __syncthreads_or(
    int predicate, std::source_location where = std::source_location::current()) {
  return cuda_on_host::block->wait({where, false, predicate});
}

inline void __syncwarp(std::source_location where = std::source_location::current()) {
  cuda_on_host::block->wait({where, true});
}

namespace cuda_on_host {

// Shows `value` to the warp, waits until all lanes have shown theirs, and returns f(shown), where
// shown(lane) is the value that a lane shows.
template <typename T, typename F>
auto show_to_warp(unsigned mask, T value, const std::source_location& where, F f) {
  if (mask != 0xffffffffu) {
    fail(kSomeLanes, where);
  }
  static_assert(sizeof(T) <= sizeof(uint64_t));
  const int thread = block->current();
  Shown& mine = block->shown[thread];
  const unsigned turn = mine.turn++ % 2;
  std::memcpy(&mine.values[turn], &value, sizeof(T));
  block->wait({where, true});
  return f([&](int lane) {
    T shown;
    const Shown& theirs = block->shown[thread / kWarpSize * kWarpSize + lane];
    std::memcpy(static_cast<void*>(&shown), &theirs.values[turn], sizeof(T));
    return shown;
  });
}

}  // namespace cuda_on_host

template <typename T>
T __shfl_xor_sync(
    unsigned mask, T value, int lane_mask,
    std::source_location where = std::source_location::current()) {
  const int lane = cuda_on_host::block->current() % cuda_on_host::kWarpSize;
  return cuda_on_host::show_to_warp(
      mask, value, where, [&](auto shown) { return shown(lane ^ lane_mask); });
}

template <typename T>
T __shfl_sync(
    unsigned mask, T value, int lane,
    std::source_location where = std::source_location::current()) {
  return cuda_on_host::show_to_warp(
      mask, value, where, [&](auto shown) { return shown(lane % cuda_on_host::kWarpSize); });
}

template <typename T>
T __shfl_up_sync(
    unsigned mask, T value, int distance,
    std::source_location where = std::source_location::current()) {
  const int lane = cuda_on_host::block->current() % cuda_on_host::kWarpSize;
  return cuda_on_host::show_to_warp(mask, value, where, [&](auto shown) {
    return shown(lane < distance ? lane : lane - distance);
  });
}

inline unsigned __ballot_sync(
    unsigned mask, int predicate, std::source_location where = std::source_location::current()) {
  return cuda_on_host::show_to_warp(mask, predicate != 0, where, [](auto shown) {
    unsigned votes = 0;
    for (int lane = 0; lane < cuda_on_host::kWarpSize; ++lane) {
      votes |= unsigned(shown(lane)) << lane;
    }
    return votes;
  });
}

inline int __popc(unsigned bits) {
  return std::popcount(bits);
}

inline unsigned atomicOr(unsigned* address, unsigned value) {
  return std::atomic_ref<unsigned>(*address).fetch_or(value, std::memory_order_relaxed);
}

inline int atomicMax(int* address, int value) {
  std::atomic_ref<int> at(*address);
  int old = at.load(std::memory_order_relaxed);
  while (old < value && !at.compare_exchange_weak(old, value, std::memory_order_relaxed)) {
  }
  return old;
}

struct __attribute__((may_alias, aligned(16))) uint4 {
  unsigned x;
  unsigned y;
  unsigned z;
  unsigned w;
};

inline void __stcs(uint4* to, uint4 value) {
  *to = value;
}

struct __half {
  shape_roi_align::cpu::Half value;
};
struct __nv_bfloat16 {
  shape_roi_align::cpu::BFloat16 value;
};

inline float __half2float(__half from) {
  return shape_roi_align::cpu::load(from.value);
}
inline float __bfloat162float(__nv_bfloat16 from) {
  return shape_roi_align::cpu::load(from.value);
}
inline __half __float2half_rn(float from) {
  __half to;
  shape_roi_align::cpu::store(from, &to.value);
  return to;
}
inline __nv_bfloat16 __float2bfloat16_rn(float from) {
  __nv_bfloat16 to;
  shape_roi_align::cpu::store(from, &to.value);
  return to;
}
