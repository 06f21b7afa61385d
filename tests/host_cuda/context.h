// Switches between stacks. ucontext.h would do a system call per switch, which takes most of the
// time of a kernel on the host.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace cuda_on_host {

#ifdef __x86_64__

// Pushes the registers that calls preserve, stores the stack pointer in *from, and continues with
// the stack pointer `to`.
__attribute__((naked, noinline)) inline void switch_stacks(void** /*from*/, void* /*to*/) {
  asm("pushq %rbp\n\t"
      "pushq %rbx\n\t"
      "pushq %r12\n\t"
      "pushq %r13\n\t"
      "pushq %r14\n\t"
      "pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15\n\t"
      "popq %r14\n\t"
      "popq %r13\n\t"
      "popq %r12\n\t"
      "popq %rbx\n\t"
      "popq %rbp\n\t"
      "ret");
}

// Where a stack of calls continues.
class Context {
 public:
  // Calls f() on the stack at the next switch.
  void start(char* stack, size_t bytes, void (*f)()) {
    constexpr uintptr_t kAlignment = 16;
    void** const top = reinterpret_cast<void**>(
        reinterpret_cast<uintptr_t>(stack + bytes) / kAlignment * kAlignment);
    top[-1] = nullptr;  // f does not return
    top[-2] = reinterpret_cast<void*>(f);
    pointer_ = top - 2 - kRegisters;
    std::fill(pointer_, top - 2, nullptr);
  }

  void switch_to(Context& other) {
    switch_stacks(reinterpret_cast<void**>(&pointer_), other.pointer_);
  }

 private:
  static constexpr int kRegisters = 6;
  void** pointer_ = nullptr;
};

#else

class Context {
 public:
  void start(char* stack, size_t bytes, void (*f)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, f, 0);
  }

  void switch_to(Context& other) {
    swapcontext(&context_, &other.context_);
  }

 private:
  ucontext_t context_;
};

#endif

}  // namespace cuda_on_host
