// Assigns boxes to readers and divides the work into items.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/boxes/boxes.h"
#include "cpu/boxes/taps_bound.h"
#include "cpu/layout/channel_block.h"
#include "cpu/readers/readers.h"

namespace shape_roi_align::cpu {

// Boxes of one image and level, all read by one reader.
struct ReaderGroup {
  size_t reader;
  size_t begin;
  size_t end;
};

template <typename T, typename coord_t>
class Scheduler {
 public:
  // boxes: sorted. The scheduler may reorder the boxes of an image.
  Scheduler(const Job& job, std::vector<Box<coord_t>>& boxes) : job_(job), boxes_(boxes) {
    for (size_t begin = 0, end = 0; begin < boxes_.size(); begin = end) {
      end = end_of_image(BoxSpan<coord_t>(boxes_), begin);
      choose_readers(begin, end);
    }
    for (const Box<coord_t>& box : boxes_) {
      taps_.push_back(taps_bound(box, job_.feature_map(box.level)));
    }
    total_taps_ = taps_of(0, boxes_.size());
  }

  // Enough items to keep all threads busy: at least one per thread, or two per thread if the number
  // of boxes differs between images.
  std::vector<WorkItem> items() const {
    const int64_t num_groups = static_cast<int64_t>(groups_.size());
    int64_t most_boxes = 0;
    for (const ReaderGroup& group : groups_) {
      most_boxes = std::max(most_boxes, static_cast<int64_t>(group.end - group.begin));
    }
    const int64_t num_boxes = static_cast<int64_t>(boxes_.size());
    const bool are_alike = 10 * most_boxes * num_groups <= 11 * num_boxes;
    const int64_t wanted = are_alike ? num_threads_ : 2 * num_threads_;
    const int64_t parts = num_groups == 0 ? 1 : (wanted + num_groups - 1) / num_groups;
    std::vector<WorkItem> items;
    for (const ReaderGroup& group : groups_) {
      with_reader<T, coord_t>(
          group.reader, [&]<typename Reader>() { add_items<Reader>(group, parts, items); });
    }
    return items;
  }

 private:
  static constexpr size_t kNum = kNumReaders<T, coord_t>;

  const Job& job_;
  std::vector<Box<coord_t>>& boxes_;
  const int64_t num_threads_ = static_cast<int64_t>(torch::stable::get_num_threads());
  std::vector<ReaderGroup> groups_;
  std::vector<double> taps_;  // upper bound for each box
  double total_taps_ = 0;

  BoxSpan<coord_t> span(size_t begin, size_t end) const {
    return BoxSpan<coord_t>(boxes_).subspan(begin, end - begin);
  }
  double taps_of(size_t begin, size_t end) const {
    return std::accumulate(taps_.begin() + begin, taps_.begin() + end, 0.0);
  }

  // Chooses readers for the boxes [begin, end) of an image: one reader for all boxes, or the
  // cheapest reader for each box, whichever costs less in total.
  void choose_readers(size_t begin, size_t end) {
    const FeatureMap& feature_map = job_.feature_map(boxes_[begin].level);
    std::array<bool, kNum> can_read;
    size_t excludes_others = kNum;
    for_each_reader<T, coord_t>([&]<typename Reader>(size_t reader) {
      can_read[reader] = Reader::can_read(job_, feature_map);
      if constexpr (requires { Reader::kExcludesOthers; }) {
        excludes_others = can_read[reader] ? reader : excludes_others;
      }
    });
    if (excludes_others < kNum) {
      groups_.push_back({excludes_others, begin, end});
      return;
    }
    if (std::count(can_read.begin(), can_read.end(), true) == 1) {
      const size_t only = std::find(can_read.begin(), can_read.end(), true) - can_read.begin();
      groups_.push_back({only, begin, end});
      return;
    }
    std::array<double, kNum> alone{};  // of each reader: cost of all boxes, each read alone
    double cheapest = 0;               // cost of all boxes, each read alone by its cheapest reader
    std::vector<size_t> chosen;        // the cheapest reader of each box
    for (size_t b = begin; b < end; ++b) {
      double lowest = std::numeric_limits<double>::infinity();
      size_t best = 0;
      for_each_reader<T, coord_t>([&]<typename Reader>(size_t reader) {
        const double cost = can_read[reader] ? Reader::cost(job_, boxes_[b])
                                             : std::numeric_limits<double>::infinity();
        alone[reader] += cost;
        if (cost < lowest || (cost == lowest && can_read[reader])) {
          lowest = cost;
          best = reader;
        }
      });
      cheapest += lowest;
      chosen.push_back(best);
    }
    double together = std::numeric_limits<double>::infinity();
    size_t best = 0;
    for_each_reader<T, coord_t>([&]<typename Reader>(size_t reader) {
      const double cost = can_read[reader]
                              ? Reader::cost_of_group(job_, span(begin, end), alone[reader])
                              : std::numeric_limits<double>::infinity();
      if (cost < together) {
        together = cost;
        best = reader;
      }
    });
    if (cheapest >= together) {
      groups_.push_back({best, begin, end});
    } else {
      sort_by_reader(begin, chosen);
    }
  }

