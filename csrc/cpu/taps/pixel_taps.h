// The taps of a band of pixel rows sorted by pixel: the transpose of BoxTaps, over many boxes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace shape_roi_align::cpu {

// Taps in any order, to be sorted by PixelTaps.
template <typename acc_t>
class UnsortedPixelTaps {
 public:
  struct Tap {
    int32_t pixel;
    acc_t weight;
    int64_t source;  // offset of the bin
  };

  // Removes all taps and sets the number of pixels.
  void clear(int64_t pixels) {
    count_.assign(pixels, 0);
    taps_.clear();
  }

  // Adds the taps of one source at some columns of the pixel row that starts at first_pixel.
  template <typename coord_t>
  void add(
      int64_t first_pixel, const int32_t* columns, int32_t num_columns, int64_t source,
      const coord_t* weights) {
    for (int32_t i = 0; i < num_columns; ++i) {
      const int32_t pixel = static_cast<int32_t>(first_pixel + columns[i]);
      ++count_[pixel];
      taps_.push_back({pixel, static_cast<acc_t>(weights[i]), source});
    }
  }

  const std::vector<Tap>& taps() const {
    return taps_;
  }
  // [pixels]: number of taps of each pixel.
  const std::vector<int32_t>& count() const {
    return count_;
  }

 private:
  std::vector<Tap> taps_;
  std::vector<int32_t> count_;
};

// Pixel i has the taps [pixel_begin[i], pixel_begin[i + 1]), in the order in which they were added.
template <typename acc_t>
class PixelTaps {
 public:
  std::vector<int32_t> pixel_begin;  // [pixels + 1]; empty until the first assign()
  std::vector<int64_t> source;
  std::vector<acc_t> weight;

  // unsorted: at most 2^31 - 1 taps.
  void assign(const UnsortedPixelTaps<acc_t>& unsorted) {
    const std::vector<int32_t>& count = unsorted.count();
    pixel_begin.resize(count.size() + 1);
    next_.resize(count.size());
    int32_t begin = 0;
    for (size_t pixel = 0; pixel < count.size(); ++pixel) {
      pixel_begin[pixel] = next_[pixel] = begin;
      begin += count[pixel];
    }
    pixel_begin[count.size()] = begin;
    source.resize(unsorted.taps().size());
    weight.resize(unsorted.taps().size());
    for (const auto& tap : unsorted.taps()) {
      const int32_t i = next_[tap.pixel]++;
      source[i] = tap.source;
      weight[i] = tap.weight;
    }
  }

 private:
  std::vector<int32_t> next_;  // [pixels]: index of the next tap of each pixel
};

}  // namespace shape_roi_align::cpu
