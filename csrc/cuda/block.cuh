// How the threads of a block divide the work: warps, lanes and channels.
//
// Blocks consist of whole warps. Where channels are innermost in memory, a warp has channels in the
// lanes: its lanes serve neighbouring channels. Elsewhere it has bins in the lanes: its lanes serve
// the taps of a few bins, and each lane loops over channels.
#pragma once

#include "cuda/sampling.cuh"

namespace shape_roi_align::cuda {

constexpr int32_t kWarp = 32;
constexpr int32_t kMaxThreads = 256;
constexpr int32_t kTeam = 8;             // lanes that serve a bin with few taps; divides kWarp
constexpr int32_t kChannelsPerLane = 8;  // in registers at a time
// Minimum number of blocks per multiprocessor, which limits the registers per thread: many warps
// with few loads in flight each, or few warps with many loads. float64 takes twice the registers.
constexpr int32_t kManyBlocks = 3;  // 80 registers
constexpr int32_t kFewBlocks = 2;   // 128 registers
template <typename coord_t, int32_t blocks>
constexpr int32_t kMinBlocks = sizeof(coord_t) == sizeof(double) ? blocks - 1 : blocks;

// Loads, each of kChannelsPerLane converted channels, that a lane issues before it uses the first.
template <typename T, int32_t blocks>
constexpr int32_t kLoadsInFlight = blocks == kManyBlocks ? (sizeof(T) == sizeof(double) ? 1 : 2)
                                                         : (sizeof(T) == sizeof(double) ? 2 : 4);

constexpr int32_t kChannelsPerWarp = kWarp * kChannelsPerLane;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline int32_t lane_index() {
  return threadIdx.x % kWarp;
}
__device__ inline int32_t warp_index() {
  return threadIdx.x / kWarp;
}
__device__ inline int32_t num_warps() {
  return blockDim.x / kWarp;
}

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
template <typename index_t>
__host__ __device__ constexpr index_t min_of(index_t a, std::type_identity_t<index_t> b) {
  return a < b ? a : b;
}
template <typename index_t>
__host__ __device__ constexpr index_t max_of(index_t a, std::type_identity_t<index_t> b) {
  return a > b ? a : b;
}

// Inclusive prefix sum over the lanes of a team. A team consists of `lanes` (a power of 2)
// neighbouring lanes. Called by whole warps.
__device__ inline int32_t sum_up_to_lane(int32_t value, int32_t lanes) {
#pragma unroll
  for (int32_t distance = 1; distance < lanes; distance *= 2) {
    const int32_t before = __shfl_up_sync(kAllLanes, value, distance);
    value += lane_index() % lanes >= distance ? before : 0;
  }
  return value;
}

// make_box by two neighbouring lanes: the even one makes the axis along y, the odd one along x.
// Called by whole warps; writes if `exists`, which must be equal in both lanes.
template <typename T>
__device__ void make_box_by_lanes(const Params& params, int64_t k, bool exists, Box<T>& to) {
  const bool is_y = lane_index() % 2 == 0;
  const int64_t from = exists ? k : 0;
  const T index = load_roi<T>(params, from, 0);
  const T edge1 = load_roi<T>(params, from, is_y ? 2 : 1);
  const T edge2 = load_roi<T>(params, from, is_y ? 4 : 3);
  const int64_t level = load_level(params, from);
  const bool has_level = level >= 0 && level < params.num_levels;
  const FeatureMap& feature_map = params.levels[has_level ? level : 0];
  const Axis<T> axis = make_axis<T>(
      edge1, edge2, T(feature_map.spatial_scale),
      is_y ? params.options.pooled_height : params.options.pooled_width, params.options);
  const int32_t samples_of_other = __shfl_xor_sync(kAllLanes, axis.samples, 1);
  if (!exists) {
    return;
  }
  BoxGeometry<T>& geometry = to.geometry;
  if (!is_y) {
    geometry.x = axis;
    return;
  }
  geometry.y = axis;
  const bool in_batch = is_batch_index(index, params.num_images);
  geometry.batch = in_batch ? static_cast<int64_t>(index) : 0;
  geometry.valid = in_batch && axis.samples >= 0 && samples_of_other >= 0;
  geometry.share = sample_share<T>(axis.samples, samples_of_other, params.options.average);
  to.index = k;
  to.level = has_level ? static_cast<int32_t>(level) : 0;
  to.reads = has_level && geometry.valid && axis.samples > 0 && samples_of_other > 0 &&
             feature_map.height > 0 && feature_map.width > 0;
}

// A lane's part of kPerWarp channels that are adjacent in memory: vectors of `width` channels,
// kWarp vectors apart. The number of channels is a multiple of `width`.
template <int32_t width, int32_t per_lane = kChannelsPerLane>
struct LaneChannels {
  static constexpr int32_t kVectors = per_lane / width;
  static constexpr int32_t kPerWarp = kWarp * per_lane;
  int64_t first;
  int32_t left;  // channels from `first` on, at most kPerWarp

