// Gradient of the features, in the gather form: every pixel collects what the bins send it and is
// written once, also where that is 0. A task owns some channels of a band of rows of one image and
// takes the boxes in a fixed order, so that there are no races and the result is the same bit for
// bit with any number of threads.
#include <cstring>
#include <limits>

#include "cpu/boxes.h"
#include "cpu/jobs.h"
#include "cpu/pooled_gradient.h"
#include "cpu/simd/streaming.h"

namespace shape_roi_align::cpu {
namespace {

struct Band {
  int32_t level;
  int64_t image;
  Range<int32_t> rows;
  int64_t channel;
  int64_t channels;
  size_t begin;  // boxes of the image
  size_t end;
};

// The taps of a band sorted by pixel: the transpose of BoxTaps, restricted to some rows.
template <typename acc_t>
class PixelTaps {
 public:
  std::vector<int32_t> pixel_begin;  // [pixels + 1]
  std::vector<int64_t> source;       // of each tap
  std::vector<acc_t> weight;

  void clear(int64_t pixels) {
    pixel_begin.assign(pixels + 1, 0);
    unsorted_.clear();
  }

  // Taps of one source at some columns of the row that starts at first_pixel.
  template <typename coord_t>
  void add(
      int64_t first_pixel, const int32_t* columns, int32_t num_columns, int64_t from,
      const coord_t* weights) {
    for (int32_t i = 0; i < num_columns; ++i) {
      const int32_t pixel = static_cast<int32_t>(first_pixel + columns[i]);
      ++pixel_begin[pixel + 1];
      unsorted_.push_back({pixel, static_cast<acc_t>(weights[i]), from});
    }
  }

  // Keeps the order of the taps of a pixel.
  void sort() {
    STD_TORCH_CHECK(
        unsorted_.size() <= size_t(std::numeric_limits<int32_t>::max()),
        "too many boxes on one row of features");
    for (size_t pixel = 1; pixel < pixel_begin.size(); ++pixel) {
      pixel_begin[pixel] += pixel_begin[pixel - 1];
    }
    next_.assign(pixel_begin.begin(), pixel_begin.end() - 1);
    source.resize(unsorted_.size());
    weight.resize(unsorted_.size());
    for (const Tap& tap : unsorted_) {
      const int32_t place = next_[tap.pixel]++;
      source[place] = tap.source;
      weight[place] = tap.weight;
    }
  }

 private:
  struct Tap {
    int32_t pixel;
    acc_t weight;
    int64_t source;
  };
  std::vector<Tap> unsorted_;
  std::vector<int32_t> next_;
};

template <typename T, typename coord_t>
std::vector<Band> plan_bands(
    const Params& params, const FeatureMap* gradients, const std::vector<Box<coord_t>>& boxes) {
  constexpr int32_t kMaxRows = 16;
  constexpr double kTapsAtATime = 1 << 16;  // 2 to 3 MB, where boxes are spread evenly
  constexpr int64_t kTasksPerThread = 4;    // so that the last to finish does not wait long
  int64_t total_rows = 0;
  for (int32_t level = 0; level < params.num_levels; ++level) {
    if (gradients[level].data != nullptr) {
      total_rows += params.num_images * gradients[level].height;
    }
  }
  const int64_t tasks = kTasksPerThread * static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t rows_per_task = std::clamp<int64_t>(total_rows / tasks, 4, kMaxRows);
  const int64_t bands = std::max<int64_t>(total_rows / rows_per_task, 1);
  const int64_t narrowest = 4 * kernels<T>().lanes;  // each block of channels builds all taps
  const int64_t block =
      std::max(params.channels * bands / tasks / narrowest * narrowest, narrowest);

  std::vector<Band> plan;
  size_t begin = 0;
  for (int32_t level = 0; level < params.num_levels; ++level) {
    const FeatureMap& map = gradients[level];
    for (int64_t image = 0; image < params.num_images; ++image) {
      size_t end = begin;
      double taps = 0;
      while (end < boxes.size() && boxes[end].level == level &&
             boxes[end].geometry.batch == image) {
        taps += taps_bound(boxes[end++], map);
      }
      if (map.data != nullptr && map.width > 0) {
        constexpr int64_t kMaxPixels = 1 << 30;  // of a band; they are counted in 32 bits
        const double most_rows = double(std::min(rows_per_task, kMaxPixels / map.width));
        const int32_t rows = static_cast<int32_t>(
            std::max(std::min(kTapsAtATime * map.height / (taps + 1), most_rows), 1.0));
        for (int32_t row = 0; row < map.height; row += rows) {
          for (int64_t c = 0; c < params.channels; c += block) {
            plan.push_back(
                {level,
                 image,
                 {row, std::min(row + rows, map.height)},
                 c,
                 std::min(block, params.channels - c),
                 begin,
                 end});
          }
        }
      }
      begin = end;
    }
  }
  return plan;
}

template <typename T, typename coord_t>
class BandGradient {
 public:
  using acc_t = accumulate_t<T>;

