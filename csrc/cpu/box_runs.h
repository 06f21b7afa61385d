// Runs of boxes that share the pixels they read.
//
// Where channels are innermost, pixels are read in place ("native") and each box is a run of its
// own. Else they are transposed into a tile first, some channels at a time. Boxes that overlap, as
// those of a detector do, then form one run: the rows under them are packed once, in whole cache
// lines and in the order they lie in memory, into a ring that holds the rows of the tallest box and
// stays in cache. Converting the whole map would move every pixel and come back for it from memory;
// packing box by box moves a pixel once per box, in short pieces of rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "boxes.h"
#include "planes.h"

namespace shape_roi_align::cpu {

struct Run {
  size_t begin;  // boxes of one image of one level
  size_t end;
  int64_t channel;
  int64_t channels;
  bool is_native;
  int32_t block;  // channels to pack at a time: what a sum over channels is made of, and therefore
                  // the same however boxes are divided
};

// Pixels of the rows that samples of the box may read: all columns between the first and the last,
// for it is whole cache lines that are moved.
template <typename T>
double pixels_of_rows(const Box<T>& box) {
  const Axis<T>& y = box.geometry.y;
  const double rows = std::min<double>(box.rows.end - box.rows.begin, 2.0 * y.samples * y.bins);
  return rows * (box.columns.end - box.columns.begin);
}

// The columns that the boxes [begin, end) may read, and those between.
template <typename T>
Range<int32_t> columns_of(const std::vector<Box<T>>& boxes, size_t begin, size_t end) {
  Range<int32_t> columns = boxes[begin].columns;
  for (size_t b = begin; b < end; ++b) {
    columns.begin = std::min(columns.begin, boxes[b].columns.begin);
    columns.end = std::max(columns.end, boxes[b].columns.end);
  }
  return columns;
}

// Whether packing the rows under all the boxes [begin, end) of an image moves less than packing
// each box.
template <typename T>
bool is_worth_sharing(const std::vector<Box<T>>& boxes, size_t begin, size_t end) {
  double apart = 0;
  int64_t rows = 0;
  int32_t last_row = 0;
  for (size_t b = begin; b < end; ++b) {
    const Box<T>& box = boxes[b];
    apart += pixels_of_rows(box);
    rows += std::max(box.rows.end - std::max(box.rows.begin, last_row), 0);
    last_row = std::max(last_row, box.rows.end);
  }
  const Range<int32_t> columns = columns_of(boxes, begin, end);
  return double(rows) * (columns.end - columns.begin) <= apart;
}

// Channels of a tile that holds the packed rows of the boxes [begin, end).
template <typename T, typename coord_t>
int32_t packed_block(
    const std::vector<Box<coord_t>>& boxes, size_t begin, size_t end, int64_t channels) {
  int64_t rows = 0;
  for (size_t b = begin; b < end; ++b) {
    rows = std::max<int64_t>(rows, boxes[b].rows.end - boxes[b].rows.begin);
  }
  const Range<int32_t> columns = columns_of(boxes, begin, end);
  const Kernels<T>& table = kernels<T>();
  return channel_block<T>(
      rows * round_up(columns.end - columns.begin, table.lanes), channels, table.planar_block);
}

// A run for all boxes of each image, to be divided.
template <typename T>
std::vector<Run> runs_of_images(const Params& params, const std::vector<Box<T>>& boxes) {
  std::vector<Run> images;
  for (size_t begin = 0, end = 0; begin < boxes.size(); begin = end) {
    const Box<T>& first = boxes[begin];
    while (end < boxes.size() && boxes[end].level == first.level &&
           boxes[end].geometry.batch == first.geometry.batch) {
      ++end;
    }
    const bool is_native = is_channels_innermost(params.levels[first.level], params.channels);
    images.push_back({begin, end, 0, params.channels, is_native, 0});
  }
  return images;
}

// How a plan gets at least as many runs as keep all threads busy: by dividing the channels, each
// part building the taps of its boxes anew, or by dividing the boxes, each part packing rows anew.
enum class Divide { kChannels, kBoxes };

// boxes: sorted, all sampled.
template <typename T, typename coord_t>
std::vector<Run> plan_runs(
    const Params& params, const std::vector<Box<coord_t>>& boxes, Divide divide) {
  constexpr double kTapsOfRun = 1 << 20;  // 12 to 16 MB
  constexpr int64_t kFewestBoxes = 16;    // of a shared run
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t lanes = kernels<T>().lanes;
  const std::vector<Run> images = runs_of_images(params, boxes);
  const auto parts_of = [](int64_t whole, int64_t parts, int64_t least) {
    return std::clamp<int64_t>((whole + parts - 1) / parts, std::min(least, whole), whole);
  };
  // As many parts as make one run for each thread, or two where images differ in size.
  const int64_t num_images = static_cast<int64_t>(images.size());
  int64_t most_boxes = 0;
  for (const Run& image : images) {
    most_boxes = std::max(most_boxes, static_cast<int64_t>(image.end - image.begin));
  }
  std::vector<double> taps;
  for (const Box<coord_t>& box : boxes) {
    taps.push_back(taps_bound(box, params.levels[box.level]));
  }
  const double total_taps = std::accumulate(taps.begin(), taps.end(), 0.0);
  const bool are_alike = 10 * most_boxes * num_images <= 11 * static_cast<int64_t>(boxes.size());
  const int64_t wanted = are_alike ? threads : 2 * threads;
  const int64_t parts_of_image = num_images == 0 ? 1 : (wanted + num_images - 1) / num_images;

  std::vector<Run> runs;
  for (const Run& image : images) {
    const int64_t num_boxes = static_cast<int64_t>(image.end - image.begin);
    int64_t boxes_of_run = 1;
    int64_t parts_of_channels = parts_of_image;
    const bool is_shared = !image.is_native && is_worth_sharing(boxes, image.begin, image.end);
    int32_t block = 0;
    if (is_shared) {
      block = packed_block<T>(boxes, image.begin, image.end, params.channels);
      const double of_image =
          1 + std::accumulate(taps.begin() + image.begin, taps.begin() + image.end, 0.0);
      boxes_of_run = std::clamp<int64_t>(
          static_cast<int64_t>(kTapsOfRun / of_image * double(num_boxes)), 1, num_boxes);
      if (divide == Divide::kBoxes) {
        boxes_of_run = std::min(boxes_of_run, parts_of(num_boxes, parts_of_image, kFewestBoxes));
      }
    }
    for (size_t b = image.begin; b < image.end; b += boxes_of_run) {
      if (!is_shared) {  // one box, which may be most of the work
        parts_of_channels = std::llround(double(threads) * taps[b] / total_taps);
        if (!image.is_native) {
          block = packed_block<T>(boxes, b, b + 1, params.channels);
        }
      }
      const int64_t channels = divide == Divide::kChannels
                                   ? parts_of(
                                         params.channels, std::max<int64_t>(parts_of_channels, 1),
                                         kernels<T>().planar_block)
                                   : params.channels;
      const int64_t channels_of_run = round_up(channels, lanes);
      for (int64_t c = 0; c < params.channels; c += channels_of_run) {
        runs.push_back(
            {b, std::min(b + boxes_of_run, image.end), c,
             std::min(channels_of_run, params.channels - c), image.is_native, block});
      }
    }
  }
  return runs;
}

// Rows of one image of a map, packed some channels at a time: [row % capacity][column][channel].
template <typename T>
class PackedRows {
 public:
  using acc_t = accumulate_t<T>;

