// Runs CUDA kernels on the host, so that sanitizers, and machines without a GPU, can execute the
// device code itself.
//
// Blocks run one after the other. The threads of a block are fibers that take turns at barriers, in
// an order that can be chosen: a barrier that is missing shows as a wrong result in some order, one
// that not all threads reach aborts. With CUDA_ON_HOST_THREADS they are threads of the operating
// system, so that ThreadSanitizer sees races (but, with GCC, no store of a call's struct result).
// Shared arrays are separate static variables, which AddressSanitizer surrounds with red zones;
// internal linkage of the kernels is what makes it do so in templates too.
//
// Covers what the kernels here use: grids of one dimension, static shared memory, __syncthreads and
// __syncthreads_or, atomicAdd, conversions of the half types. C++20, x86-64 or any other POSIX with
// ucontext.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <source_location>
#include <thread>
#include <vector>

#include "cpu/scalar.h"

#define __host__
#define __device__
#define __global__ static
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))

#ifdef __has_feature
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef CUDA_ON_HOST_THREADS
#include <ucontext.h>
#endif

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

enum class Order { kAscending, kDescending, kShuffled };

[[noreturn]] inline void fail(const char* what, const std::source_location& where) {
  std::fprintf(stderr, "%s:%u: %s\n", where.file_name(), unsigned(where.line()), what);
  std::abort();
}

constexpr char kSomeReturn[] = "some threads of a block return, others wait at this barrier";
constexpr char kDifferentBarriers[] = "threads of a block wait at different barriers";

// A barrier, as all threads of the block must see it.
struct Barrier {
  std::source_location where;
  int predicate = 0;

  bool is_same_as(const Barrier& other) const {
    return where.line() == other.where.line() && where.column() == other.where.column();
  }
};

#ifdef CUDA_ON_HOST_THREADS

// Each barrier passed has its own variables, so that it orders what precedes it before what follows
// it and nothing more: a lock shared by successive barriers would hide races from ThreadSanitizer.
class Block {
 public:
  explicit Block(int threads) : threads_(threads) {}

  // f(thread) on all threads of the block at once.
  void run(const std::function<void(int)>& f) {
    has_returned_ = false;
    std::for_each(meetings_.begin(), meetings_.end(), clear);
    std::vector<std::thread> running;
    for (int thread = 0; thread < threads_; ++thread) {
      running.emplace_back([&, thread] {
        passed_ = 0;
        f(thread);
        has_returned_.store(true, std::memory_order_release);
      });
    }
    for (std::thread& thread : running) {
      thread.join();
    }
  }

  int wait(const Barrier& barrier) {
    Meeting& meeting = meetings_[passed_ % meetings_.size()];
    uint32_t line = 0;
    if (!meeting.line.compare_exchange_strong(
            line, barrier.where.line(), std::memory_order_relaxed) &&
        line != barrier.where.line()) {
      fail(kDifferentBarriers, barrier.where);
    }
    if (barrier.predicate != 0) {
      meeting.any.store(1, std::memory_order_relaxed);
    }
    if (meeting.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      // All have left the meeting before the last.
      clear(meetings_[(passed_ + 2) % meetings_.size()]);
      meeting.is_complete.store(true, std::memory_order_release);
    }
    while (!meeting.is_complete.load(std::memory_order_acquire)) {
      if (has_returned_.load(std::memory_order_acquire) && !meeting.is_complete) {
        fail(kSomeReturn, barrier.where);
      }
      std::this_thread::yield();
    }
    ++passed_;
    return meeting.any.load(std::memory_order_relaxed);
  }

 private:
  struct Meeting {
    std::atomic<uint32_t> line;
    std::atomic<int> arrived;
    std::atomic<int> any;
    std::atomic<bool> is_complete;
  };

  int threads_;
  std::array<Meeting, 4> meetings_;
  std::atomic<bool> has_returned_;
  inline static thread_local size_t passed_ = 0;

