// Divides a box into patches: as many bins, or samples of one bin, as fit into shared memory.
//
// Within a patch, each bin is a small matrix of taps: the pixel rows x the pixel columns that its
// samples touch. Each pixel is one tap, even if several samples read it.
//
//   a box of 4 x 4 bins             a bin of 2 x 2 samples o     a bin of many samples:
//   in 4 groups                     and its 3 x 3 taps #         one group of 4 patches
//
//   +-----+-----+ +-----+-----+
//   | bin | bin | | bin | bin |         #     #     #            +-------+-------+
//   +-----+-----+ +-----+-----+            o     o               | o o o | o o o |
//   | bin | bin | | bin | bin |         #     #     #            | o o o | o o o |
//   +-----+-----+ +-----+-----+            o     o               +-------+-------+
//      group 0       group 1            #     #     #            | o o o | o o o |
//   +-----+-----+ +-----+-----+                                  | o o o | o o o |
//   | bin | bin | | bin | bin |                                  +-------+-------+
//   +-----+-----+ +-----+-----+
//   | bin | bin | | bin | bin |
//   +-----+-----+ +-----+-----+
//      group 2       group 3
//
// A group of whole bins is one patch. Share s of S has the groups s, s + S, ... of the box. A block
// serves (slab of channels, box, share). A slab is a range of adjacent channels; all boxes of a
// slab are processed before the next slab.
#pragma once

#include "cuda/block.cuh"

namespace shape_roi_align::cuda {

constexpr int32_t kMaxTaps = 1024;       // of a patch
constexpr int32_t kMaxSamples = 1024;    // of a patch
constexpr int32_t kMaxAxisSamples = 64;  // of a patch, along one axis
constexpr int32_t kMaxBinSamples = 32;   // of a bin in a patch, along one axis
constexpr int32_t kMaxTouched = 32;      // rows (or columns) that the samples of a bin touch
constexpr int32_t kManyTaps = 128;       // of a bin; if it has more, the whole block works on it
static_assert(kMaxBinSamples * kMaxBinSamples <= kMaxSamples);
static_assert(kMaxTouched * kMaxTouched <= kMaxTaps);

// The work of a grid whose blocks serve boxes: (slab of channels, box, share of the box's groups of
// patches). Slabs are outermost, so that the cache holds one slab of the features at a time.
struct BoxGrid {
  int64_t num_rois;
  int64_t slabs;
  int64_t slab_channels;
  int32_t shares;    // of a box
  int32_t max_bins;  // of a patch

  __host__ __device__ int64_t size() const {
    return slabs * num_rois * shares;
  }
  __device__ int64_t slab(int64_t i) const {
    return i / shares / num_rois;
  }
  __device__ int64_t box(int64_t i) const {
    return i / shares % num_rois;
  }
  __device__ int32_t share(int64_t i) const {
    return static_cast<int32_t>(i % shares);
  }
};

// The samples of a bin in a patch, along one axis.
struct BinExtent {
  int32_t samples;
  int32_t touched;  // upper bound on the rows (or columns) that the samples touch
};

template <typename T>
__device__ BinExtent bin_extent(const Axis<T>& axis) {
  if (axis.samples <= 0) {
    return {0, 0};
  }
  constexpr T kEpsilon = std::numeric_limits<T>::epsilon();
  const T spacing = std::fabs(axis.extent) / (T(axis.bins) * T(axis.samples));
  // Twice the rounding error of sample_coordinate and of this bound, in pixels.
  const T slack = T(0.01) + T(16) * kEpsilon * (std::fabs(axis.start) + std::fabs(axis.extent));
  // If the first and the last sample are d apart, the samples touch at most floor(d) + 3 rows. Each
  // sample touches two.
  const T fitting = (T(kMaxTouched - 3) - slack) / spacing + T(1);
  int32_t samples = kMaxBinSamples;
  if (fitting < T(kMaxBinSamples)) {
    samples = fitting > T(kMaxTouched / 2) ? static_cast<int32_t>(fitting) : kMaxTouched / 2;
  }
  samples = min_of(samples, axis.samples);
  const T touched = T(samples - 1) * spacing + slack + T(3);
  return {samples, touched < T(2 * samples) ? static_cast<int32_t>(touched) : 2 * samples};
}

// How a box is divided into patches. A patch is a rectangle of whole bins or, where a bin has too
// many samples, a rectangle of one bin's samples.
struct PatchPlan {
  BinExtent y;
  BinExtent x;
  bool whole_bins;
  int32_t bin_rows;  // of a patch
  int32_t bin_columns;