  BandGradient(
      const Params& params, const PooledMap& grad, const FeatureMap* gradients,
      const std::vector<Box<coord_t>>& boxes)
      : params_(params),
        gradients_(gradients),
        boxes_(boxes),
        is_large_(bytes_of(params, gradients) >= kLargeResult),
        pooled_(grad, params.options) {}

  void compute(const Band& band) {
    const FeatureMap& map = gradients_[band.level];
    const bool is_native = is_channels_innermost(map, params_.channels);
    block_ = is_native && pooled_.is_in_place()
                 ? static_cast<int32_t>(band.channels)
                 : channel_block<T>(map.width, band.channels, kernels_.planar_block);
    row_ = row_grid(map);
    collect_taps(band, map);
    for (int64_t c = band.channel; c < band.channel + band.channels; c += block_) {
      const int32_t n =
          static_cast<int32_t>(std::min<int64_t>(block_, band.channel + band.channels - c));
      const acc_t* source = pooled_.is_in_place() ? pooled_.data() + c : pack_bins(c, n);
      T* to = static_cast<T*>(map.data) + band.image * map.image_stride + c * map.channel_stride +
              band.rows.begin * map.row_stride;
      const int32_t rows = band.rows.end - band.rows.begin;
      if (is_native) {
        write_pixels(map, rows, source, n, to);
      } else {
        write_planes(map, rows, source, n, to);
      }
    }
    finish_streaming();
  }

 private:
  // Rows of bins of one box that reach into the band.
  struct Bins {
    int64_t box;
    Range<int32_t> rows;
  };

  const Params& params_;
  const FeatureMap* gradients_;
  const std::vector<Box<coord_t>>& boxes_;
  const bool is_large_;
  const Kernels<T>& kernels_ = kernels<T>();
  const PooledGradient<T> pooled_;
  BoxTaps<coord_t, acc_t> box_taps_;
  std::vector<coord_t> converted_map_;
  PixelTaps<acc_t> taps_;
  int32_t block_ = 0;  // channels of a tile
  PlaneGrid row_;      // of the gradient
  std::vector<Bins> rows_of_boxes_;
  std::vector<acc_t> packed_bins_;
  std::vector<acc_t> tile_;
  std::vector<T> staged_;

  static int64_t bytes_of(const Params& params, const FeatureMap* gradients) {
    int64_t pixels = 0;
    for (int32_t level = 0; level < params.num_levels; ++level) {
      if (gradients[level].data != nullptr) {
        pixels += int64_t(gradients[level].height) * gradients[level].width;
      }
    }
    return params.num_images * params.channels * pixels * int64_t(sizeof(T));
  }

  void collect_taps(const Band& band, const FeatureMap& map) {
    taps_.clear(int64_t(band.rows.end - band.rows.begin) * map.width);
    rows_of_boxes_.clear();
    int64_t num_bins = 0;
    for (size_t b = band.begin; b < band.end; ++b) {
      const Box<coord_t>& box = boxes_[b];
      if (box.rows.begin < band.rows.end && band.rows.begin < box.rows.end) {
        build_axes(params_, box, box_taps_);
        num_bins += collect_taps(band, map, box, num_bins);
      }
    }
    taps_.sort();
  }

  // Returns how many bins of the box reach into the band.
  int64_t collect_taps(
      const Band& band, const FeatureMap& map, const Box<coord_t>& box, int64_t num_bins) {
    const std::vector<int32_t>& cells = box_taps_.y.cells;
    const std::vector<int32_t>& columns = box_taps_.x.cells;
    const auto slot_of = [&](int32_t row) {
      return static_cast<int32_t>(
          std::lower_bound(cells.begin(), cells.end(), row) - cells.begin());
    };
    const Range<int32_t> slots{slot_of(band.rows.begin), slot_of(band.rows.end)};
    const auto in_band = [&](int32_t ph) {
      const Range<int32_t> of_bin = box_taps_.y.bin_slots[ph];
      return of_bin.begin < slots.end && slots.begin < of_bin.end;
    };
    Range<int32_t> rows{0, params_.options.pooled_height};
    while (rows.begin < rows.end && !in_band(rows.begin)) {
      ++rows.begin;
    }
    while (rows.begin < rows.end && !in_band(rows.end - 1)) {
      --rows.end;
    }
    if (rows.begin == rows.end) {
      return 0;
    }
    rows_of_boxes_.push_back({box.index, rows});
    box_taps_.start_weights(map_of_box(params_, box.index, converted_map_), params_.map_width);
    const int32_t entries = box_taps_.x.num_entries();
    int64_t bin = num_bins;
    for (int32_t ph = rows.begin; ph < rows.end; ++ph, bin += bins_per_row()) {
      const Range<int32_t> of_bin = box_taps_.y.bin_slots[ph];
      const Range<int32_t> here{
          std::max(of_bin.begin, slots.begin), std::min(of_bin.end, slots.end)};
      const coord_t* weights = box_taps_.weights_of_row(ph, here);
      for (int32_t slot = here.begin; slot < here.end; ++slot) {
        const int64_t first_pixel = int64_t(cells[slot] - band.rows.begin) * map.width;
        const coord_t* of_slot = weights + int64_t(slot - of_bin.begin) * entries;
        for (int32_t pw = 0; pw < bins_per_row(); ++pw) {
          const Range<int32_t> slots_x = box_taps_.x.bin_slots[pw];
          const int64_t source = pooled_.is_in_place()
                                     ? pooled_.offset(box.index, ph * bins_per_row() + pw)
                                     : (bin + pw) * block_;
          taps_.add(
              first_pixel, columns.data() + slots_x.begin, slots_x.end - slots_x.begin, source,
              of_slot + box_taps_.x.entry_begin[pw]);
        }
      }
    }
    return bin - num_bins;
  }