  static void clear(Meeting& meeting) {
    meeting.line.store(0, std::memory_order_relaxed);
    meeting.arrived.store(0, std::memory_order_relaxed);
    meeting.any.store(0, std::memory_order_relaxed);
    meeting.is_complete.store(false, std::memory_order_relaxed);
  }
};

#else

class Block {
 public:
  explicit Block(int threads) : fibers_(threads) {
    for (Fiber& fiber : fibers_) {
      fiber.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
    }
  }

  Order order = Order::kAscending;

  // f(thread) on all threads of the block, each up to its next barrier in turn.
  void run(const std::function<void(int)>& f) {
    function_ = &f;
    std::for_each(fibers_.begin(), fibers_.end(), prepare);
    std::vector<int> turn(fibers_.size());
    std::iota(turn.begin(), turn.end(), 0);
    if (order == Order::kDescending) {
      std::reverse(turn.begin(), turn.end());
    }
    while (!fibers_[0].is_finished) {
      if (order == Order::kShuffled) {
        std::shuffle(turn.begin(), turn.end(), random_);
      }
      for (const int thread : turn) {
        switch_to(thread);
      }
      meet();
    }
  }

  int wait(const Barrier& barrier) {
    fibers_[current_].barrier = barrier;
    switch_back(false);
    return result_;
  }

  int current() const {
    return current_;
  }

 private:
  static constexpr size_t kStackBytes = 256 << 10;

  struct Fiber {
    std::unique_ptr<char[]> stack;
    ucontext_t context;
    Barrier barrier;
    bool is_finished;
    void* fake_stack;
  };

  std::vector<Fiber> fibers_;
  const std::function<void(int)>* function_ = nullptr;
  std::mt19937 random_;
  ucontext_t scheduler_;
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
  int current_ = 0;
  int result_ = 0;

  inline static Block* entering_ = nullptr;

  static void prepare(Fiber& fiber) {
    fiber.is_finished = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Block::enter, 0);
  }

  static void enter() {
    Block* block = entering_;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(
        nullptr, &block->scheduler_stack_, &block->scheduler_stack_bytes_);
#endif
    (*block->function_)(block->current_);
    block->fibers_[block->current_].is_finished = true;
    block->switch_back(true);
  }

  void switch_to(int thread) {
    Fiber& fiber = fibers_[thread];
    current_ = thread;
    entering_ = this;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&scheduler_fake_stack_, fiber.stack.get(), kStackBytes);
#endif
    swapcontext(&scheduler_, &fiber.context);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(scheduler_fake_stack_, nullptr, nullptr);
#endif
  }

  void switch_back(bool for_good) {
    Fiber& fiber = fibers_[current_];
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(
        for_good ? nullptr : &fiber.fake_stack, scheduler_stack_, scheduler_stack_bytes_);
#endif
    swapcontext(&fiber.context, &scheduler_);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

  // All threads stand at one barrier, or all have returned.
  void meet() {
    result_ = 0;
    for (const Fiber& fiber : fibers_) {
      if (fiber.is_finished != fibers_[0].is_finished) {
        fail(kSomeReturn, (fiber.is_finished ? fibers_[0] : fiber).barrier.where);
      }
      if (!fiber.is_finished && !fiber.barrier.is_same_as(fibers_[0].barrier)) {
        fail(kDifferentBarriers, fiber.barrier.where);
      }
      result_ |= fiber.barrier.predicate != 0;
    }
  }
};

#endif

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

// Runs kernel() as every thread of every block.
inline void launch(dim3 grid, dim3 threads, const std::function<void()>& kernel) {
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
  cuda_on_host::block->wait({where, 0});
}

inline int __syncthreads_or(
    int predicate, std::source_location where = std::source_location::current()) {
  return cuda_on_host::block->wait({where, predicate});
}

template <typename T>
T atomicAdd(T* address, T value) {
  return std::atomic_ref<T>(*address).fetch_add(value, std::memory_order_relaxed);
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
