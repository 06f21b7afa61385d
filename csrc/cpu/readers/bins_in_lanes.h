// Bins in the lanes, read in place: for planes whose columns are innermost. Each lane serves one
// bin of a bin row. A few vectors of each pixel row are loaded, and the lanes look up their pixels
// in these vectors. Nothing is transposed, but every pixel of a bin costs a lookup. This is cheaper
// than packing if boxes are narrow or few. The sums equal the sums over BoxTaps bit for bit: the
// same products in the same order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/boxes/box_arguments.h"
#include "cpu/boxes/taps_bound.h"
#include "cpu/layout/channel_block.h"
#include "cpu/layout/planes.h"
#include "cpu/layout/pooled_writer.h"
#include "cpu/readers/lookups.h"
#include "cpu/readers/reader.h"

namespace shape_roi_align::cpu {

template <typename T, typename coord_t>
class BinsInLanesReader {
 public:
  using acc_t = accumulate_t<T>;

  struct Memory {
    BoxAxes<coord_t> axes;
    std::vector<BoxLookups<coord_t, acc_t>> lookups;
    typename BinWeights<coord_t>::Memory weights;
    std::vector<coord_t> prob_map;
  };

  // Bins fill at least a quarter of the lanes, so the weights take at most about four times the
  // memory of the taps.
  static bool can_read(const Job& job, const FeatureMap& feature_map) {
    const Kernels<T>& table = kernels<T>();
    const int32_t bins = job.params.options.pooled_width;
    return job.bin_rows.interleaved == 1 && table.look_up != nullptr &&
           !has_channels_innermost(feature_map, job.params.channels) &&
           feature_map.column_stride == 1 && feature_map.width >= table.lanes &&
           bins <= table.lanes && 4 * bins >= table.lanes;
  }

  // Fitted to timings with AVX-512.
  static double cost(const Job& job, const Box<coord_t>& box) {
    constexpr double kLookupCost = 2;
    constexpr double kVectorCost = 4;  // of pixels
    const FeatureMap& feature_map = job.feature_map(box.level);
    const int32_t lanes = kernels<T>().lanes;
    const int32_t columns = box.columns.end - box.columns.begin;
    if (columns > kMaxRowVectors * lanes) {
      return std::numeric_limits<double>::infinity();
    }
    const Axis<coord_t>& x = box.geometry.x;
    const double vectors = double(columns) / lanes + 1;
    const double pixels_of_bin = entries_bound(x, feature_map.width) / x.bins;
    return entries_bound(box.geometry.y, feature_map.height) *
           (kVectorCost * vectors + kLookupCost * pixels_of_bin);
  }

  // Boxes share no work.
  static double cost_of_group(const Job&, BoxSpan<coord_t>, double alone) {
    return alone;
  }

  static Grouping group(const Job&, BoxSpan<coord_t> boxes, double, int64_t parts) {
    constexpr int64_t kMaxBoxes = 64;  // the weights of so many stay in the cache
    const int64_t num_boxes = static_cast<int64_t>(boxes.size());
    return {std::clamp<int64_t>(num_boxes / (4 * parts), 1, kMaxBoxes), false};
  }

  // As many planes as stay in the cache; a multiple of 4, because the kernel processes groups of
  // planes.
  static int32_t channels_per_block(const Job& job, BoxSpan<coord_t> boxes) {
    constexpr int64_t kPlanesBytes = 1 << 20;
    const FeatureMap& feature_map = job.feature_map(boxes.front().level);
    const int64_t plane =
        std::max<int64_t>(feature_map.height * feature_map.row_stride * int64_t(sizeof(T)), 1);
    return static_cast<int32_t>(std::clamp<int64_t>(kPlanesBytes / plane / 4 * 4, 4, 64));
  }

  BinsInLanesReader(
      const Params& params, const WorkItem& item, BoxSpan<coord_t> boxes, Memory& memory)
      : item_(item),
        boxes_(boxes.subspan(item.begin, item.end - item.begin)),
        lookups_(memory.lookups),
        feature_map_(params.levels[boxes_[0].level]),
        image_(image_data<T>(feature_map_, boxes_[0].geometry.batch)) {
    if (lookups_.size() < boxes_.size()) {
      lookups_.resize(boxes_.size());
    }
    for (size_t i = 0; i < boxes_.size(); ++i) {
      assign_axes(params, boxes_[i], memory.axes);
      const coord_t* prob_map = prob_map_of_box(params, boxes_[i].index, memory.prob_map);
      BinWeights<coord_t> weights(memory.axes, prob_map, params.prob_map_width, memory.weights);
      lookups_[i].assign(memory.axes, weights, feature_map_, kernels_.lanes);
    }
  }

  void pool(PooledWriter<T>& output) const {
    for_each_block(item_.channel, item_.channels, item_.block, [&](int64_t c, int32_t channels) {
      const T* planes = image_ + c * feature_map_.channel_stride;
      for (size_t i = 0; i < boxes_.size(); ++i) {
        output.write_planes(
            boxes_[i].index, c, channels,
            [&](T* to, int64_t channel_stride, int64_t bin_row_stride) {
              kernels_.look_up(
                  lookups_[i].view(), planes, feature_map_.channel_stride, channels, to,
                  channel_stride, bin_row_stride);
            });
      }
    });
  }

 private:
  const Kernels<T>& kernels_ = kernels<T>();
  const WorkItem& item_;
  const BoxSpan<coord_t> boxes_;
  std::vector<BoxLookups<coord_t, acc_t>>& lookups_;
  const FeatureMap& feature_map_;
  const T* image_;
};

}  // namespace shape_roi_align::cpu
