// Gradient of the features, in the gather form: every pixel collects what the bins send it. A
// worker owns a block of channels of one image and takes its boxes in a fixed order, so that there
// are no races and the result is the same bit for bit with any number of threads.
#include "operators.h"
#include "prepared_box.h"

namespace shape_roi_align::cpu {
namespace {

// A box's taps sorted by pixel: the transpose of BoxTaps.
template <typename acc_t>
struct PixelTaps {
  Footprint footprint;
  std::vector<int64_t> native_offset;  // of each touched pixel
  std::vector<int64_t> packed_offset;  // the same in tile rows
  std::vector<int32_t> pixel_begin;    // [touched pixels + 1]
  std::vector<int32_t> bin;
  std::vector<acc_t> weight;

  template <typename coord_t>
  void build(const FeatureMap& map, const BoxTaps<coord_t, acc_t>& taps) {
    footprint.build(map, taps.y.cells, taps.x.cells);
    const int32_t num_pixels = static_cast<int32_t>(taps.num_pixels());
    pixel_begin.assign(num_pixels + 1, 0);
    for (const int64_t pixel : taps.offset) {
      ++pixel_begin[pixel + 1];
    }
    native_offset.clear();
    packed_offset.clear();
    const size_t num_columns = taps.x.cells.size();
    for (size_t row = 0; row < taps.y.cells.size(); ++row) {
      for (size_t column = 0; column < num_columns; ++column) {
        native_offset.push_back(
            taps.y.cells[row] * map.row_stride + taps.x.cells[column] * map.column_stride);
        packed_offset.push_back(footprint.packed_row[row] + footprint.packed_column[column]);
      }
    }
    for (int32_t pixel = 0; pixel < num_pixels; ++pixel) {
      pixel_begin[pixel + 1] += pixel_begin[pixel];
    }
    next_.assign(pixel_begin.begin(), pixel_begin.end() - 1);
    bin.resize(taps.weight.size());
    weight.resize(taps.weight.size());
    for (size_t b = 0; b + 1 < taps.bin_begin.size(); ++b) {
      for (int32_t t = taps.bin_begin[b]; t < taps.bin_begin[b + 1]; ++t) {
        const int32_t entry = next_[taps.offset[t]]++;
        bin[entry] = static_cast<int32_t>(b);
        weight[entry] = taps.weight[t];
      }
    }
  }

 private:
  std::vector<int32_t> next_;
};

template <typename T, typename coord_t>
class TapsBuilder {
 public:
  using acc_t = accumulate_t<T>;

  TapsBuilder(const Params& params, const FeatureMap* gradients)
      : params_(params), gradients_(gradients) {}

  void build(const Box<coord_t>& box, PixelTaps<acc_t>& pixels) {
    const FeatureMap& map = gradients_[box.level];
    build_axes(params_, box, taps_);
    const int64_t num_columns = static_cast<int64_t>(taps_.x.cells.size());
    row_.resize(taps_.y.cells.size());
    column_.resize(num_columns);
    for (size_t i = 0; i < row_.size(); ++i) {
      row_[i] = static_cast<int64_t>(i) * num_columns;
    }
    for (int64_t i = 0; i < num_columns; ++i) {
      column_[i] = i;
    }
    taps_.build_taps(
        map_of_box(params_, box.index, converted_map_), params_.map_width, row_.data(),
        column_.data());
    if (taps_.num_pixels() == 0) {
      pixels.pixel_begin.assign(1, 0);
      return;
    }
    pixels.build(map, taps_);
  }

 private:
  const Params& params_;
  const FeatureMap* gradients_;
  BoxTaps<coord_t, acc_t> taps_;
  std::vector<coord_t> converted_map_;
  std::vector<int64_t> row_;
  std::vector<int64_t> column_;
};

// A bound on the taps of a box along one axis, cheap enough to plan memory by.
template <typename T>
int64_t axis_taps_bound(const Axis<T>& axis, int32_t size) {
  const double per_bin =
      std::min(2.0 * axis.samples, std::fabs(double(axis.extent)) / axis.bins + 3.0);
  return static_cast<int64_t>(std::min(axis.bins * per_bin, size + 3.0 * axis.bins));
}

template <typename T, typename coord_t>
class FeatureGradient {
 public:
  using acc_t = accumulate_t<T>;
  using BoxList = std::vector<Box<coord_t>>;

  FeatureGradient(const Params& params, const PooledMap& grad, const FeatureMap* gradients)
      : params_(params), grad_(grad), gradients_(gradients) {}

  void run(const BoxList& boxes) {
    constexpr int64_t kTapsAtATime = 4 << 20;
    size_t begin = 0;
    while (begin < boxes.size()) {
      size_t end = begin;
      for (int64_t taps = 0; end < boxes.size() && (end == begin || taps < kTapsAtATime); ++end) {
        const FeatureMap& map = params_.levels[boxes[end].level];
        taps += axis_taps_bound(boxes[end].geometry.y, map.height) *
                axis_taps_bound(boxes[end].geometry.x, map.width);
      }
      run_chunk(boxes, begin, end);
      begin = end;
    }
  }

 private:
  struct Task {
    size_t begin;  // boxes of one image of one level
    size_t end;
    int64_t channel;
    int64_t channels;
  };

  const Params& params_;
  const PooledMap& grad_;
  const FeatureMap* gradients_;
  const Kernels<T>& kernels_ = kernels<T>();
  std::vector<PixelTaps<acc_t>> pixels_;

