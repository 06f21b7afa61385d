// What jobs, readers and the schedule agree on.
//
// A reader is one way of reading the pixels of boxes. It is a class template <T, coord_t>, T the
// type of the features, with
//
//   static bool can_read(const Job&, const FeatureMap&)
//   static double cost(const Job&, const Box<coord_t>&)           // of a box read alone; may be
//                                                                 // infinity
//   static double cost_together(const Job&, BoxSpan<coord_t>)     // of boxes of an image
//   static Grouping group(const Job&, BoxSpan<coord_t>, double taps, int64_t parts)
//   static int32_t channels_per_block(const Job&, BoxSpan<coord_t>)
//   struct Memory                                                 // kept by a worker between items
//   Reader(const Params&, const WorkItem&, BoxSpan<coord_t>, Memory&)  // ready to read
//   void pool(PooledWriter<T>&)                                   // the forward pass
//   void dot(...)                                                 // see readers/packed.h; absent
//                                                                 // where can_read refuses sums
//
// Costs are in cycles per channel. They decide between the readers that can read an image; results
// do not depend on them. readers/readers.h lists the readers.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/boxes/boxes.h"
#include "cpu/simd/kernels.h"
#include "cpu/taps/box_taps.h"

namespace shape_roi_align::cpu {

// What a job asks of readers.
struct Job {
  const Params& params;
  // Work items may take some of the channels. False for sums over channels.
  bool divides_channels;
  // The job takes bins in the lanes: it pools, and bins of a bin row are adjacent in its output.
  bool takes_bins_in_lanes;

  const FeatureMap& feature_map(int32_t level) const {
    return params.levels[level];
  }
};

// Some channels of boxes of one image of one level, for one reader.
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
  // The boxes of an item share the pixels that they read. All items of the image then have the
  // block of all its boxes.
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
