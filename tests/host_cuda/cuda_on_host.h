// Runs CUDA kernels on the host, so that sanitizers, and machines without a GPU, can execute the
// device code itself.
//
// Blocks run one after the other. The threads of a block are fibers that take turns at barriers, in
// an order that can be chosen: a barrier that is missing shows as a wrong result in some order, one
// that not all threads reach aborts. With CUDA_ON_HOST_THREADS they are threads of the operating
// system, so that ThreadSanitizer sees races (but, with GCC, no store of a call's struct result).
// Shuffles and votes are barriers of a warp. Shared arrays are separate static variables, which
// AddressSanitizer surrounds with red zones; internal linkage of the kernels is what makes it do so
// in templates too. Each launch finds them filled with NaN.
//
// Covers what the kernels here use: grids of one dimension, blocks of whole warps, static shared
// memory, __syncthreads, __syncthreads_or, __syncwarp, shuffles and ballots of whole warps, atomics
// on integers, 16-byte accesses (UndefinedBehaviorSanitizer checks their alignment), conversions of
// the half types. C++20, 64-bit Linux.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <source_location>
#include <thread>
#include <vector>

#include "cpu/scalar.h"
#include "symbols.h"

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

constexpr int kWarpSize = 32;
constexpr char kSomeReturn[] = "some threads return, others wait at this barrier";
constexpr char kDifferentBarriers[] = "threads wait at different barriers";
constexpr char kSomeLanes[] = "some lanes of a warp only take part";

// A barrier of the block or of a warp, as all its threads must see it.
struct Barrier {
  std::source_location where;
  bool of_warp = false;
  int predicate = 0;

  bool is_same_as(const Barrier& other) const {
    return of_warp == other.of_warp && where.line() == other.where.line() &&
           where.column() == other.where.column();
  }
};

// What the lanes of a warp show one another: two values in turn, for a lane may be one shuffle
// ahead of those that still read.
struct Shown {
  uint64_t values[2];
  unsigned turn = 0;
};

#ifdef CUDA_ON_HOST_THREADS

// Where a number of threads meet, again and again. Each barrier passed has its own variables, so
// that it orders what precedes it before what follows it and nothing more: a lock shared by
// successive barriers would hide races from ThreadSanitizer.
class MeetingPlace {
 public:
  explicit MeetingPlace(int threads) : threads_(threads) {
    reset();
  }

  void reset() {
    has_returned_ = false;
    std::for_each(meetings_.begin(), meetings_.end(), clear);
  }
  void leave() {
    has_returned_.store(true, std::memory_order_release);
  }

  // passed: the meetings the thread has been at.
  int wait(const Barrier& barrier, size_t& passed) {
    Meeting& meeting = meetings_[passed % meetings_.size()];
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
      clear(meetings_[(passed + 2) % meetings_.size()]);
      meeting.is_complete.store(true, std::memory_order_release);
    }
    while (!meeting.is_complete.load(std::memory_order_acquire)) {
      if (has_returned_.load(std::memory_order_acquire) && !meeting.is_complete) {
        fail(kSomeReturn, barrier.where);
      }
      std::this_thread::yield();
    }
    ++passed;
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

  static void clear(Meeting& meeting) {
    meeting.line.store(0, std::memory_order_relaxed);
    meeting.arrived.store(0, std::memory_order_relaxed);
    meeting.any.store(0, std::memory_order_relaxed);
    meeting.is_complete.store(false, std::memory_order_relaxed);
  }
};

class Block {
 public:
  explicit Block(int threads) : shown(threads), threads_(threads), of_block_(threads) {
    for (int warp = 0; warp < threads / kWarpSize; ++warp) {
      of_warps_.push_back(std::make_unique<MeetingPlace>(kWarpSize));
    }
  }

  std::vector<Shown> shown;

  // f(thread) on all threads of the block at once.
  void run(const std::function<void(int)>& f) {
    of_block_.reset();
    for (auto& of_warp : of_warps_) {
      of_warp->reset();
    }
    std::vector<std::thread> running;
    for (int thread = 0; thread < threads_; ++thread) {
      running.emplace_back([&, thread] {
        current_ = thread;
        passed_ = passed_in_warp_ = 0;
        f(thread);
        of_warps_[thread / kWarpSize]->leave();
        of_block_.leave();
      });
    }
    for (std::thread& thread : running) {
      thread.join();
    }
  }

