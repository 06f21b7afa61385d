// Gradients of the probability maps and of the boxes. Both are sums over channels, and both follow
// from the same dot products <features of a pixel, gradient of a bin>, one per tap: the channels
// are read once, the rest is scalar work. One thread owns a box.
#include "cpu/box_runs.h"
#include "cpu/jobs.h"
#include "cpu/pooled_gradient.h"

namespace shape_roi_align::cpu {
namespace {

template <typename T, typename coord_t, typename box_t>
class MapAndBoxGradient {
 public:
  using acc_t = accumulate_t<T>;

  MapAndBoxGradient(
      const Params& params, const PooledMap& grad, void* grad_maps, box_t* grad_rois,
      const std::vector<Box<coord_t>>& boxes)
      : params_(params),
        pooled_(grad, params.options),
        grad_maps_(grad_maps),
        grad_rois_(grad_rois),
        bins_(params.options.pooled_height * params.options.pooled_width),
        run_(params, boxes) {}

  void compute(const Run& run) {
    run_.prepare(run);
    dot_taps(run.channels);
    for (size_t i = 0; i < run_.size(); ++i) {
      finish(run_.box(i), run_.taps(i), dot_[i].data());
    }
  }

 private:
  // d(loss)/d(sample coordinate), summed over samples, plain and weighted by their place in the
  // box.
  struct AxisGradient {
    coord_t sum = 0;
    coord_t by_place = 0;
  };

  const Params& params_;
  const PooledGradient<T> pooled_;
  void* grad_maps_;
  box_t* grad_rois_;
  const int32_t bins_;
  const Kernels<T>& kernels_ = kernels<T>();
  BoxRun<T, coord_t> run_;
  std::vector<std::vector<acc_t>> dot_;  // of each box, one per tap
  std::vector<acc_t> tile_;
  const coord_t* map_ = nullptr;
  std::vector<coord_t> converted_map_;
  MapRow<coord_t> map_row_;
  std::vector<coord_t> map_gradient_;
  std::vector<coord_t> map_row_gradient_;  // of one row of samples, between rows of the map
  // Of a row of bins, [row slots][x entries], and of a row of samples, [x entries]:
  std::vector<coord_t> dot_of_bins_;
  std::vector<coord_t> dot_of_samples_;
  std::vector<coord_t> slope_of_samples_;  // along y
  AxisGradient along_y_;
  AxisGradient along_x_;

  void dot_taps(int64_t channels_of_run) {
    if (dot_.size() < run_.size()) {
      dot_.resize(run_.size());
    }
    for (size_t i = 0; i < run_.size(); ++i) {
      dot_[i].assign(run_.taps(i).weight.size(), acc_t(0));
    }
    const int32_t widest =
        pooled_.is_in_place() ? static_cast<int32_t>(channels_of_run)
                              : channel_block<T>(bins_, channels_of_run, 2 * kernels_.planar_block);
    run_.for_each_block(widest, [&](size_t i, auto* features, int64_t c, int32_t channels) {
      const BoxTaps<coord_t, acc_t>& taps = run_.taps(i);
      const int64_t k = run_.box(i).index;
      if (pooled_.is_in_place()) {
        dot(taps, features, channels, pooled_.data() + pooled_.offset(k, 0) + c,
            pooled_.bin_stride(), dot_[i].data());
        return;
      }
      const int64_t stride = round_up(channels, kernels_.lanes);
      tile_.resize((size_t(bins_) + kernels_.lanes) * stride);
      pooled_.pack(k, {0, params_.options.pooled_height}, c, channels, tile_.data(), stride);
      dot(taps, features, channels, tile_.data(), stride, dot_[i].data());
    });
  }

  template <typename source_t>
  void dot(
      const BoxTaps<coord_t, acc_t>& taps, const source_t* features, int32_t channels,
      const acc_t* tile, int64_t stride, acc_t* to) const {
    const auto kernel = [&] {
      if constexpr (std::is_same_v<source_t, T>) {
        return kernels_.dot_taps;
      } else {
        return kernels_.dot_taps_packed;
      }
    }();
    kernel(features, taps.bin_begin.data(), taps.offset.data(), bins_, channels, tile, stride, to);
  }

  void finish(const Box<coord_t>& box, const BoxTaps<coord_t, acc_t>& taps, const acc_t* dot) {
    map_ = map_of_box(params_, box.index, converted_map_);
    map_gradient_.assign(
        grad_maps_ == nullptr ? 0 : int64_t(params_.map_height) * params_.map_width, coord_t(0));
    map_row_gradient_.assign(grad_maps_ == nullptr ? 0 : params_.map_width, coord_t(0));
    along_y_ = along_x_ = AxisGradient{};
    if (map_ != nullptr && grad_rois_ != nullptr) {
      map_row_.start(map_, params_.map_width, taps.x);
    }
    for (int32_t ph = 0; ph < params_.options.pooled_height; ++ph) {
      take_dots(taps, dot, ph);
      for (int32_t iy = taps.y.sample_begin[ph]; iy < taps.y.sample_begin[ph + 1]; ++iy) {
        interpolate_dots(taps, taps.y.samples[iy], taps.y.bin_slots[ph].begin);
        if (grad_maps_ != nullptr) {
          add_to_map(taps, taps.y.samples[iy].map);
        }
        if (grad_rois_ != nullptr) {
          add_to_box(taps, taps.y.samples[iy]);
        }
      }
    }
    if (grad_maps_ != nullptr) {
      store_map_gradient(box.index);
    }
    if (grad_rois_ != nullptr) {
      box_t* grad_roi = grad_rois_ + 5 * box.index;
      const coord_t scale = static_cast<coord_t>(params_.levels[box.level].spatial_scale);
      store_axis(box.geometry.x, along_x_, scale, grad_roi + 1, grad_roi + 3);
      store_axis(box.geometry.y, along_y_, scale, grad_roi + 2, grad_roi + 4);
    }
  }

