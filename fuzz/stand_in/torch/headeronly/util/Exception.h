// Stands in for torch's header in the fuzzers: a failed check throws.
#pragma once

#include <sstream>
#include <stdexcept>

namespace fuzz {

template <typename... Parts>
[[noreturn]] void fail_check(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

}  // namespace fuzz

#define STD_TORCH_CHECK(condition, ...) \
  do {                                  \
    if (!(condition)) {                 \
      ::fuzz::fail_check(__VA_ARGS__);  \
    }                                   \
  } while (false)
