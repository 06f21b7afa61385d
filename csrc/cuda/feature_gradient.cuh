// Gradient of the features, in the gather form: each pixel adds up the gradients of the bins that
// read it, box by box. Every element is written. There are no floating-point atomics, so the result
// does not depend on the order in which threads run.
#pragma once

#include "cuda/pixel_taps.cuh"

namespace shape_roi_align::cuda {

// Adds the taps of a warp's pixels to `sum`, for the channels of a lane. The taps of a pixel are
// added in order.
template <
    int32_t width, int32_t per_lane, int32_t pixels_per_warp, typename feature_t, typename acc_t,
    typename coord_t>
__device__ void add_pixel_taps(
    const LaneChannels<width, per_lane>& channels, const feature_t* bins, const Tap<acc_t>* taps,
    const BoxBatch<coord_t, pixels_per_warp>& batch, int32_t first,
    acc_t (&sum)[pixels_per_warp][per_lane]) {
  using Channels = LaneChannels<width, per_lane>;
  constexpr int32_t kTaps = kTapsPerPixel<pixels_per_warp>;
  constexpr int32_t kRegisters = per_lane == 1 ? 8 : 32;
  constexpr int32_t kInFlight = Channels::template kPixelsIn<feature_t, kRegisters>;
  constexpr int32_t kPixels = min_of(kInFlight, pixels_per_warp);
  constexpr int32_t kTapsOfPixel = kInFlight / kPixels;
  static_assert(pixels_per_warp % kPixels == 0 && kTaps % kTapsOfPixel == 0);
  const int32_t pixel = warp_index() * pixels_per_warp;
  int32_t counts[pixels_per_warp];
  int32_t longest = 0;
#pragma unroll
  for (int32_t i = 0; i < pixels_per_warp; ++i) {
    counts[i] = min_of(batch.taps_of(pixel + i) - first, kTaps);
    longest = max_of(longest, counts[i]);
  }
  typename Channels::template Pixel<feature_t> loaded[kInFlight];
#pragma unroll 1
  for (int32_t tap = 0; tap < longest; tap += kTapsOfPixel) {
#pragma unroll
    for (int32_t begin = 0; begin < pixels_per_warp; begin += kPixels) {
      const auto tap_of = [&](int32_t i) -> const Tap<acc_t>& {
        const int32_t of_pixel = pixel + begin + i / kTapsOfPixel;
        return taps[of_pixel * kTaps + tap + i % kTapsOfPixel];
      };
      const auto is_there = [&](int32_t i) {
        return tap + i % kTapsOfPixel < counts[begin + i / kTapsOfPixel];
      };
      // Reads all offsets before loading the first pixel, and all weights before the first sum.
      // Otherwise each load and each sum waits for shared memory. Past the last tap, shared memory
      // holds taps of an earlier round.
      int64_t offsets[kInFlight];
#pragma unroll
      for (int32_t i = 0; i < kInFlight; ++i) {
        offsets[i] = tap_of(i).offset;
      }
#pragma unroll
      for (int32_t i = 0; i < kInFlight; ++i) {
        if (is_there(i)) {
          channels.load(bins + offsets[i], loaded[i]);
        }
      }
      acc_t weights[kInFlight];
#pragma unroll
      for (int32_t i = 0; i < kInFlight; ++i) {
        weights[i] = tap_of(i).weight;
      }
#pragma unroll
      for (int32_t i = 0; i < kInFlight; ++i) {
        // A weight of 0 would not do: the stale value may be infinite or NaN.
        if (is_there(i)) {
          loaded[i].add_to(sum[begin + i / kTapsOfPixel], weights[i]);
        }
      }
    }
  }
}

// Channels per lane, a power of 2, whose sums fit into the shared memory of the taps.
template <typename acc_t>
constexpr int32_t channels_staged(int32_t per_lane, int32_t pitch) {
  return per_lane * kWarp * pitch * sizeof(acc_t) <= kTileTaps * sizeof(Tap<acc_t>)
             ? per_lane
             : channels_staged<acc_t>(per_lane / 2, pitch);
}

// Writes the sums of a tile if channels are not innermost. The sums pass through shared memory, so
// that neighbouring threads write neighbouring pixels. is_read: whether boxes read the tile;
// otherwise the sums are 0. Ends with a barrier.
template <
    int32_t width, int32_t per_lane, int32_t pixels_per_warp, typename feature_t, typename acc_t>
__device__ void write_by_pixels(
    const Tile& tile, const FeatureMap& gradient, int64_t slab, int64_t num_channels,
    feature_t* image, bool is_read, const acc_t (&sum)[pixels_per_warp][per_lane], acc_t* staged) {
  constexpr int32_t kPitch = kTilePixels<pixels_per_warp> + 1;  // channels in different banks
  constexpr int32_t kAtOnce = channels_staged<acc_t>(per_lane, kPitch);
  // A thread writes one pixel of every kRows-th row of the tile's channels.
  constexpr int32_t kRows = kWarp / pixels_per_warp;
#pragma unroll
  for (int32_t first = 0; first < per_lane; first += kAtOnce) {
    if (is_read) {
      __syncthreads();
#pragma unroll
      for (int32_t c = 0; c < kAtOnce; ++c) {
#pragma unroll
        for (int32_t i = 0; i < pixels_per_warp; ++i) {
          staged[(c * kWarp + lane_index()) * kPitch + warp_index() * pixels_per_warp + i] =
              sum[i][first + c];
        }
      }
      __syncthreads();
    }
    // Opaque, because values computed before the loops would take registers there.
    int32_t thread = threadIdx.x;
    asm volatile("" : "+r"(thread));
    const int32_t pixel = thread % tile.pixels();
    const int32_t first_row = thread / tile.pixels();
    const int64_t first_channel = slab * kWarp * per_lane;
    const int32_t channels =
        tile.has(gradient, pixel)
            ? static_cast<int32_t>(min_of<int64_t>(num_channels - first_channel, kWarp * per_lane))
            : 0;
    feature_t* const to =
        image + first_channel * gradient.channel_stride + tile.offset(gradient, pixel);
#pragma unroll 4
    for (int32_t row = first_row; row < kAtOnce * kWarp; row += kRows) {
      const int32_t c = first + row / kWarp;
      const int32_t channel = c / width * kWarp * width + row % kWarp * width + c % width;
      if (channel < channels) {
        store(
            is_read ? staged[row * kPitch + pixel] : acc_t(0),
            to + channel * gradient.channel_stride);
      }
    }
  }
  __syncthreads();
}

// Blocks per multiprocessor. One channel per lane takes fewer registers, but code for compute
// capability 8 would still spill with kManyBlocks.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int32_t kBlocksOfOneChannel = kFewBlocks;
#else
constexpr int32_t kBlocksOfOneChannel = kManyBlocks;
#endif
template <int32_t per_lane>
constexpr int32_t kGatherBlocks = per_lane == 1 ? kBlocksOfOneChannel : kFewBlocks;

// Whether an instance of the kernel can run without the results of touched_tiles_kernel. Not all
// instances have enough registers.
template <typename coord_t>
constexpr bool can_check_boxes(int32_t pixels_per_warp) {
  return sizeof(coord_t) == sizeof(double) || pixels_per_warp == 1;
}

// grad: channels are innermost. A warp serves pixels_per_warp pixels, and per_lane channels in each
// lane; per_lane is 1 only if there are at most kWarp channels. width applies to grad and to the
// gradients whose channels are innermost.
template <
    typename feature_t, typename coord_t, int32_t width, int32_t per_lane = kChannelsPerLane,
    int32_t pixels_per_warp = kPixelsPerWarp>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks<coord_t, kGatherBlocks<per_lane>>)
    gather_feature_gradient_kernel(
        const __grid_constant__ Params params, const __grid_constant__ PooledTensor grad,
        const __grid_constant__ FeatureGradients gradients, const __grid_constant__ TileGrid tiles,
        const __grid_constant__ TouchedTiles<coord_t> touched, const int64_t size) {
  using acc_t = accumulate_t<feature_t>;
  using Batch = BoxBatch<coord_t, pixels_per_warp>;
  constexpr bool kChecksBoxes = can_check_boxes<coord_t>(pixels_per_warp);
  __shared__ BoxList list;
  __shared__ Batch batch;
  __shared__ TapsThenSums<acc_t, kTileTaps> scratch;

  for (int64_t i = blockIdx.x; i < size; i += gridDim.x) {
    // The last levels first: their tiles have the most boxes.
    const int32_t position = static_cast<int32_t>(tiles.count() - 1 - i % tiles.count());
    const int64_t image = i / tiles.count() % params.num_images;
    const int64_t slab = per_lane == 1 ? 0 : i / tiles.count() / params.num_images;
    const Tile tile(tiles, position);
    const LaneChannels<width, per_lane> channels(slab, params.channels);
    const feature_t* bins = static_cast<const feature_t*>(grad.data) + channels.first;
    acc_t sum[pixels_per_warp][per_lane] = {};
    const int64_t num_rois = params.num_rois;
    int64_t begin = 0;
    int64_t end = num_rois;
    // Loading the image's range of boxes pays off if boxes are listed in several rounds.
    if (num_rois > kListedBoxes && (!kChecksBoxes || touched.images != nullptr)) {
      begin = (num_rois - touched.images[image].first_from_end) / kListedBoxes * kListedBoxes;
      end = touched.images[image].end;
    }
    bool is_read = false;
    for (int64_t first = begin; first < end; first += kListedBoxes) {
      const bool has_bits = !kChecksBoxes || touched.bits != nullptr;
      const uint32_t* of_tile = has_bits ? touched.bits + position * tiles.words : nullptr;
      const int32_t listed = list.template fill<kChecksBoxes>(
          params, tile, touched.boxes, of_tile, tiles.words, image, first);
      is_read = is_read || listed > 0;
      for (int32_t at = 0; at < listed; at += Batch::kBoxes) {
        const int32_t batch_size = min_of(Batch::kBoxes, listed - at);
        batch.template fill<kChecksBoxes>(params, tile, touched.boxes, list.boxes + at, batch_size);
        bool has_more = true;
        for (int32_t tap = 0; has_more; tap += kTapsPerPixel<pixels_per_warp>) {
          has_more = fill_pixel_taps(params, grad, tile, batch, tap, scratch.taps);
          __syncthreads();
          add_pixel_taps(channels, bins, scratch.taps, batch, tap, sum);
          __syncthreads();
        }
      }
    }
    const FeatureMap& gradient = gradients.levels[tile.level];
    feature_t* to = static_cast<feature_t*>(gradient.data) + image * gradient.image_stride;
    if (gradient.channel_stride == 1) {
      // A warp's pixels are neighbours along a row.
      const int32_t first = warp_index() * pixels_per_warp;
      const int32_t row = tile.row + tile.row_of(first);
      const int32_t column = tile.column + tile.column_of(first);
      feature_t* at = to + tile.offset(gradient, first) + channels.first;
#pragma unroll
      for (int32_t p = 0; p < pixels_per_warp; ++p) {
        if (row < gradient.height && column + p < gradient.width) {
          channels.store(sum[p], at);
        }
        at += gradient.column_stride;
      }
    } else {
      constexpr bool kIsOnePass = per_lane == 1;  // zeros then pass through shared memory for free
      write_by_pixels<width>(
          tile, gradient, slab, params.channels, to, kIsOnePass || is_read, sum, scratch.sums);
    }
  }
}

}  // namespace shape_roi_align::cuda
