// Runs of boxes that share the pixels they read.
//
// Where channels are innermost, pixels are read in place and each box is a run of its own. Else
// there are two ways. Either pixels are looked up in the planes in place (lookups.h), some planes
// at a time, which stay in cache while the boxes of the run go over them. Or they are transposed
// into a tile first, some channels at a time. Boxes that overlap, as those of a detector do, then
// form one run: the rows under them are packed once, in whole cache lines and in the order they lie
// in memory, into a ring that holds the rows of the tallest box. Converting the whole map would
// move every pixel and come back for it from memory; packing box by box moves a pixel once per box,
// in short pieces of rows. Lookups win for boxes that are narrow or few, packing for those that
// many taps share.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "boxes.h"
#include "lookups.h"
#include "planes.h"

namespace shape_roi_align::cpu {

// How the pixels of a box are read.
enum class Access {
  kPixels,  // in place, channels innermost
  kPlanes,  // in place, by lookups
  kPacked,
};

struct Run {
  size_t begin;  // boxes of one image of one level
  size_t end;
  int64_t channel;
  int64_t channels;
  Access access;
  int32_t block;  // channels to read at a time: what a sum over channels is made of, and therefore
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

// Pixels to pack for the boxes [begin, end) of an image, if the rows under all of them are packed
// once, and if each box is packed alone.
struct PackedPixels {
  double shared;
  double apart;
};

template <typename T>
PackedPixels packed_pixels(const std::vector<Box<T>>& boxes, size_t begin, size_t end) {
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
  return {double(rows) * (columns.end - columns.begin), apart};
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

// Moves the boxes [begin, end) of an image that are better looked up to the front and returns where
// they end. Costs are in cycles per channel, fitted to times with AVX-512.
template <typename T, typename coord_t>
size_t choose_lookups(
    const Params& params, std::vector<Box<coord_t>>& boxes, size_t begin, size_t end) {
  constexpr double kOfLookup = 2;
  constexpr double kOfVector = 4;  // of pixels
  const FeatureMap& map = params.levels[boxes[begin].level];
  const int32_t lanes = kernels<T>().lanes;
  // Packing works on whole vectors of channels.
  const double padding = double(round_up(params.channels, lanes)) / double(params.channels);
  const double of_packed_pixel = 1.2 * padding;
  const double of_tap = 0.08 * padding;
  const auto cost_alone = [&](const Box<coord_t>& box) {
    return of_packed_pixel * pixels_of_rows(box) + of_tap * taps_bound(box, map);
  };
  const auto cost_of_lookups = [&](const Box<coord_t>& box) {
    const int32_t columns = box.columns.end - box.columns.begin;
    if (!can_look_up<T>(params, map, columns)) {
      return std::numeric_limits<double>::infinity();
    }
    const Axis<coord_t>& x = box.geometry.x;
    const double vectors = double(columns) / lanes + 1;
    const double pixels_of_bin = pixels_along(x, map.width) / x.bins;
    return pixels_along(box.geometry.y, map.height) *
           (kOfVector * vectors + kOfLookup * pixels_of_bin);
  };
  double of_lookups = 0;
  double of_taps = 0;
  for (size_t b = begin; b < end; ++b) {
    of_lookups += std::min(cost_of_lookups(boxes[b]), cost_alone(boxes[b]));
    of_taps += of_tap * taps_bound(boxes[b], map);
  }
  const PackedPixels pixels = packed_pixels(boxes, begin, end);
  if (of_lookups >= of_packed_pixel * std::min(pixels.shared, pixels.apart) + of_taps) {
    return begin;
  }
  const auto first = boxes.begin() + begin;
  const auto middle = std::stable_partition(
      first, boxes.begin() + end,
      [&](const Box<coord_t>& box) { return cost_of_lookups(box) < cost_alone(box); });
  return middle - boxes.begin();
}

// A run for all boxes of each image that are read alike, to be divided.
template <typename T, typename coord_t>
std::vector<Run> runs_of_images(
    const Params& params, std::vector<Box<coord_t>>& boxes, bool allow_lookups) {
  std::vector<Run> images;
  for (size_t begin = 0, end = 0; begin < boxes.size(); begin = end) {
    const Box<coord_t> first = boxes[begin];
    while (end < boxes.size() && boxes[end].level == first.level &&
           boxes[end].geometry.batch == first.geometry.batch) {
      ++end;
    }
    if (is_channels_innermost(params.levels[first.level], params.channels)) {
      images.push_back({begin, end, 0, params.channels, Access::kPixels, 0});
      continue;
    }
    const size_t middle = allow_lookups ? choose_lookups<T>(params, boxes, begin, end) : begin;
    if (begin < middle) {
      images.push_back({begin, middle, 0, params.channels, Access::kPlanes, 0});
    }
    if (middle < end) {
      images.push_back({middle, end, 0, params.channels, Access::kPacked, 0});
    }
  }
  return images;
}

// Planes to go over at a time: as many as stay in the cache.
template <typename T>
int32_t planes_block(const FeatureMap& map) {
  constexpr int64_t kPlanesBytes = 1 << 20;
  const int64_t plane = std::max<int64_t>(map.height * map.row_stride * int64_t(sizeof(T)), 1);
  return static_cast<int32_t>(std::clamp<int64_t>(kPlanesBytes / plane / 4 * 4, 4, 64));
}

// How a plan gets at least as many runs as keep all threads busy: by dividing the channels, each
// part building the taps of its boxes anew, or by dividing the boxes, each part packing rows anew.
enum class Divide { kChannels, kBoxes };

// boxes: sorted, all sampled; those of an image may be reordered. allow_lookups: for a forward pass
// whose bins of a row lie side by side.
template <typename T, typename coord_t>
std::vector<Run> plan_runs(
    const Params& params, std::vector<Box<coord_t>>& boxes, Divide divide, bool allow_lookups) {
  constexpr double kTapsOfRun = 1 << 20;  // 12 to 16 MB
  constexpr int64_t kFewestBoxes = 16;    // of a shared run
  constexpr int64_t kMostLookedUp = 64;   // boxes whose weights stay in the cache
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t lanes = kernels<T>().lanes;
  const std::vector<Run> images = runs_of_images<T>(params, boxes, allow_lookups);
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
    bool is_shared = false;
    int32_t block = 0;
    if (image.access == Access::kPlanes) {
      block = planes_block<T>(params.levels[boxes[image.begin].level]);
      boxes_of_run = std::clamp<int64_t>(num_boxes / (4 * parts_of_image), 1, kMostLookedUp);
    } else if (image.access == Access::kPacked) {
      const PackedPixels pixels = packed_pixels(boxes, image.begin, image.end);
      is_shared = pixels.shared <= pixels.apart;
    }
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
      if (!is_shared) {  // one box, which may be most of the work, or some
        const size_t end = std::min(b + boxes_of_run, image.end);
        const double of_run = std::accumulate(taps.begin() + b, taps.begin() + end, 0.0);
        parts_of_channels = std::llround(double(threads) * of_run / total_taps);
        if (image.access == Access::kPacked) {
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
             std::min(channels_of_run, params.channels - c), image.access, block});
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
  bool has_lookups() const {
    return run_.access == Access::kPlanes;
  }
  const BoxLookups<coord_t, acc_t>& lookups(size_t i) const {
    return lookups_[i];
  }
  const FeatureMap& map() const {
    return params_.levels[box(0).level];
  }

  // f(i, features, c, channels) for each box i and all channels in blocks, at most widest_native at
  // a time where pixels are read in place. The offsets of taps are relative to features, acc_t*
  // where packed and T* else, which stand at channel c.
  template <typename F>
  void for_each_block(int32_t widest_native, F f) {
    const FeatureMap& map = this->map();
    const T* image = static_cast<const T*>(map.data) + box(0).geometry.batch * map.image_stride;
    const int32_t block = run_.access == Access::kPixels ? widest_native : run_.block;
    const int64_t end = run_.channel + run_.channels;
    for (int64_t c = run_.channel; c < end; c += block) {
      const int32_t channels = static_cast<int32_t>(std::min<int64_t>(block, end - c));
      if (run_.access != Access::kPacked) {
        for (size_t i = 0; i < size(); ++i) {
          f(i, image + c * map.channel_stride, c, channels);
        }
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
