// Which reader takes which boxes, and how their work is divided into items.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
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

// Boxes of one image of one level that one reader takes.
struct ReadBoxes {
  size_t reader;
  size_t begin;
  size_t end;
};

template <typename T, typename coord_t>
class Scheduler {
 public:
  // boxes: sorted. Those of an image may change their order.
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

  // At least as many items as keep all threads busy: one per thread, or two where images differ in
  // size.
  std::vector<WorkItem> items() const {
    const int64_t num_images = static_cast<int64_t>(images_.size());
    int64_t most_boxes = 0;
    for (const ReadBoxes& image : images_) {
      most_boxes = std::max(most_boxes, static_cast<int64_t>(image.end - image.begin));
    }
    const int64_t num_boxes = static_cast<int64_t>(boxes_.size());
    const bool are_alike = 10 * most_boxes * num_images <= 11 * num_boxes;
    const int64_t wanted = are_alike ? num_threads_ : 2 * num_threads_;
    const int64_t parts = num_images == 0 ? 1 : (wanted + num_images - 1) / num_images;
    std::vector<WorkItem> items;
    for (const ReadBoxes& image : images_) {
      with_reader<T, coord_t>(image.reader, [&](auto reader) {
        add_items<typename decltype(reader)::type>(image, parts, items);
      });
    }
    return items;
  }

 private:
  static constexpr size_t kNum = kNumReaders<T, coord_t>;

  const Job& job_;
  std::vector<Box<coord_t>>& boxes_;
  const int64_t num_threads_ = static_cast<int64_t>(torch::stable::get_num_threads());
  std::vector<ReadBoxes> images_;
  std::vector<double> taps_;  // a bound for each box
  double total_taps_ = 0;

  BoxSpan<coord_t> span(size_t begin, size_t end) const {
    return BoxSpan<coord_t>(boxes_).subspan(begin, end - begin);
  }
  double taps_of(size_t begin, size_t end) const {
    return std::accumulate(taps_.begin() + begin, taps_.begin() + end, 0.0);
  }

  // f(index, std::type_identity of the reader) for each that can read the image.
  template <typename F>
  void for_each_candidate(const FeatureMap& feature_map, F f) const {
    for (size_t reader = 0; reader < kNum; ++reader) {
      with_reader<T, coord_t>(reader, [&](auto type) {
        if (decltype(type)::type::can_read(job_, feature_map)) {
          f(reader, type);
        }
      });
    }
  }

  // For the boxes [begin, end) of an image: one reader for all of them, or for each the reader that
  // reads it alone at the lowest cost, whichever costs less.
  void choose_readers(size_t begin, size_t end) {
    const FeatureMap& feature_map = job_.feature_map(boxes_[begin].level);
    size_t best = 0;
    size_t num_candidates = 0;
    for_each_candidate(feature_map, [&](size_t reader, auto) {
      best = reader;
      ++num_candidates;
    });
    if (num_candidates == 1) {
      images_.push_back({best, begin, end});
      return;
    }
    double together = std::numeric_limits<double>::infinity();
    for_each_candidate(feature_map, [&](size_t reader, auto type) {
      const double cost = decltype(type)::type::cost_together(job_, span(begin, end));
      if (cost < together) {
        together = cost;
        best = reader;
      }
    });
    double apart = 0;
    std::vector<size_t> chosen;  // reader of each box
    for (size_t b = begin; b < end; ++b) {
      const Choice choice = cheapest(boxes_[b]);
      apart += choice.cost;
      chosen.push_back(choice.reader);
    }
    if (apart >= together) {
      images_.push_back({best, begin, end});
      return;
    }
    const std::vector<Box<coord_t>> in_order(boxes_.begin() + begin, boxes_.begin() + end);
    size_t to = begin;
    for (size_t reader = 0; reader < kNum; ++reader) {
      const size_t first = to;
      for (size_t i = 0; i < in_order.size(); ++i) {
        if (chosen[i] == reader) {
          boxes_[to++] = in_order[i];
        }
      }
      if (first < to) {
        images_.push_back({reader, first, to});
      }
    }
  }

  struct Choice {
    size_t reader;
    double cost;
  };

  // Of equal costs the last reader's.
  Choice cheapest(const Box<coord_t>& box) const {
    Choice choice{0, std::numeric_limits<double>::infinity()};
    for_each_candidate(job_.feature_map(box.level), [&](size_t reader, auto type) {
      const double cost = decltype(type)::type::cost(job_, box);
      if (cost <= choice.cost) {
        choice = {reader, cost};
      }
    });
    return choice;
  }

  // Items that divide the channels of a box build its taps again; items that divide the boxes of an
  // image read shared pixels again.
  template <typename Reader>
  void add_items(const ReadBoxes& image, int64_t parts, std::vector<WorkItem>& items) const {
    const Grouping grouping =
        Reader::group(job_, span(image.begin, image.end), taps_of(image.begin, image.end), parts);
    for (size_t begin = image.begin; begin < image.end; begin += grouping.boxes) {
      const size_t end = std::min<size_t>(begin + grouping.boxes, image.end);
      const BoxSpan<coord_t> alike =
          grouping.is_shared ? span(image.begin, image.end) : span(begin, end);
      const int32_t block = Reader::channels_per_block(job_, alike);
      // A single box may be most of the work of a call.
      const int64_t parts_of_item =
          grouping.is_shared
              ? parts
              : std::llround(double(num_threads_) * taps_of(begin, end) / total_taps_);
      const int64_t channels = channels_per_item(parts_of_item);
      for (int64_t c = 0; c < job_.params.channels; c += channels) {
        items.push_back(
            {image.reader, begin, end, c, std::min(channels, job_.params.channels - c), block});
      }
    }
  }

  int64_t channels_per_item(int64_t parts) const {
    const int64_t all = job_.params.channels;
    const int64_t fewest = std::min<int64_t>(kernels<T>().planar_block, all);
    const int64_t of_part = (all + std::max<int64_t>(parts, 1) - 1) / std::max<int64_t>(parts, 1);
    const int64_t channels = job_.divides_channels ? std::clamp(of_part, fewest, all) : all;
    return round_up(channels, kernels<T>().lanes);
  }
};

// boxes: sorted. Those of an image may change their order.
template <typename T, typename coord_t>
std::vector<WorkItem> schedule(const Job& job, std::vector<Box<coord_t>>& boxes) {
  return Scheduler<T, coord_t>(job, boxes).items();
}

}  // namespace shape_roi_align::cpu