  // columns: those to pack, ascending. capacity: rows held at a time.
  void start(
      const FeatureMap& map, int64_t image, const std::vector<int32_t>& columns, int32_t capacity,
      int32_t block) {
    map_ = &map;
    image_ = static_cast<const T*>(map.data) + image * map.image_stride;
    grid_.column_offset.clear();
    for (const int32_t column : columns) {
      grid_.column_offset.push_back(column * map.column_stride);
    }
    grid_.row_offset.assign(1, 0);
    grid_.unit_columns = map.column_stride == 1 && columns.back() - columns.front() + 1 ==
                                                       static_cast<int32_t>(columns.size());
    tile_columns_ = round_up(static_cast<int64_t>(columns.size()), kernels_.lanes);
    block_ = block;
    held_.resize(capacity);
    tile_.resize(size_t(capacity) * tile_columns_ * block_);
  }

  int32_t block() const {
    return block_;
  }
  int64_t row_offset(int32_t row) const {
    return row % static_cast<int32_t>(held_.size()) * tile_columns_ * block_;
  }
  int64_t column_offset(int64_t column) const {
    return column * block_;
  }

  // From here on rows hold the channels [c, c + channels).
  void set_channels(int64_t c, int32_t channels) {
    first_channel_ = image_ + c * map_->channel_stride;
    channels_ = channels;
    std::fill(held_.begin(), held_.end(), -1);
  }

