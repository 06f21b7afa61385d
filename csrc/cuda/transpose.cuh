// Copies maps in any layout to maps with channels innermost.
#pragma once

#include "cuda/block.cuh"

namespace shape_roi_align::cuda {

// [count, channels, height, width] with strides in elements, copied to [count, height, width,
// channels], which is dense.
struct TransposedCopy {
  const void* from;
  void* to;
  int64_t count;
  int64_t channels;
  int32_t height;
  int32_t width;
  int64_t map_stride;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;

  __host__ __device__ int64_t pixels() const {
    return int64_t(height) * width;
  }
};

// Of a tile that a block copies through shared memory. Rows of both sides have at least 128 bytes.
constexpr int32_t kCopiedPixels = 2 * kWarp;
template <typename T>
constexpr int32_t kCopiedChannels = sizeof(T) < 4 ? 2 * kWarp : kWarp;

inline int64_t tiles_of_copy(const TransposedCopy& copy, int64_t channels_per_tile) {
  return copy.count * ceil_div(copy.channels, channels_per_tile) *
         ceil_div(copy.pixels(), kCopiedPixels);
}

// T: an unsigned integer of the elements' size.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    transpose_kernel(const __grid_constant__ TransposedCopy copy, const int64_t tiles) {
  constexpr int32_t kPixelsPerLane = kCopiedPixels / kWarp;
  constexpr int32_t kChannelsAtOnce = kCopiedChannels<T> / (kMaxThreads / kWarp);
  __shared__ T staged[kCopiedChannels<T>][kCopiedPixels + 1];  // channels in different banks
  const T* const from = static_cast<const T*>(copy.from);
  T* const to = static_cast<T*>(copy.to);
  const int64_t across = ceil_div(copy.pixels(), kCopiedPixels);
  const int64_t down = ceil_div(copy.channels, kCopiedChannels<T>);
  for (int64_t i = blockIdx.x; i < tiles; i += gridDim.x) {
    const int64_t first_pixel = i % across * kCopiedPixels;
    const int64_t first_channel = i / across % down * kCopiedChannels<T>;
    const int64_t map = i / across / down;
    const int32_t pixels =
        static_cast<int32_t>(min_of<int64_t>(copy.pixels() - first_pixel, kCopiedPixels));
    const int32_t channels =
        static_cast<int32_t>(min_of<int64_t>(copy.channels - first_channel, kCopiedChannels<T>));

    const T* const of_tile = from + map * copy.map_stride + first_channel * copy.channel_stride;
    int64_t offsets[kPixelsPerLane];
#pragma unroll
    for (int32_t p = 0; p < kPixelsPerLane; ++p) {
      const int32_t pixel = static_cast<int32_t>(first_pixel) + p * kWarp + lane_index();
      offsets[p] = pixel / copy.width * copy.row_stride + pixel % copy.width * copy.column_stride;
    }
#pragma unroll 1
    for (int32_t c = warp_index() * kChannelsAtOnce; c < channels;
         c += num_warps() * kChannelsAtOnce) {
      // All loads before the first store.
      T loaded[kChannelsAtOnce][kPixelsPerLane];
#pragma unroll
      for (int32_t j = 0; j < kChannelsAtOnce; ++j) {
#pragma unroll
        for (int32_t p = 0; p < kPixelsPerLane; ++p) {
          if (c + j < channels && p * kWarp + lane_index() < pixels) {
            loaded[j][p] = of_tile[(c + j) * copy.channel_stride + offsets[p]];
          }
        }
      }
#pragma unroll
      for (int32_t j = 0; j < kChannelsAtOnce; ++j) {
#pragma unroll
        for (int32_t p = 0; p < kPixelsPerLane; ++p) {
          if (c + j < channels && p * kWarp + lane_index() < pixels) {
            staged[c + j][p * kWarp + lane_index()] = loaded[j][p];
          }
        }
      }
    }
    __syncthreads();
    T* const to_tile = to + (map * copy.pixels() + first_pixel) * copy.channels + first_channel;
#pragma unroll 1
    for (int32_t p = warp_index(); p < pixels; p += num_warps()) {
#pragma unroll
      for (int32_t c = 0; c < kCopiedChannels<T>; c += kWarp) {
        if (c + lane_index() < channels) {
          to_tile[p * copy.channels + c + lane_index()] = staged[c + lane_index()][p];
        }
      }
    }
    __syncthreads();
  }
}

}  // namespace shape_roi_align::cuda