  // chosen: reader of each box from `begin` on. Stable: boxes of one reader keep their order.
  void sort_by_reader(size_t begin, const std::vector<size_t>& chosen) {
    const auto first = boxes_.begin() + begin;
    const std::vector<Box<coord_t>> in_order(first, first + chosen.size());
    size_t to = begin;
    for (size_t reader = 0; reader < kNum; ++reader) {
      const size_t from = to;
      for (size_t i = 0; i < chosen.size(); ++i) {
        if (chosen[i] == reader) {
          boxes_[to++] = in_order[i];
        }
      }
      if (from < to) {
        groups_.push_back({reader, from, to});
      }
    }
  }

  // Each part of the channels builds the taps of its boxes again; each part of the boxes reads the
  // pixels that parts share again.
  template <typename Reader>
  void add_items(const ReaderGroup& group, int64_t parts, std::vector<WorkItem>& items) const {
    const BoxSpan<coord_t> boxes = span(group.begin, group.end);
    const Grouping grouping = Reader::group(job_, boxes, taps_of(group.begin, group.end), parts);
    const int32_t shared_block = grouping.is_shared ? Reader::channels_per_block(job_, boxes) : 0;
    for (size_t begin = group.begin; begin < group.end; begin += grouping.boxes) {
      const size_t end = std::min<size_t>(begin + grouping.boxes, group.end);
      const int32_t block =
          grouping.is_shared ? shared_block : Reader::channels_per_block(job_, span(begin, end));
      // A single box may account for most of the work of a call.
      const int64_t parts_of_item =
          grouping.is_shared
              ? parts
              : std::llround(double(num_threads_) * taps_of(begin, end) / total_taps_);
      int64_t channels = channels_per_item(parts_of_item);
      if constexpr (requires { Reader::kExcludesOthers; }) {
        channels = job_.params.channels;
      }
      for (int64_t c = 0; c < job_.params.channels; c += channels) {
        items.push_back(
            {group.reader, begin, end, c, std::min(channels, job_.params.channels - c), block});
      }
    }
  }

  int64_t channels_per_item(int64_t parts) const {
    const int64_t all = job_.params.channels;
    const int64_t min_channels = std::min<int64_t>(kernels<T>().planar_block, all);
    const int64_t channels_per_part =
        (all + std::max<int64_t>(parts, 1) - 1) / std::max<int64_t>(parts, 1);
    const int64_t channels =
        job_.divides_channels ? std::clamp(channels_per_part, min_channels, all) : all;
    return round_up(channels, kernels<T>().lanes);
  }
};

// boxes: sorted. The boxes of an image may be reordered.
template <typename T, typename coord_t>
std::vector<WorkItem> schedule(const Job& job, std::vector<Box<coord_t>>& boxes) {
  return Scheduler<T, coord_t>(job, boxes).items();
}

}  // namespace shape_roi_align::cpu
