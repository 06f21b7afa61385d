// All readers. A new one is a file beside this one and a line here.
#pragma once

#include <tuple>
#include <type_traits>

#include "cpu/readers/bins_in_lanes.h"
#include "cpu/readers/in_place.h"
#include "cpu/readers/packed.h"

namespace shape_roi_align::cpu {

template <typename T, typename coord_t>
using Readers =
    std::tuple<BinsInLanesReader<T, coord_t>, PackedReader<T, coord_t>, InPlaceReader<T, coord_t>>;

template <typename T, typename coord_t>
constexpr size_t kNumReaders = std::tuple_size_v<Readers<T, coord_t>>;

// Calls f(std::type_identity of the reader) and returns its result.
template <typename T, typename coord_t, size_t I = 0, typename F>
auto with_reader(size_t reader, F f) {
  if constexpr (I + 1 < kNumReaders<T, coord_t>) {
    if (reader != I) {
      return with_reader<T, coord_t, I + 1>(reader, f);
    }
  }
  return f(std::type_identity<std::tuple_element_t<I, Readers<T, coord_t>>>{});
}

// The memory of a worker that reads with any of the readers.
template <typename T, typename coord_t>
class ReaderMemory {
 public:
  template <typename Reader>
  typename Reader::Memory& of() {
    return std::get<typename Reader::Memory>(memory_);
  }

 private:
  template <typename>
  struct MemoryOf;
  template <typename... R>
  struct MemoryOf<std::tuple<R...>> {
    using type = std::tuple<typename R::Memory...>;
  };
  typename MemoryOf<Readers<T, coord_t>>::type memory_;
};

}  // namespace shape_roi_align::cpu