  // Packs those of the rows that are not held yet. They span at most `capacity`.
  void hold(const std::vector<int32_t>& rows) {
    for (const int32_t row : rows) {
      int32_t& held = held_[row % static_cast<int32_t>(held_.size())];
      if (held != row) {
        held = row;
        kernels_.pack(
            grid_.planes(first_channel_ + row * map_->row_stride, map_->channel_stride, channels_),
            tile_.data() + row_offset(row), tile_columns_, block_);
      }
    }
  }

  const acc_t* tile() const {
    return tile_.data();
  }

 private:
  const Kernels<T>& kernels_ = kernels<T>();
  const FeatureMap* map_ = nullptr;
  const T* image_ = nullptr;
  const T* first_channel_ = nullptr;
  PlaneGrid grid_;
  int64_t tile_columns_ = 0;
  int32_t block_ = 0;
  int32_t channels_ = 0;
  std::vector<int32_t> held_;  // row in each place of the ring
  std::vector<acc_t> tile_;
};

// The boxes of a run made ready for the inner loops.
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
    if (!run.is_native) {
      start_rows();
    }
    for (size_t i = 0; i < num_boxes; ++i) {
      if (run.is_native) {
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

  // f(i, features, c, channels) for each box i and all channels in blocks, at most widest_native at
  // a time where they are read in place. The offsets of taps are relative to features, T* where
  // native and acc_t* else, which stand at channel c.
  template <typename F>
  void for_each_block(int32_t widest_native, F f) {
    const FeatureMap& map = params_.levels[box(0).level];
    const T* image = static_cast<const T*>(map.data) + box(0).geometry.batch * map.image_stride;
    const int32_t block = run_.is_native ? widest_native : rows_.block();
    const int64_t end = run_.channel + run_.channels;
    for (int64_t c = run_.channel; c < end; c += block) {
      const int32_t channels = static_cast<int32_t>(std::min<int64_t>(block, end - c));
      if (run_.is_native) {
        f(0, image + c * map.channel_stride, c, channels);
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
  PackedRows<T> rows_;
  std::vector<int32_t> columns_;  // packed, ascending
  std::vector<coord_t> converted_map_;
  std::vector<int64_t> row_;     // offset of each row slot of a box
  std::vector<int64_t> column_;  // offset of each column slot

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
    const Box<coord_t>& first = box(0);
    rows_.start(params_.levels[first.level], first.geometry.batch, columns_, capacity, run_.block);
  }

  void set_native_offsets(size_t i) {
    const FeatureMap& map = params_.levels[box(i).level];
    const auto scale = [](const std::vector<int32_t>& cells, int64_t stride,
                          std::vector<int64_t>& offset) {
      offset.clear();
      for (const int32_t cell : cells) {
        offset.push_back(cell * stride);
      }
    };
    scale(taps_[i].y.cells, map.row_stride, row_);
    scale(taps_[i].x.cells, map.column_stride, column_);
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
