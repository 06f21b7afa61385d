// The interface between jobs, readers and the scheduler.
//
// A reader is one way of reading the pixels of boxes: a class template <T, coord_t>, T the type of
// the features, with these members.
//
//   static bool can_read(const Job&, const FeatureMap&)
//
//   Costs in cycles per channel. The scheduler compares the costs of the readers that can read an
//   image; results do not depend on costs. cost: of one box read alone; may be infinity.
//   cost_of_group: of all boxes of an image together; alone: the sum of their `cost`.
//   static double cost(const Job&, const Box<coord_t>&)
//   static double cost_of_group(const Job&, BoxSpan<coord_t>, double alone)
//
//   How to divide the boxes of an image into work items. taps: upper bound, summed over the boxes.
//   parts: number of work items wanted.
//   static Grouping group(const Job&, BoxSpan<coord_t>, double taps, int64_t parts)
//   static int32_t channels_per_block(const Job&, BoxSpan<coord_t>)
//
//   Memory: buffers that a worker keeps between items. The constructor builds all taps of the item.
//   pool: the forward pass. dot: products of pixels and gradients of bins, summed over channels. A
//   reader with dot also has num_boxes(), axes(i) and taps(i). A reader without dot accepts only
//   jobs that divide channels.
//   struct Memory
//   Reader(const Params&, const WorkItem&, BoxSpan<coord_t>, Memory&)
//   void pool(PooledWriter<T>&)
//   void dot(const PooledGradient<T>&, std::vector<std::vector<acc_t>>& products)
//
//   Optional. Declared if the reader's results differ from the other readers' in rounding: it then
//   reads all boxes of every level that it can read. On such levels, jobs that sum over channels
//   use a class of their own instead (RowSumMapAndBoxGradient).
//   static constexpr bool kExcludesOthers
//
// readers/readers.h lists the readers.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/boxes/boxes.h"
#include "cpu/layout/element_rows.h"
#include "cpu/simd/kernels.h"
#include "cpu/taps/box_taps.h"

namespace shape_roi_align::cpu {

// The requirements of a job on readers.
struct Job {
  const Params& params;
  // Whether a work item may process a part of the channels. False for sums over channels.
  bool divides_channels;
  // The bin rows of the output; none if the job does not pool.
  ElementRows bin_rows;

  const FeatureMap& feature_map(int32_t level) const {
    return params.levels[level];
  }
};

// A range of channels of boxes of one image of one level, for one reader.
struct WorkItem {
  size_t reader;  // index into Readers
  size_t begin;   // boxes
  size_t end;
  int64_t channel;
  int64_t channels;
  // Channels per block. Fixes the order of summation, so results do not depend on how boxes are
  // divided.
  int32_t block;
};

// How a reader divides the boxes of an image into work items.
struct Grouping {
  int64_t boxes;  // per item, at most
  // Whether the boxes of an item share the pixels that they read. All items of the image then use
  // the channels_per_block of all boxes of the image.
  bool is_shared;
};

template <typename acc_t>
TapMatrix<acc_t> tap_matrix(const BoxTaps<acc_t>& taps) {
  return {
      static_cast<int32_t>(taps.bin_begin.size()) - 1, taps.bin_begin.data(), taps.offset.data(),
      taps.weight.data()};
}

// First pixel of an image; channel 0.
template <typename T>
const T* image_data(const FeatureMap& feature_map, int64_t image) {
  return static_cast<const T*>(feature_map.data) + image * feature_map.image_stride;
}

}  // namespace shape_roi_align::cpu
