// Channels in the lanes, read in place: for features whose channels are innermost in memory. Boxes
// share no work, so each box is a work item.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/boxes/box_arguments.h"
#include "cpu/layout/channel_block.h"
#include "cpu/layout/planes.h"
#include "cpu/layout/pooled_gradient.h"
#include "cpu/layout/pooled_writer.h"
#include "cpu/readers/reader.h"

namespace shape_roi_align::cpu {

template <typename T, typename coord_t>
class InPlaceReader {
 public:
  using acc_t = accumulate_t<T>;

  struct Memory {
    BoxAxes<coord_t> axes;
    BoxTaps<acc_t> taps;
    typename BinWeights<coord_t>::Memory weights;
    std::vector<coord_t> prob_map;
    std::vector<int64_t> row_offset;
    std::vector<int64_t> column_offset;
    std::vector<acc_t> bins;
  };

  static bool can_read(const Job& job, const FeatureMap& feature_map) {
    return has_channels_innermost(feature_map, job.params.channels);
  }
  // Never compared: the only other reader of such features, RowSumReader, excludes this one.
  static double cost(const Job&, const Box<coord_t>&) {
    return 0;
  }
  static double cost_of_group(const Job&, BoxSpan<coord_t>, double alone) {
    return alone;
  }
  static Grouping group(const Job&, BoxSpan<coord_t>, double, int64_t) {
    return {1, false};
  }
  // The block depends on what the job does with the bins: see pool and dot.
  static int32_t channels_per_block(const Job&, BoxSpan<coord_t>) {
    return 0;
  }

  InPlaceReader(const Params& params, const WorkItem& item, BoxSpan<coord_t> boxes, Memory& memory)
      : item_(item), box_(boxes[item.begin]), memory_(memory) {
    const FeatureMap& feature_map = params.levels[box_.level];
    image_ = image_data<T>(feature_map, box_.geometry.batch);
    channel_stride_ = feature_map.channel_stride;
    assign_axes(params, box_, memory_.axes);
    const coord_t* prob_map = prob_map_of_box(params, box_.index, memory_.prob_map);
    multiply(memory_.axes.y.touched, feature_map.row_stride, memory_.row_offset);
    multiply(memory_.axes.x.touched, feature_map.column_stride, memory_.column_offset);
    BinWeights<coord_t> weights(memory_.axes, prob_map, params.prob_map_width, memory_.weights);
    memory_.taps.assign(
        memory_.axes, weights, memory_.row_offset.data(), memory_.column_offset.data());
  }

  size_t num_boxes() const {
    return 1;
  }
  const BoxAxes<coord_t>& axes(size_t) const {
    return memory_.axes;
  }
  const BoxTaps<acc_t>& taps(size_t) const {
    return memory_.taps;
  }

  void pool(PooledWriter<T>& output) const {
    const TapMatrix<acc_t> taps = tap_matrix(memory_.taps);
    const int32_t block = output.channels_per_block(item_.channels);
    for_each_block(item_.channel, item_.channels, block, [&](int64_t c, int32_t channels) {
      const T* features = image_ + c * channel_stride_;
      if (output.has_channels_innermost()) {
        const auto gather = output.is_large() ? kernels_.gather_streamed : kernels_.gather;
        gather(taps, features, channels, output.at(box_.index, c), output.bin_stride());
      } else {
        const BinBuffer<acc_t> buffer = output.buffer(channels);
        kernels_.gather_to_buffer(taps, features, channels, buffer.data, buffer.stride);
        output.write(buffer, box_.index, c, channels);
      }
    });
  }

  // products[0][t] += <pixel, gradient of its bin> over the channels of the item, for each tap t.
  void dot(const PooledGradient<T>& grad, std::vector<std::vector<acc_t>>& products) const {
    const int32_t block = grad.channels_per_block(item_.channels);
    for_each_block(item_.channel, item_.channels, block, [&](int64_t c, int32_t channels) {
      const BinVectors<acc_t> bins = grad.bins_of_box(box_.index, c, channels, memory_.bins);
      kernels_.dot(
          tap_matrix(memory_.taps), image_ + c * channel_stride_, channels, bins.data, bins.stride,
          products[0].data());
    });
  }

 private:
  const Kernels<T>& kernels_ = kernels<T>();
  const WorkItem& item_;
  const Box<coord_t>& box_;
  Memory& memory_;
  const T* image_;
  int64_t channel_stride_;

  static void multiply(
      const std::vector<int32_t>& touched, int64_t stride, std::vector<int64_t>& offset) {
    offset.clear();
    for (const int32_t i : touched) {
      offset.push_back(i * stride);
    }
  }
};

}  // namespace shape_roi_align::cpu