  void take_dots(const BoxTaps<coord_t, acc_t>& taps, const acc_t* dots, int32_t ph) {
    const AxisTaps<coord_t>& x = taps.x;
    const Range<int32_t> rows = taps.y.bin_slots[ph];
    const int64_t entries = x.num_entries();
    dot_of_bins_.resize((rows.end - rows.begin) * entries);
    for (int32_t pw = 0; pw < params_.options.pooled_width; ++pw) {
      const acc_t* from = dots + taps.bin_begin[ph * params_.options.pooled_width + pw];
      for (int32_t row = 0; row < rows.end - rows.begin; ++row) {
        for (int32_t entry = x.entry_begin[pw]; entry < x.entry_begin[pw + 1]; ++entry) {
          dot_of_bins_[row * entries + entry] = static_cast<coord_t>(*from++);
        }
      }
    }
  }

  void interpolate_dots(
      const BoxTaps<coord_t, acc_t>& taps, const AxisSample<coord_t>& y, int32_t first_row) {
    const int64_t entries = taps.x.num_entries();
    const coord_t* low = dot_of_bins_.data() + (y.low - first_row) * entries;
    const coord_t* high = dot_of_bins_.data() + (y.high - first_row) * entries;
    dot_of_samples_.resize(entries);
    slope_of_samples_.resize(entries);
    for (int64_t entry = 0; entry < entries; ++entry) {
      dot_of_samples_[entry] = y.low_weight * low[entry] + y.high_weight * high[entry];
      slope_of_samples_[entry] = y.slope * (high[entry] - low[entry]);
    }
  }

  static coord_t interpolate(const AxisSample<coord_t>& x, const std::vector<coord_t>& entries) {
    return x.low_weight * entries[x.low_entry] + x.high_weight * entries[x.high_entry];
  }

  void add_to_map(const BoxTaps<coord_t, acc_t>& taps, const Interpolation<coord_t>& y) {
    for (const AxisSample<coord_t>& x : taps.x.samples) {
      const coord_t gradient = taps.inverse_count * interpolate(x, dot_of_samples_);
      map_row_gradient_[x.map.low] += gradient * x.map.low_weight;
      map_row_gradient_[x.map.high] += gradient * x.map.high_weight;
    }
    coord_t* low = map_gradient_.data() + int64_t(y.low) * params_.map_width;
    coord_t* high = map_gradient_.data() + int64_t(y.high) * params_.map_width;
    for (int32_t cell = 0; cell < params_.map_width; ++cell) {
      low[cell] += y.low_weight * map_row_gradient_[cell];
      high[cell] += y.high_weight * map_row_gradient_[cell];
      map_row_gradient_[cell] = 0;
    }
  }

  void add_to_box(const BoxTaps<coord_t, acc_t>& taps, const AxisSample<coord_t>& y) {
    if (map_ != nullptr) {
      map_row_.set(y.map);
    }
    for (const AxisSample<coord_t>& x : taps.x.samples) {
      const coord_t p = map_ == nullptr ? coord_t(1) : map_row_(x.map);
      const coord_t weight = p * taps.inverse_count;
      const coord_t slope = dot_of_samples_[x.high_entry] - dot_of_samples_[x.low_entry];
      add_to_axis(along_y_, weight * interpolate(x, slope_of_samples_), y.place);
      add_to_axis(along_x_, weight * x.slope * slope, x.place);
    }
  }

  static void add_to_axis(AxisGradient& axis, coord_t gradient, coord_t place) {
    axis.sum += gradient;
    axis.by_place += gradient * place;
  }

  // coordinate = edge1 * scale - offset + place * extent, extent = (edge2 - edge1) * scale where it
  // varies.
  static void store_axis(
      const Axis<coord_t>& axis, const AxisGradient& gradient, coord_t scale, box_t* edge1,
      box_t* edge2) {
    const coord_t of_extent = axis.extent_varies ? gradient.by_place : coord_t(0);
    *edge1 = static_cast<box_t>(scale * (gradient.sum - of_extent));
    *edge2 = static_cast<box_t>(scale * of_extent);
  }

  void store_map_gradient(int64_t k) {
    dispatch(params_.map_type, [&](auto instance) {
      using map_t = decltype(instance);
      map_t* to = static_cast<map_t*>(grad_maps_) + k * static_cast<int64_t>(map_gradient_.size());
      for (const coord_t value : map_gradient_) {
        store(static_cast<accumulate_t<map_t>>(value), to++);
      }
    });
  }
};

}  // namespace

void map_and_box_gradient(
    const Params& params, const PooledMap& grad, void* grad_maps, void* grad_rois) {
  dispatch(params, [&](auto feature, auto roi) {
    using T = decltype(feature);
    using box_t = decltype(roi);
    using coord_t = coordinate_t<T, box_t>;
    using Worker = MapAndBoxGradient<T, coord_t, box_t>;
    auto boxes = sorted_boxes<coord_t, box_t>(params);
    if (params.channels == 0) {
      return;
    }
    std::erase_if(boxes, [](const Box<coord_t>& box) { return !box.is_sampled; });
    const std::vector<Run> runs = plan_runs<T>(params, boxes, Divide::kBoxes, false);
    parallel_dynamic(
        static_cast<int64_t>(runs.size()),
        [&] { return Worker(params, grad, grad_maps, static_cast<box_t*>(grad_rois), boxes); },
        [&](Worker& worker, int64_t i) { worker.compute(runs[i]); });
  });
}

}  // namespace shape_roi_align::cpu
