// Preloaded: an operator new that fails on demand where libshape_roi_align.so calls it.
// scripts/soak.py arms it.
#include <dlfcn.h>
#include <link.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

// The machine code of the library.
std::atomic<uintptr_t> begin{0};
std::atomic<uintptr_t> end{0};

std::atomic<bool> is_armed{false};
std::atomic<int64_t> failing{0};  // which allocation fails, from 1; 0: none
std::atomic<int64_t> count{0};    // since it was armed

int find_library(dl_phdr_info* info, size_t, void*) {
  const char* name = std::strrchr(info->dlpi_name, '/');
  if (name == nullptr || std::strcmp(name, "/libshape_roi_align.so") != 0) {
    return 0;
  }
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type == PT_LOAD && (segment.p_flags & PF_X) != 0) {
      begin = info->dlpi_addr + segment.p_vaddr;
      end = begin + segment.p_memsz;
    }
  }
  return 1;
}

bool fails(void* caller) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(caller);
  return is_armed && at >= begin && at < end && ++count == failing;
}

}  // namespace

void* operator new(size_t size) {
  if (fails(__builtin_return_address(0))) {
    throw std::bad_alloc();
  }
  while (true) {
    if (void* memory = std::malloc(size == 0 ? 1 : size)) {
      return memory;
    }
    const std::new_handler handler = std::get_new_handler();
    if (handler == nullptr) {
      throw std::bad_alloc();
    }
    handler();
  }
}

void operator delete(void* memory) noexcept {
  std::free(memory);
}

void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}

extern "C" {

// nth: the allocation to fail, from 1; 0 only counts. Returns whether the library is loaded.
bool shape_roi_align_arm(int64_t nth) {
  if (begin == 0) {
    dl_iterate_phdr(find_library, nullptr);
  }
  failing = nth;
  count = 0;
  is_armed = true;
  return begin != 0;
}

// Allocations since it was armed.
int64_t shape_roi_align_disarm() {
  is_armed = false;
  return count;
}
}
