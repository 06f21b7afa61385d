// Channels in the lanes, packed: pixel rows of planes are transposed into a buffer first, some
// channels at a time.
//
// Overlapping boxes, such as a detector's, share the packed rows: each row under the boxes is
// packed once, in whole cache lines and in the order of memory, into a ring that holds the rows of
// the tallest box. Converting the whole feature map instead would read every pixel from memory
// twice. Packing box by box reads a pixel once per box, in short pieces of rows; the reader packs
// box by box if that reads fewer pixels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/boxes/box_arguments.h"
#include "cpu/boxes/taps_bound.h"
#include "cpu/layout/channel_block.h"
#include "cpu/layout/planes.h"
#include "cpu/layout/pooled_gradient.h"
#include "cpu/layout/pooled_writer.h"
#include "cpu/readers/packed_rows.h"
#include "cpu/readers/reader.h"

namespace shape_roi_align::cpu {

// Pixels to pack for boxes of an image. A row counts all columns from the first to the last that
// samples read, because memory moves in whole cache lines.
struct PackedPixels {
  double shared;  // each row under the boxes once
  double apart;   // each box alone
};

template <typename coord_t>
double packed_pixels(const Box<coord_t>& box) {
  const Axis<coord_t>& y = box.geometry.y;
  const double rows = std::min<double>(box.rows.end - box.rows.begin, 2.0 * y.samples * y.bins);
  return rows * (box.columns.end - box.columns.begin);
}

// From the first to the last column that any of the boxes may read. boxes: not empty.
template <typename coord_t>
Range<int32_t> columns_of(BoxSpan<coord_t> boxes) {
  Range<int32_t> columns = boxes.front().columns;
  for (const Box<coord_t>& box : boxes) {
    columns.begin = std::min(columns.begin, box.columns.begin);
    columns.end = std::max(columns.end, box.columns.end);
  }
  return columns;
}

// boxes: sorted by first row.
template <typename coord_t>
PackedPixels packed_pixels(BoxSpan<coord_t> boxes) {
  double apart = 0;
  int64_t rows = 0;
  int32_t last_row = 0;
  for (const Box<coord_t>& box : boxes) {
    apart += packed_pixels(box);
    rows += std::max(box.rows.end - std::max(box.rows.begin, last_row), 0);
    last_row = std::max(last_row, box.rows.end);
  }
  const Range<int32_t> columns = columns_of(boxes);
  return {double(rows) * (columns.end - columns.begin), apart};
}

template <typename T, typename coord_t>
class PackedReader {
 public:
  using acc_t = accumulate_t<T>;

  struct Memory {
    std::vector<BoxAxes<coord_t>> axes;
    std::vector<BoxTaps<acc_t>> taps;
    typename BinWeights<coord_t>::Memory weights;
    std::vector<coord_t> prob_map;
    std::vector<int64_t> row_offset;
    std::vector<int64_t> column_offset;
    std::vector<acc_t> bins;
    std::vector<int32_t> columns;
    typename RowRing<T>::Memory ring;
  };

  static bool can_read(const Job& job, const FeatureMap& feature_map) {
    return !has_channels_innermost(feature_map, job.params.channels);
  }

  static double cost(const Job& job, const Box<coord_t>& box) {
    return cost_of(job).pixel * packed_pixels(box) +
           cost_of(job).tap * taps_bound(box, job.feature_map(box.level));
  }

  static double cost_of_group(const Job& job, BoxSpan<coord_t> boxes, double) {
    double of_taps = 0;
    for (const Box<coord_t>& box : boxes) {
      of_taps += cost_of(job).tap * taps_bound(box, job.feature_map(box.level));
    }
    const PackedPixels pixels = packed_pixels(boxes);
    return cost_of(job).pixel * std::min(pixels.shared, pixels.apart) + of_taps;
  }

  // taps: upper bound, summed over the boxes. parts: number of work items wanted.
  static Grouping group(const Job& job, BoxSpan<coord_t> boxes, double taps, int64_t parts) {
    constexpr double kMaxTaps = 1 << 20;  // per item; 12 to 16 MB
    constexpr int64_t kMinBoxes = 16;     // per item; with fewer, rows are packed too often
    const PackedPixels pixels = packed_pixels(boxes);
    if (pixels.shared > pixels.apart) {
      return {1, false};
    }
    const int64_t num_boxes = static_cast<int64_t>(boxes.size());
    int64_t boxes_per_item = std::clamp<int64_t>(
        static_cast<int64_t>(kMaxTaps / (1 + taps) * double(num_boxes)), 1, num_boxes);
    if (!job.divides_channels) {
      const int64_t boxes_per_part = (num_boxes + parts - 1) / parts;
      boxes_per_item = std::min(
          boxes_per_item, std::clamp(boxes_per_part, std::min(kMinBoxes, num_boxes), num_boxes));
    }
    return {boxes_per_item, true};
  }

  static int32_t channels_per_block(const Job& job, BoxSpan<coord_t> boxes) {
    int64_t rows = 0;
    for (const Box<coord_t>& box : boxes) {
      rows = std::max<int64_t>(rows, box.rows.end - box.rows.begin);
    }
    const Range<int32_t> columns = columns_of(boxes);
    const Kernels<T>& table = kernels<T>();
    return channel_block<T>(
        rows * round_up(columns.end - columns.begin, table.lanes), job.params.channels,
        table.planar_block);
  }