  __device__ int32_t taps_per_bin() const {
    return y.touched * x.touched;
  }
  // A bin with many taps has a patch of its own. This depends only on the box, so a box's output
  // does not depend on the other boxes of the call.
  __device__ bool has_many_taps() const {
    return taps_per_bin() > kManyTaps;
  }
};

// y_extent, x_extent: bin_extent of the box's axes. max_bins: maximum bins per patch, at least 1.
template <typename T>
__device__ PatchPlan plan_patches(
    const Box<T>& box, const BinExtent& y_extent, const BinExtent& x_extent, int32_t max_bins) {
  const Axis<T>& y = box.geometry.y;
  const Axis<T>& x = box.geometry.x;
  PatchPlan plan{{0, 0}, {0, 0}, true, 1, 1};
  if (box.reads) {
    plan.y = y_extent;
    plan.x = x_extent;
    plan.whole_bins = plan.y.samples == y.samples && plan.x.samples == x.samples;
  }
  if (plan.whole_bins && !plan.has_many_taps()) {
    const int32_t along_y = kMaxAxisSamples / max_of(plan.y.samples, 1);
    const int32_t along_x = kMaxAxisSamples / max_of(plan.x.samples, 1);
    const int32_t by_taps = kMaxTaps / max_of(plan.taps_per_bin(), 1);
    const int32_t by_samples = kMaxSamples / max_of(plan.y.samples * plan.x.samples, 1);
    const int32_t bins = min_of(max_bins, min_of(by_taps, by_samples));
    plan.bin_columns = min_of(x.bins, min_of(along_x, bins));
    plan.bin_rows = min_of(y.bins, min_of(along_y, bins / plan.bin_columns));
  }
  return plan;
}

// Loads box k and its plan into shared memory; no thread may read the memory meanwhile. Two lanes
// load one axis each. Called by all threads of the block; ends with a barrier.
template <typename coord_t>
__device__ void load_box(
    const Params& params, int64_t k, int32_t max_bins, Box<coord_t>& box, PatchPlan& plan) {
  if (warp_index() == 0) {
    make_box_by_lanes(params, k, lane_index() < 2, box);
    __syncwarp();
    const BinExtent extent = bin_extent(lane_index() == 0 ? box.geometry.y : box.geometry.x);
    const BinExtent x_extent{
        __shfl_sync(kAllLanes, extent.samples, 1), __shfl_sync(kAllLanes, extent.touched, 1)};
    if (lane_index() == 0) {
      const PatchPlan planned = plan_patches(box, extent, x_extent, max_bins);
      plan = planned;  // GCC's ThreadSanitizer misses a store of the call's result itself
    }
  }
  __syncthreads();
}

// The samples of a patch along one axis: `samples` of each of `bins` bins, numbered bin by bin.
struct PatchAxis {
  int32_t first_bin;
  int32_t bins;
  int32_t first_sample;
  int32_t samples;

  __device__ int32_t size() const {
    return bins * samples;
  }
  __device__ int32_t bin(int32_t i) const {
    return first_bin + i / samples;
  }
  __device__ int32_t sample(int32_t i) const {
    return first_sample + i % samples;
  }
};

struct Patch {
  PatchAxis y;
  PatchAxis x;

  __device__ int32_t bins() const {
    return y.bins * x.bins;
  }
};

// The patches of a box, group by group. All patches of a group cover the same bins.
template <typename T>
class PatchGroups {
 public:
  __device__ PatchGroups(const Params& params, const Box<T>& box, const PatchPlan& plan)
      : box_(box),
        plan_(plan),
        feature_map_(params.levels[box.level]),
        rows_(params.options.pooled_height),
        columns_(params.options.pooled_width) {}

  __device__ int32_t count() const {
    return static_cast<int32_t>(
        ceil_div(rows_, plan_.bin_rows) * ceil_div(columns_, plan_.bin_columns));
  }

  // Calls f(patch, is the first of the group, is the last of the group) at least once. The number
  // of calls is block-uniform, because it follows from the box and the plan in shared memory; f may
  // therefore have barriers. Samples outside the feature map may be left out.
  template <typename F>
  __device__ void for_each_patch(int32_t group, F f) const {
    const int32_t across = static_cast<int32_t>(ceil_div(columns_, plan_.bin_columns));
    const int32_t row = group / across * plan_.bin_rows;
    const int32_t column = group % across * plan_.bin_columns;
    Range<int32_t> y{0, plan_.y.samples};
    Range<int32_t> x{0, plan_.x.samples};
    if (!plan_.whole_bins) {
      y = samples_inside(box_.geometry.y, row, feature_map_.height);
      x = samples_inside(box_.geometry.x, column, feature_map_.width);
    }
    const int64_t down = max_of(ceil_div(y.end - y.begin, max_of(plan_.y.samples, 1)), 1);
    const int64_t right = max_of(ceil_div(x.end - x.begin, max_of(plan_.x.samples, 1)), 1);
    for (int64_t i = 0; i < down * right; ++i) {
      const int32_t first_y = y.begin + static_cast<int32_t>(i / right) * plan_.y.samples;
      const int32_t first_x = x.begin + static_cast<int32_t>(i % right) * plan_.x.samples;
      const Patch patch{
          {row, min_of(plan_.bin_rows, rows_ - row), first_y,
           min_of(plan_.y.samples, y.end - first_y)},
          {column, min_of(plan_.bin_columns, columns_ - column), first_x,
           min_of(plan_.x.samples, x.end - first_x)}};
      f(patch, i == 0, i + 1 == down * right);
    }
  }

 private:
  const Box<T>& box_;
  const PatchPlan& plan_;
  const FeatureMap& feature_map_;
  int32_t rows_;
  int32_t columns_;
};

}  // namespace shape_roi_align::cuda