  int wait(const Barrier& barrier) {
    return barrier.of_warp ? of_warps_[current_ / kWarpSize]->wait(barrier, passed_in_warp_)
                           : of_block_.wait(barrier, passed_);
  }

  int current() const {
    return current_;
  }

 private:
  int threads_;
  MeetingPlace of_block_;
  std::vector<std::unique_ptr<MeetingPlace>> of_warps_;
  inline static thread_local int current_ = 0;
  inline static thread_local size_t passed_ = 0;
  inline static thread_local size_t passed_in_warp_ = 0;
};

#else

class Block {
 public:
  explicit Block(int threads) : shown(threads), fibers_(threads) {
    for (Fiber& fiber : fibers_) {
      fiber.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
    }
  }

  Order order = Order::kAscending;
  std::vector<Shown> shown;

  // f(thread) on all threads of the block, each up to its next barrier in turn.
  void run(const std::function<void(int)>& f) {
    function_ = &f;
    std::for_each(fibers_.begin(), fibers_.end(), prepare);
    std::vector<int> turn(fibers_.size());
    std::iota(turn.begin(), turn.end(), 0);
    if (order == Order::kDescending) {
      std::reverse(turn.begin(), turn.end());
    }
    do {
      if (order == Order::kShuffled) {
        std::shuffle(turn.begin(), turn.end(), random_);
      }
      for (const int thread : turn) {
        if (fibers_[thread].state == State::kReady) {
          switch_to(thread);
        }
      }
    } while (meet());
  }

  int wait(const Barrier& barrier) {
    fibers_[current_].barrier = barrier;
    fibers_[current_].state = State::kWaiting;
    switch_back(false);
    return result_;
  }

  int current() const {
    return current_;
  }

 private:
  static constexpr size_t kStackBytes = 256 << 10;

  enum class State { kReady, kWaiting, kFinished };

  struct Fiber {
    std::unique_ptr<char[]> stack;
    ucontext_t context;
    Barrier barrier;
    State state;
    void* fake_stack;

    bool is_with(const Fiber& other) const {
      return state == other.state &&
             (state == State::kFinished || barrier.is_same_as(other.barrier));
    }
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
    fiber.state = State::kReady;
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
    block->fibers_[block->current_].state = State::kFinished;
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

  void switch_back([[maybe_unused]] bool for_good) {
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

  using Fibers = std::vector<Fiber>::iterator;

  static void check_together(Fibers begin, Fibers end) {
    for (Fibers fiber = begin; fiber != end; ++fiber) {
      if (fiber->state != begin->state) {
        fail(kSomeReturn, (fiber->state == State::kFinished ? begin : fiber)->barrier.where);
      }
      if (!fiber->is_with(*begin)) {
        fail(kDifferentBarriers, fiber->barrier.where);
      }
    }
  }

  // No thread is ready. Lets the warps that have met at a barrier of theirs go on; else the block,
  // of which all threads then stand at one barrier or have returned. False in the latter case.
  bool meet() {
    bool has_met = false;
    for (Fibers warp = fibers_.begin(); warp != fibers_.end();) {
      const Fibers end = warp + std::min<ptrdiff_t>(kWarpSize, fibers_.end() - warp);
      const bool waits = std::any_of(warp, end, [](const Fiber& fiber) {
        return fiber.state == State::kWaiting && fiber.barrier.of_warp;
      });
      if (waits) {
        check_together(warp, end);
        std::for_each(warp, end, [](Fiber& fiber) { fiber.state = State::kReady; });
        has_met = true;
      }
      warp = end;
    }
    if (has_met) {
      return true;
    }
    check_together(fibers_.begin(), fibers_.end());
    result_ = 0;
    for (Fiber& fiber : fibers_) {
      if (fiber.state == State::kFinished) {
        return false;
      }
      result_ |= fiber.barrier.predicate != 0;
      fiber.state = State::kReady;
    }
    return true;
  }
};

#endif

// A symbol's size includes its red zone.
__attribute__((no_sanitize("address", "thread"))) inline void poison_shared_memory() {
  static const std::vector<Symbol> all = find_shared_memory();
  for (const Symbol& memory : all) {
    volatile char* at = memory.begin;
    for (size_t i = 0; i < memory.bytes; ++i) {
      at[i] = static_cast<char>(0xff);
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

// Runs kernel() as every thread of every block.
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

// f(lane) is what a lane of this warp shows, after all have shown theirs.
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
    std::memcpy(&shown, &theirs.values[turn], sizeof(T));
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