  int32_t bins_per_row() const {
    return params_.options.pooled_width;
  }

  const acc_t* pack_bins(int64_t c, int32_t channels) {
    int64_t num_bins = 0;
    for (const Bins& bins : rows_of_boxes_) {
      num_bins += int64_t(bins.rows.end - bins.rows.begin) * bins_per_row();
    }
    packed_bins_.resize(size_t(num_bins + kernels_.lanes) * block_);
    acc_t* tile = packed_bins_.data();
    for (const Bins& bins : rows_of_boxes_) {
      pooled_.pack(bins.box, bins.rows, c, channels, tile, block_);
      tile += int64_t(bins.rows.end - bins.rows.begin) * bins_per_row() * block_;
    }
    return packed_bins_.data();
  }

  void write_pixels(
      const FeatureMap& map, int32_t rows, const acc_t* source, int32_t channels, T* to) {
    for (int32_t row = 0; row < rows; ++row) {
      kernels_.gather_from_tile(
          source, taps_.pixel_begin.data() + int64_t(row) * map.width, taps_.source.data(),
          taps_.weight.data(), map.width, channels, to + row * map.row_stride, map.column_stride);
    }
  }

  // A row of a plane is no whole number of cache lines: the rows of a large gradient are transposed
  // in the cache, and each channel's leave it as one stream.
  void write_planes(
      const FeatureMap& map, int32_t rows, const acc_t* source, int32_t channels, T* to) {
    constexpr int64_t kStagedBytes = 512 << 10;
    const int64_t width = map.width;
    const bool is_dense = map.column_stride == 1 && map.row_stride == width;
    const bool is_staged = is_dense && is_large_;
    const auto has_taps = [&](int32_t row, int32_t end) {
      return taps_.pixel_begin[row * width] != taps_.pixel_begin[end * width];
    };
    int32_t step = 1;
    if (is_dense && !has_taps(0, rows)) {
      step = rows;
    } else if (is_staged) {
      const int64_t fitting = kStagedBytes / (channels * width * int64_t(sizeof(T)));
      step = static_cast<int32_t>(std::clamp<int64_t>(fitting, 1, rows));
    }
    for (int32_t row = 0; row < rows; row += step) {
      const int32_t end = std::min(row + step, rows);
      const size_t bytes = sizeof(T) * (end - row) * width;
      T* first = to + row * map.row_stride;
      if (map.column_stride == 1 && !has_taps(row, end)) {
        for (int32_t c = 0; c < channels; ++c) {
          void* plane = first + c * map.channel_stride;
          if (is_staged) {
            stream_zeros(plane, bytes);
          } else {
            std::memset(plane, 0, bytes);
          }
        }
      } else if (is_staged) {
        const int64_t plane = (end - row) * width;
        staged_.resize(channels * plane);
        for (int32_t r = row; r < end; ++r) {
          write_row(map, r, source, channels, staged_.data() + (r - row) * width, plane);
        }
        for (int32_t c = 0; c < channels; ++c) {
          stream(first + c * map.channel_stride, staged_.data() + c * plane, bytes);
        }
      } else {
        write_row(map, row, source, channels, first, map.channel_stride);
      }
    }
  }

  void write_row(
      const FeatureMap& map, int32_t row, const acc_t* source, int32_t channels, T* to,
      int64_t channel_stride) {
    tile_.resize(size_t(map.width + kernels_.lanes) * block_);
    kernels_.gather_tile_to_tile(
        source, taps_.pixel_begin.data() + int64_t(row) * map.width, taps_.source.data(),
        taps_.weight.data(), map.width, channels, tile_.data(), block_);
    kernels_.unpack(tile_.data(), block_, row_.planes(to, channel_stride, channels));
  }
};

}  // namespace

void feature_gradient(const Params& params, const PooledMap& grad, const FeatureMap* gradients) {
  dispatch(params, [&](auto feature, auto roi) {
    using T = decltype(feature);
    using coord_t = coordinate_t<T, decltype(roi)>;
    using Worker = BandGradient<T, coord_t>;
    auto boxes = sorted_boxes<coord_t, decltype(roi)>(params);
    std::erase_if(boxes, [&](const Box<coord_t>& box) {
      return !box.is_sampled || gradients[box.level].data == nullptr;
    });
    const std::vector<Band> bands = plan_bands<T>(params, gradients, boxes);
    parallel_dynamic(
        static_cast<int64_t>(bands.size()), [&] { return Worker(params, grad, gradients, boxes); },
        [&](Worker& worker, int64_t i) { worker.compute(bands[i]); });
  });
}

}  // namespace shape_roi_align::cpu