  __device__ LaneChannels(int64_t slab, int64_t channels) {
    first = slab * kPerWarp + lane_index() * width;
    const int64_t all = channels - first;
    left = all < kPerWarp ? static_cast<int32_t>(all) : kPerWarp;
  }

  // Calls f(i, offset) for each vector. i: the vector's first channel, counted among the lane's
  // channels. offset: of this channel from `first`.
  template <typename F>
  __device__ void for_each(F f) const {
#pragma unroll
    for (int32_t i = 0; i < kVectors; ++i) {
      if (i * kWarp * width < left) {
        f(i * width, i * kWarp * width);
      }
    }
  }

  // The lane's channels of one pixel. Channels that do not exist stay 0.
  template <typename T>
  struct Pixel {
    Vector<width, T> vectors[kVectors] = {};

    __device__ void add_to(accumulate_t<T>* sum, accumulate_t<T> weight) const {
#pragma unroll
      for (int32_t i = 0; i < kVectors; ++i) {
        accumulate_t<T> values[width];
        vectors[i].convert(values);
#pragma unroll
        for (int32_t c = 0; c < width; ++c) {
          sum[i * width + c] += weight * values[c];
        }
      }
    }
  };

  // Number of pixels that fit in `registers`. An element of 2 bytes takes half a register in a
  // vector, else a whole register.
  template <typename T, int32_t registers>
  static constexpr int32_t kPixelsIn =
      registers * sizeof(float) /
      (per_lane * (width == 1 && sizeof(T) < sizeof(float) ? sizeof(float) : sizeof(T)));

  template <typename T>
  __device__ void load(const T* from, Pixel<T>& to) const {
    for_each([&](int32_t i, int32_t offset) { to.vectors[i / width].load(from + offset); });
  }

  // Leaves `to` unchanged for channels that do not exist.
  template <typename T>
  __device__ void load(const T* from, accumulate_t<T>* to) const {
    for_each([&](int32_t i, int32_t offset) {
      Vector<width, T> vector;
      vector.load(from + offset);
      vector.convert(to + i);
    });
  }

  template <typename T>
  __device__ void store(const accumulate_t<T>* from, T* to) const {
    for_each([&](int32_t i, int32_t offset) { store_vector<width>(from + i, to + offset); });
  }
};

// Sums each of kTeam values over a team. lanes: lanes per team, kTeam or kWarp. Lane i returns the
// total of value i % kTeam. Called by whole warps; destroys `values`.
template <typename T>
__device__ T sum_over_lanes(T* values, int32_t lanes) {
#pragma unroll
  for (int32_t half = kTeam / 2; half > 0; half /= 2) {
    const bool keeps_upper = (lane_index() & half) != 0;
#pragma unroll
    for (int32_t i = 0; i < half; ++i) {
      const T given = keeps_upper ? values[i] : values[i + half];
      const T kept = keeps_upper ? values[i + half] : values[i];
      values[i] = kept + __shfl_xor_sync(kAllLanes, given, half);
    }
  }
  T total = values[0];
  if (lanes == kWarp) {
#pragma unroll
    for (int32_t distance = kTeam; distance < kWarp; distance *= 2) {
      total += __shfl_xor_sync(kAllLanes, total, distance);
    }
  }
  return total;
}

}  // namespace shape_roi_align::cuda
