// How the boxes of a call are divided into runs that share the pixels they read.
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

#include "cpu/boxes.h"
#include "cpu/lookups.h"
#include "cpu/planes.h"

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

// Planes to go over at a time: as many as stay in the cache, a multiple of those that the kernel
// takes together.
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

}  // namespace shape_roi_align::cpu