  void run_chunk(const BoxList& boxes, size_t begin, size_t end) {
    pixels_.resize(std::max(pixels_.size(), end - begin));
    parallel_dynamic(
        static_cast<int64_t>(end - begin),
        [&] { return TapsBuilder<T, coord_t>(params_, gradients_); },
        [&](TapsBuilder<T, coord_t>& builder, int64_t i) {
          builder.build(boxes[begin + i], pixels_[i]);
        });
    const std::vector<Task> tasks = make_tasks(boxes, begin, end);
    parallel_dynamic(
        static_cast<int64_t>(tasks.size()), [&] { return Worker(*this); },
        [&](Worker& worker, int64_t i) {
          const Task& task = tasks[i];
          for (size_t b = task.begin; b < task.end; ++b) {
            worker.add(boxes[b], pixels_[b - begin], task.channel, task.channels);
          }
        });
  }

  // Two tasks per thread, so that the last to finish does not wait long, and no block narrower than
  // a few vectors: each reads all taps.
  std::vector<Task> make_tasks(const BoxList& boxes, size_t begin, size_t end) const {
    std::vector<std::pair<size_t, size_t>> images;
    for (size_t b = begin; b < end; ++b) {
      const bool is_new = b == begin || boxes[b].level != boxes[b - 1].level ||
                          boxes[b].geometry.batch != boxes[b - 1].geometry.batch;
      if (is_new) {
        images.emplace_back(b, b);
      }
      images.back().second = b + 1;
    }
    const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
    const int64_t blocks = std::max<int64_t>(
        1,
        (wanted + static_cast<int64_t>(images.size()) - 1) / static_cast<int64_t>(images.size()));
    const int64_t narrowest = 2 * kernels_.lanes;
    const int64_t per_block = (params_.channels + blocks - 1) / blocks;
    const int64_t block =
        std::max(narrowest, (per_block + kernels_.lanes - 1) / kernels_.lanes * kernels_.lanes);
    std::vector<Task> tasks;
    for (const auto& [first, last] : images) {
      for (int64_t c = 0; c < params_.channels; c += block) {
        tasks.push_back({first, last, c, std::min(block, params_.channels - c)});
      }
    }
    return tasks;
  }

  class Worker {
   public:
    explicit Worker(const FeatureGradient& owner)
        : params_(owner.params_),
          gradients_(owner.gradients_),
          tile_(owner.grad_, owner.params_.options) {}

    void add(
        const Box<coord_t>& box, const PixelTaps<acc_t>& pixels, int64_t channel,
        int64_t channels) {
      const FeatureMap& map = gradients_[box.level];
      const int32_t num_pixels = static_cast<int32_t>(pixels.pixel_begin.size()) - 1;
      if (num_pixels == 0) {
        return;
      }
      acc_t* gradient = static_cast<acc_t*>(map.data) + box.geometry.batch * map.image_stride;
      const bool is_native = is_channels_innermost(map, params_.channels);
      const int64_t tile_rows = is_native
                                    ? params_.options.pooled_height * params_.options.pooled_width
                                    : pixels.footprint.num_pixels();
      const int32_t block = channel_block(
          tile_rows, kernels_.lanes, is_native ? 2 * kernels_.planar_block : kernels_.planar_block,
          channels, sizeof(acc_t));
      for (int64_t c = channel; c < channel + channels; c += block) {
        const int32_t n = static_cast<int32_t>(std::min<int64_t>(block, channel + channels - c));
        const acc_t* tile = tile_.load(box.index, c, n, block);
        if (is_native) {
          gather(pixels, gradient + c, pixels.native_offset.data(), n, tile, block);
          continue;
        }
        packed_.assign(size_t(pixels.footprint.num_pixels() + kernels_.lanes) * block, acc_t(0));
        offset_.resize(num_pixels);
        std::transform(
            pixels.packed_offset.begin(), pixels.packed_offset.end(), offset_.begin(),
            [block](int64_t row) { return row * block; });
        gather(pixels, packed_.data(), offset_.data(), n, tile, block);
        kernels_.unpack_add(
            packed_.data(), block,
            pixels.footprint.template planes<acc_t>(
                gradient + c * map.channel_stride, map.channel_stride, n));
      }
    }

   private:
    const Params& params_;
    const FeatureMap* gradients_;
    const Kernels<T>& kernels_ = kernels<T>();
    BinTile<T> tile_;
    std::vector<acc_t> packed_;
    std::vector<int64_t> offset_;

    void gather(
        const PixelTaps<acc_t>& pixels, acc_t* gradient, const int64_t* offset, int32_t channels,
        const acc_t* tile, int32_t block) {
      kernels_.gather_pixels(
          gradient, offset, pixels.pixel_begin.data(), pixels.bin.data(), pixels.weight.data(),
          static_cast<int32_t>(pixels.pixel_begin.size()) - 1, channels, tile, block);
    }
  };
};

}  // namespace

void backward_features(const Params& params, const PooledMap& grad, const FeatureMap* gradients) {
  dispatch(params, [&](auto feature, auto roi) {
    using T = decltype(feature);
    using coord_t = coordinate_t<T, decltype(roi)>;
    auto boxes = sorted_boxes<coord_t, decltype(roi)>(params);
    std::erase_if(boxes, [&](const Box<coord_t>& box) {
      return !box.is_sampled || gradients[box.level].data == nullptr;
    });
    if (params.channels > 0) {
      FeatureGradient<T, coord_t>(params, grad, gradients).run(boxes);
    }
  });
}

void convert_gradient(ScalarType type, const float* from, void* to, int64_t n) {
  constexpr int64_t kGrain = 1 << 16;
  dispatch(type, [&](auto instance) {
    using T = decltype(instance);
    if constexpr (!std::is_same_v<T, double>) {
      torch::stable::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
        kernels<T>().convert(from + begin, static_cast<T*>(to) + begin, end - begin);
      });
    }
  });
}

}  // namespace shape_roi_align::cpu
