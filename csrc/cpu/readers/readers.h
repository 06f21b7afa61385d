// The list of readers. To add a reader, add a file beside this one and a line here.
#pragma once

#include <cstddef>
#include <tuple>

#include "cpu/readers/bins_in_lanes.h"
#include "cpu/readers/in_place.h"
#include "cpu/readers/packed.h"
#include "cpu/readers/row_sums.h"

namespace shape_roi_align::cpu {

template <typename T, typename coord_t>
using Readers = std::tuple<
    RowSumReader<T, coord_t>, BinsInLanesReader<T, coord_t>, PackedReader<T, coord_t>,
    InPlaceReader<T, coord_t>>;

template <typename T, typename coord_t>
constexpr size_t kNumReaders = std::tuple_size_v<Readers<T, coord_t>>;

// Calls f.operator()<Reader>(index) for every reader.
template <typename T, typename coord_t, size_t I = 0, typename F>
void for_each_reader(const F& f) {
  if constexpr (I < kNumReaders<T, coord_t>) {
    f.template operator()<std::tuple_element_t<I, Readers<T, coord_t>>>(I);
    for_each_reader<T, coord_t, I + 1>(f);
  }
}

// Calls f.operator()<Reader>() for the reader with that index.
template <typename T, typename coord_t, typename F>
void with_reader(size_t reader, const F& f) {
  for_each_reader<T, coord_t>([&]<typename Reader>(size_t index) {
    if (index == reader) {
      f.template operator()<Reader>();
    }
  });
}

// A worker's memory for every reader.
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