  PackedReader(const Params& params, const WorkItem& item, BoxSpan<coord_t> boxes, Memory& memory)
      : item_(item),
        boxes_(boxes.subspan(item.begin, item.end - item.begin)),
        memory_(memory),
        ring_(make_ring(params)) {
    if (memory_.taps.size() < num_boxes()) {
      memory_.taps.resize(num_boxes());
    }
    for (size_t i = 0; i < num_boxes(); ++i) {
      const BoxAxes<coord_t>& axes = memory_.axes[i];
      memory_.row_offset.clear();
      for (const int32_t row : axes.y.touched) {
        memory_.row_offset.push_back(ring_.row_offset(row));
      }
      memory_.column_offset.clear();
      for (const int32_t column : axes.x.touched) {
        memory_.column_offset.push_back(
            ring_.column_offset(column, static_cast<int64_t>(memory_.column_offset.size())));
      }
      const coord_t* prob_map = prob_map_of_box(params, boxes_[i].index, memory_.prob_map);
      BinWeights<coord_t> weights(axes, prob_map, params.prob_map_width, memory_.weights);
      memory_.taps[i].assign(
          axes, weights, memory_.row_offset.data(), memory_.column_offset.data());
    }
  }

  size_t num_boxes() const {
    return boxes_.size();
  }
  const BoxAxes<coord_t>& axes(size_t i) const {
    return memory_.axes[i];
  }
  const BoxTaps<acc_t>& taps(size_t i) const {
    return memory_.taps[i];
  }

  void pool(PooledWriter<T>& output) {
    for_each_packed_box([&](size_t i, const acc_t* features, int64_t c, int32_t channels) {
      const TapMatrix<acc_t> taps = tap_matrix(memory_.taps[i]);
      const int64_t k = boxes_[i].index;
      if (output.has_channels_innermost()) {
        kernels_.gather_from_buffer(taps, features, channels, output.at(k, c), output.bin_stride());
      } else {
        const BinBuffer<acc_t> buffer = output.buffer(channels);
        kernels_.gather_between_buffers(taps, features, channels, buffer.data, buffer.stride);
        output.write(buffer, k, c, channels);
      }
    });
  }

  // products[i][t] += <pixel, gradient of its bin> over the channels of the item, for each tap t of
  // box i.
  void dot(const PooledGradient<T>& grad, std::vector<std::vector<acc_t>>& products) {
    for_each_packed_box([&](size_t i, const acc_t* features, int64_t c, int32_t channels) {
      const BinVectors<acc_t> bins = grad.bins_of_box(boxes_[i].index, c, channels, memory_.bins);
      kernels_.dot_with_buffer(
          tap_matrix(memory_.taps[i]), features, channels, bins.data, bins.stride,
          products[i].data());
    });
  }

 private:
  struct Cost {
    double pixel;
    double tap;
  };

  const Kernels<T>& kernels_ = kernels<T>();
  const WorkItem& item_;
  const BoxSpan<coord_t> boxes_;
  Memory& memory_;
  RowRing<T> ring_;

  // Fitted to timings with AVX-512. The kernels work on whole vectors of channels.
  static Cost cost_of(const Job& job) {
    const int64_t channels = job.params.channels;
    const double padding = double(round_up(channels, kernels<T>().lanes)) / double(channels);
    return {1.2 * padding, 0.08 * padding};
  }

  // A ring for the rows and columns that the boxes touch. Also assigns the axes of the boxes.
  RowRing<T> make_ring(const Params& params) {
    if (memory_.axes.size() < num_boxes()) {
      memory_.axes.resize(num_boxes());
    }
    int32_t capacity = 1;
    Range<int32_t> columns{std::numeric_limits<int32_t>::max(), 0};
    for (size_t i = 0; i < num_boxes(); ++i) {
      BoxAxes<coord_t>& axes = memory_.axes[i];
      assign_axes(params, boxes_[i], axes);
      if (axes.touches_pixels()) {
        capacity = std::max(capacity, axes.y.touched.back() - axes.y.touched.front() + 1);
        columns.begin = std::min(columns.begin, axes.x.touched.front());
        columns.end = std::max(columns.end, axes.x.touched.back() + 1);
      }
    }
    // For a single box with wide gaps, only the touched columns are packed. Otherwise packing whole
    // vectors of columns is cheaper.
    std::vector<int32_t>& packed = memory_.columns;
    packed.clear();
    const std::vector<int32_t>& touched = memory_.axes[0].x.touched;
    if (num_boxes() == 1 &&
        columns.end - columns.begin >= 2 * static_cast<int64_t>(touched.size())) {
      packed = touched;
    } else {
      for (int32_t column = columns.begin; column < columns.end; ++column) {
        packed.push_back(column);
      }
    }
    if (packed.empty()) {
      packed.push_back(0);
    }
    return RowRing<T>(
        params.levels[boxes_[0].level], boxes_[0].geometry.batch, packed, capacity, item_.block,
        memory_.ring);
  }

  // Calls f(i, features, c, channels) for each box i and each block of channels. The offsets of the
  // box's taps are relative to `features`.
  template <typename F>
  void for_each_packed_box(F f) {
    for_each_block(item_.channel, item_.channels, item_.block, [&](int64_t c, int32_t channels) {
      PackedRows<T> rows(ring_, c, channels);
      for (size_t i = 0; i < num_boxes(); ++i) {
        const BoxAxes<coord_t>& axes = memory_.axes[i];
        if (axes.touches_pixels()) {
          rows.pack(axes.y.touched);
        }
        f(i, rows.data(), c, channels);
      }
    });
  }
};

}  // namespace shape_roi_align::cpu
