// The boxes of a run, made ready for the inner loops.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/boxes.h"
#include "cpu/lookups.h"
#include "cpu/packed_rows.h"
#include "cpu/run_plan.h"

namespace shape_roi_align::cpu {

template <typename T, typename coord_t>
class BoxRun {
 public:
  using acc_t = accumulate_t<T>;
  using Taps = BoxTaps<coord_t, acc_t>;

  BoxRun(const Params& params, const std::vector<Box<coord_t>>& boxes)
      : params_(params), boxes_(boxes) {}

  void prepare(const Run& run) {
    run_ = run;
    const size_t num_boxes = run.end - run.begin;
    if (taps_.size() < num_boxes) {
      taps_.resize(num_boxes);
    }
    for (size_t i = 0; i < num_boxes; ++i) {
      build_axes(params_, box(i), taps_[i]);
    }
    if (run.access == Access::kPlanes) {
      make_lookups();
      return;
    }
    if (run.access == Access::kPacked) {
      start_rows();
    }
    for (size_t i = 0; i < num_boxes; ++i) {
      if (run.access == Access::kPixels) {
        set_native_offsets(i);
      } else {
        set_packed_offsets(i);
      }
      taps_[i].build_taps(
          map_of_box(params_, box(i).index, converted_map_), params_.map_width, row_.data(),
          column_.data());
    }
  }

  size_t size() const {
    return run_.end - run_.begin;
  }
  const Box<coord_t>& box(size_t i) const {
    return boxes_[run_.begin + i];
  }
  const Taps& taps(size_t i) const {
    return taps_[i];
  }
  const FeatureMap& map() const {
    return params_.levels[box(0).level];
  }

  // Of a run that is looked up: f(i, lookups, planes, c, channels) for each box i and all channels
  // in blocks; the planes start at channel c.
  template <typename F>
  void for_each_block_of_planes(F f) const {
    const int64_t end = run_.channel + run_.channels;
    for (int64_t c = run_.channel; c < end; c += run_.block) {
      const int32_t channels = static_cast<int32_t>(std::min<int64_t>(run_.block, end - c));
      for (size_t i = 0; i < size(); ++i) {
        f(i, lookups_[i].view(), image() + c * map().channel_stride, c, channels);
      }
    }
  }

  // Of any other run: f(i, features, c, channels) for each box i and all channels in blocks, at
  // most widest_native at a time where pixels are read in place. The offsets of taps are relative
  // to features, acc_t* where packed and T* else, which stand at channel c.
  template <typename F>
  void for_each_block(int32_t widest_native, F f) {
    const int32_t block = run_.access == Access::kPixels ? widest_native : run_.block;
    const int64_t end = run_.channel + run_.channels;
    for (int64_t c = run_.channel; c < end; c += block) {
      const int32_t channels = static_cast<int32_t>(std::min<int64_t>(block, end - c));
      if (run_.access == Access::kPixels) {
        f(0, image() + c * map().channel_stride, c, channels);
        continue;
      }
      rows_.set_channels(c, channels);
      for (size_t i = 0; i < size(); ++i) {
        if (taps_[i].num_pixels() > 0) {
          rows_.hold(taps_[i].y.cells);
        }
        f(i, rows_.tile(), c, channels);
      }
    }
  }

 private:
  const Params& params_;
  const std::vector<Box<coord_t>>& boxes_;
  Run run_{};
  std::vector<Taps> taps_;
  std::vector<BoxLookups<coord_t, acc_t>> lookups_;
  PackedRows<T> rows_;
  std::vector<int32_t> columns_;  // packed, ascending
  std::vector<coord_t> converted_map_;
  std::vector<int64_t> row_;     // offset of each row slot of a box
  std::vector<int64_t> column_;  // offset of each column slot

  const T* image() const {
    return static_cast<const T*>(map().data) + box(0).geometry.batch * map().image_stride;
  }

  void make_lookups() {
    if (lookups_.size() < size()) {
      lookups_.resize(size());
    }
    for (size_t i = 0; i < size(); ++i) {
      lookups_[i].build(
          taps_[i], map_of_box(params_, box(i).index, converted_map_), params_.map_width, map(),
          kernels<T>().lanes);
    }
  }

  void start_rows() {
    int32_t capacity = 1;
    Range<int32_t> columns{std::numeric_limits<int32_t>::max(), 0};
    for (size_t i = 0; i < size(); ++i) {
      const Taps& taps = taps_[i];
      if (taps.num_pixels() > 0) {
        capacity = std::max(capacity, taps.y.cells.back() - taps.y.cells.front() + 1);
        columns.begin = std::min(columns.begin, taps.x.cells.front());
        columns.end = std::max(columns.end, taps.x.cells.back() + 1);
      }
    }
    columns_.clear();
    // All columns of a single box with gaps cost more than whole vectors save.
    const size_t cells = taps_[0].x.cells.size();
    if (size() == 1 && columns.end - columns.begin >= 2 * static_cast<int64_t>(cells)) {
      columns_ = taps_[0].x.cells;
    } else {
      for (int32_t column = columns.begin; column < columns.end; ++column) {
        columns_.push_back(column);
      }
    }
    if (columns_.empty()) {
      columns_.push_back(0);
    }
    rows_.start(map(), box(0).geometry.batch, columns_, capacity, run_.block);
  }

  void set_native_offsets(size_t i) {
    const auto scale = [](const std::vector<int32_t>& cells, int64_t stride,
                          std::vector<int64_t>& offset) {
      offset.clear();
      for (const int32_t cell : cells) {
        offset.push_back(cell * stride);
      }
    };
    scale(taps_[i].y.cells, map().row_stride, row_);
    scale(taps_[i].x.cells, map().column_stride, column_);
  }

  void set_packed_offsets(size_t i) {
    row_.clear();
    for (const int32_t row : taps_[i].y.cells) {
      row_.push_back(rows_.row_offset(row));
    }
    column_.clear();
    const bool all =
        columns_.back() - columns_.front() + 1 == static_cast<int32_t>(columns_.size());
    for (const int32_t column : taps_[i].x.cells) {
      column_.push_back(rows_.column_offset(
          all ? column - columns_.front() : static_cast<int64_t>(column_.size())));
    }
  }
};

}  // namespace shape_roi_align::cpu
