// Forward: each box is pooled by one thread. Its taps are built once; then channels stream through
// registers.
#include "operators.h"
#include "prepared_box.h"

namespace shape_roi_align::cpu {
namespace {

template <typename T, typename coord_t>
class Pooler {
 public:
  using acc_t = accumulate_t<T>;

  Pooler(const Params& params, const PooledMap& output)
      : params_(params),
        output_(output),
        grid_(output, params.options),
        bins_(params.options.pooled_height * params.options.pooled_width) {}

  void pool(const Box<coord_t>& box) {
    T* out = static_cast<T*>(output_.data) + box.index * output_.box_stride;
    if (!box_.prepare(params_, box)) {
      std::memset(static_cast<void*>(out), 0, sizeof(T) * params_.channels * bins_);
      return;
    }
    const BoxTaps<coord_t, acc_t>& taps = box_.taps;
    if (box_.is_native && output_.channel_stride == 1) {
      kernels_.gather_bins(
          box_.native_features(0), taps.bin_begin.data(), taps.offset.data(), taps.weight.data(),
          bins_, static_cast<int32_t>(params_.channels), out, output_.column_stride);
      return;
    }
    const int32_t block = box_.is_native ? channel_block(
                                               bins_, kernels_.lanes, kernels_.planar_block,
                                               params_.channels, sizeof(acc_t))
                                         : box_.block;
    tile_.resize(size_t(bins_ + kernels_.lanes) * block);
    for (int64_t c = 0; c < params_.channels; c += block) {
      const int32_t channels = static_cast<int32_t>(std::min<int64_t>(block, params_.channels - c));
      if (box_.is_native) {
        kernels_.gather_bins_to_tile(
            box_.native_features(c), taps.bin_begin.data(), taps.offset.data(), taps.weight.data(),
            bins_, channels, tile_.data(), block);
      } else {
        kernels_.gather_bins_packed(
            box_.pack_features(c, channels), taps.bin_begin.data(), taps.offset.data(),
            taps.weight.data(), bins_, channels, tile_.data(), block);
      }
      kernels_.unpack(
          tile_.data(), block,
          grid_.planes(out + c * output_.channel_stride, output_.channel_stride, channels));
    }
  }

 private:
  const Params& params_;
  const PooledMap& output_;
  const BinGrid grid_;
  const int32_t bins_;
  const Kernels<T>& kernels_ = kernels<T>();
  PreparedBox<T, coord_t> box_;
  std::vector<acc_t> tile_;
};

}  // namespace

void forward(const Params& params, const PooledMap& output) {
  dispatch(params, [&](auto feature, auto roi) {
    using T = decltype(feature);
    using coord_t = coordinate_t<T, decltype(roi)>;
    const auto boxes = sorted_boxes<coord_t, decltype(roi)>(params);
    if (params.channels == 0) {
      return;
    }
    parallel_dynamic(
        static_cast<int64_t>(boxes.size()), [&] { return Pooler<T, coord_t>(params, output); },
        [&](Pooler<T, coord_t>& pooler, int64_t i) { pooler.pool(boxes[i]); });
  });
}

}  // namespace shape_roi_align::cpu
