// Forward: the taps of a box are built once; then channels stream through registers.
#include <cstring>

#include "cpu/box_runs.h"
#include "cpu/jobs.h"
#include "cpu/simd/streaming.h"

namespace shape_roi_align::cpu {
namespace {

template <typename T, typename coord_t>
class Pooler {
 public:
  using acc_t = accumulate_t<T>;

  Pooler(const Params& params, const PooledMap& output, const std::vector<Box<coord_t>>& boxes)
      : output_(output),
        bins_(params.options.pooled_height * params.options.pooled_width),
        grid_(bin_grid(output, params.options.pooled_height, params.options.pooled_width)),
        is_large_(params.num_rois * params.channels * bins_ * int64_t(sizeof(T)) >= kLargeResult),
        is_staged_(is_large_ && output.channel_stride == bins_ && staged_bytes() <= kLargestStage),
        run_(params, boxes) {}

  void pool(const Run& run) {
    run_.prepare(run);
    if (run.access == Access::kPlanes) {
      pool_planes();
      finish_streaming();
      return;
    }
    const bool is_in_place = run.access == Access::kPixels && output_.channel_stride == 1;
    const int32_t widest = is_in_place
                               ? static_cast<int32_t>(run.channels)
                               : channel_block<T>(bins_, run.channels, kernels_.planar_block);
    run_.for_each_block(widest, [&](size_t i, auto* features, int64_t c, int32_t channels) {
      T* out = static_cast<T*>(output_.data) + run_.box(i).index * output_.box_stride +
               c * output_.channel_stride;
      const BoxTaps<coord_t, acc_t>& taps = run_.taps(i);
      if (output_.channel_stride == 1) {
        gather(taps, features, channels, out, output_.column_stride);
      } else {
        const int64_t stride = round_up(channels, kernels_.lanes);
        tile_.resize((size_t(bins_) + kernels_.lanes) * stride);
        gather(taps, features, channels, tile_.data(), stride);
        write_planes(stride, channels, out);
      }
    });
    finish_streaming();
  }

 private:
  static constexpr int64_t kLargestStage = 256 << 10;  // bytes that stay in the cache

  const PooledMap& output_;
  const int32_t bins_;
  const PlaneGrid grid_;
  const bool is_large_;
  const bool is_staged_;  // planes, before they are streamed
  const Kernels<T>& kernels_ = kernels<T>();
  BoxRun<T, coord_t> run_;
  std::vector<acc_t> tile_;
  std::vector<T> staged_;

  int64_t staged_bytes() const {
    return int64_t(bins_) * kernels<T>().lanes * int64_t(sizeof(T));
  }

  void pool_planes() {
    const int64_t channel_stride = run_.map().channel_stride;
    run_.for_each_block_of_planes([&](size_t i, const Lookups<acc_t>& lookups, const T* planes,
                                      int64_t c, int32_t channels) {
      T* out = static_cast<T*>(output_.data) + run_.box(i).index * output_.box_stride +
               c * output_.channel_stride;
      if (!is_staged_) {
        kernels_.pool_planes(
            lookups, planes, channel_stride, channels, out, output_.channel_stride,
            output_.row_stride);
        return;
      }
      staged_.resize(size_t(bins_) * channels);
      kernels_.pool_planes(
          lookups, planes, channel_stride, channels, staged_.data(), bins_, lookups.bin_columns);
      stream(out, staged_.data(), sizeof(T) * staged_.size());
    });
  }

  // The planes of a large output are transposed in the cache and leave it as one stream of whole
  // lines; a plane of 49 bins is no multiple of a line.
  void write_planes(int64_t stride, int32_t channels, T* out) {
    if (!is_staged_) {
      kernels_.unpack(tile_.data(), stride, grid_.planes(out, output_.channel_stride, channels));
      return;
    }
    staged_.resize(size_t(bins_) * kernels_.lanes);
    for (int32_t c = 0; c < channels; c += kernels_.lanes) {
      const int32_t n = std::min(kernels_.lanes, channels - c);
      kernels_.unpack(tile_.data() + c, stride, grid_.planes(staged_.data(), bins_, n));
      stream(out + int64_t(c) * bins_, staged_.data(), sizeof(T) * bins_ * n);
    }
  }

  template <typename source_t, typename out_t>
  void gather(
      const BoxTaps<coord_t, acc_t>& taps, const source_t* features, int32_t channels, out_t* out,
      int64_t bin_stride) const {
    const auto kernel = [&] {
      constexpr bool from_tile = !std::is_same_v<source_t, T>;
      constexpr bool to_tile = !std::is_same_v<out_t, T>;
      if constexpr (from_tile && to_tile) {
        return kernels_.gather_tile_to_tile;
      } else if constexpr (from_tile) {
        return kernels_.gather_from_tile;
      } else if constexpr (to_tile) {
        return kernels_.gather_to_tile;
      } else {
        return is_large_ ? kernels_.gather_streamed : kernels_.gather;
      }
    }();
    kernel(
        features, taps.bin_begin.data(), taps.offset.data(), taps.weight.data(), bins_, channels,
        out, bin_stride);
  }
};

}  // namespace

void forward(const Params& params, const PooledMap& output) {
  dispatch(params, [&](auto feature, auto roi) {
    using T = decltype(feature);
    using coord_t = coordinate_t<T, decltype(roi)>;
    using Worker = Pooler<T, coord_t>;
    auto boxes = sorted_boxes<coord_t, decltype(roi)>(params);
    if (params.channels == 0) {
      return;
    }
    const size_t size =
        sizeof(T) * params.channels * params.options.pooled_height * params.options.pooled_width;
    std::erase_if(boxes, [&](const Box<coord_t>& box) {
      if (!box.is_sampled) {
        T* out = static_cast<T*>(output.data) + box.index * output.box_stride;
        std::memset(static_cast<void*>(out), 0, size);
      }
      return !box.is_sampled;
    });
    const std::vector<Run> runs =
        plan_runs<T>(params, boxes, Divide::kChannels, output.column_stride == 1);
    parallel_dynamic(
        static_cast<int64_t>(runs.size()), [&] { return Worker(params, output, boxes); },
        [&](Worker& worker, int64_t i) { worker.pool(runs[i]); });
  });
}

}  // namespace shape_roi_align::cpu
