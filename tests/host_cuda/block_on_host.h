// A block of threads on the host: fibers that switch at barriers or, with CUDA_ON_HOST_THREADS,
// threads of the operating system. See cuda_on_host.h.
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

#ifdef __has_feature
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef CUDA_ON_HOST_THREADS
#include "context.h"
#endif

namespace cuda_on_host {

enum class Order { kAscending, kDescending, kShuffled };

[[noreturn]] inline void fail(const char* what, const std::source_location& where) {
  std::fprintf(stderr, "%s:%u: %s\n", where.file_name(), unsigned(where.line()), what);
  std::abort();
}

constexpr int kWarpSize = 32;
constexpr char kSomeReturn[] = "some threads return, others wait at this barrier";
constexpr char kDifferentBarriers[] = "threads wait at different barriers";
constexpr char kSomeLanes[] = "only some lanes of the warp take part";

// A barrier of the block or of a warp. All of its threads must wait at the same one.
struct Barrier {
  std::source_location where;
  bool of_warp = false;
  int predicate = 0;

  bool is_same_as(const Barrier& other) const {
    return of_warp == other.of_warp && where.line() == other.where.line() &&
           where.column() == other.where.column();
  }
};

// The value that a lane shows to the other lanes of its warp in a shuffle. There are two, used in
// turn, because a lane may be one shuffle ahead of lanes that still read.
struct Shown {
  uint64_t values[2];
  unsigned turn = 0;
};

#ifdef CUDA_ON_HOST_THREADS

// A reusable barrier for a number of threads. Successive meetings use different variables. A lock
// shared by all meetings would order more memory accesses than a barrier does, and so hide races
// from ThreadSanitizer.
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

  // passed: the number of meetings that the thread has passed.
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
      // Every thread has left meeting passed - 2, which used the same variables.
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

  // Calls f(thread) on all threads of the block concurrently.
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
    while (stacks_.size() < fibers_.size()) {
      stacks_.push_back(std::make_unique_for_overwrite<char[]>(kStackBytes));
    }
    for (size_t i = 0; i < fibers_.size(); ++i) {
      fibers_[i].stack = stacks_[i].get();
    }
  }

  Order order = Order::kAscending;
  std::vector<Shown> shown;

  // Calls f(thread) on all threads of the block; each in turn runs up to its next barrier.
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
  // Small, because AddressSanitizer's shadow of it is cleared for each block.
  static constexpr size_t kStackBytes = 128 << 10;

  enum class State { kReady, kWaiting, kFinished };

  struct Fiber {
    char* stack;
    Context context;
    Barrier barrier;
    State state;
    void* fake_stack;

    bool is_with(const Fiber& other) const {
      return state == other.state &&
             (state == State::kFinished || barrier.is_same_as(other.barrier));
    }
  };

  // Reused by later blocks; only one block exists at a time.
  inline static std::vector<std::unique_ptr<char[]>> stacks_;

  std::vector<Fiber> fibers_;
  const std::function<void(int)>* function_ = nullptr;
  std::mt19937 random_;
  Context scheduler_;
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
  int current_ = 0;
  int result_ = 0;

  inline static Block* entering_ = nullptr;

  static void prepare(Fiber& fiber) {
    fiber.state = State::kReady;
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(fiber.stack, kStackBytes);  // of frames that never returned
#endif
    fiber.context.start(fiber.stack, kStackBytes, &Block::enter);
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
    __sanitizer_start_switch_fiber(&scheduler_fake_stack_, fiber.stack, kStackBytes);
#endif
    scheduler_.switch_to(fiber.context);
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
    fiber.context.switch_to(scheduler_);
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

  // Called when no thread is ready. Releases the warps whose threads wait at a warp barrier. If
  // there are none, all threads must wait at one barrier of the block, which is released, or all
  // must have returned. Returns false if all have returned.
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

}  // namespace cuda_on_host
