// Gradient of the features, in the gather form: each pixel adds up the bins that read it, box after
// box. Every element is written. No floating-point atomics: the result does not depend on the order
// in which threads run.
#pragma once

#include "cuda/pixel_taps.cuh"

namespace shape_roi_align::cuda {

// Adds the taps of a warp's pixels to `sum`, for the channels of a lane.
template <int32_t width, typename feature_t, typename acc_t, typename coord_t>
__device__ void add_pixel_taps(
    const LaneChannels<width>& channels, const feature_t* bins, const Tap<acc_t>* taps,
    const BoxBatch<coord_t>& batch, int32_t first, acc_t (&sum)[kPixelsPerWarp][kChannelsPerLane]) {
  constexpr int32_t kInFlight = LaneChannels<width>::template kInFlight<feature_t, kFewBlocks>;
  constexpr int32_t kPixels = least(kInFlight, kPixelsPerWarp);  // of which one or more taps each
  constexpr int32_t kTapsOfPixel = kInFlight / kPixels;
  static_assert(kPixelsPerWarp % kPixels == 0 && kTapsPerPixel % kTapsOfPixel == 0);
  const int32_t pixel = warp_index() * kPixelsPerWarp;
  int32_t counts[kPixelsPerWarp];
  int32_t longest = 0;
#pragma unroll
  for (int32_t i = 0; i < kPixelsPerWarp; ++i) {
    counts[i] = least(batch.taps_of(pixel + i) - first, kTapsPerPixel);
    longest = most(longest, counts[i]);
  }
  typename LaneChannels<width>::template Pixel<feature_t> loaded[kInFlight];
#pragma unroll 1
  for (int32_t tap = 0; tap < longest; tap += kTapsOfPixel) {
#pragma unroll
    for (int32_t begin = 0; begin < kPixelsPerWarp; begin += kPixels) {
      // All taps before the first pixel: else each waits for shared memory.
      Tap<acc_t> of_step[kInFlight];
#pragma unroll
      for (int32_t i = 0; i < kInFlight; ++i) {
        const int32_t of_pixel = pixel + begin + i / kTapsOfPixel;
        of_step[i] = load_tap(taps + of_pixel * kTapsPerPixel + tap + i % kTapsOfPixel);
      }
      const auto is_there = [&](int32_t i) {
        return tap + i % kTapsOfPixel < counts[begin + i / kTapsOfPixel];
      };
#pragma unroll
      for (int32_t i = 0; i < kInFlight; ++i) {
        if (is_there(i)) {
          channels.load(bins + of_step[i].offset, loaded[i]);
        }
      }
#pragma unroll
      for (int32_t i = 0; i < kInFlight; ++i) {
        // A weight of 0 would not do: what was loaded before may not be finite.
        if (is_there(i)) {
          loaded[i].add_to(sum[begin + i / kTapsOfPixel], of_step[i].weight);
        }
      }
    }
  }
}

// Writes the sums of a tile where channels are not innermost: through shared memory, so that
// neighbouring threads write neighbouring pixels. is_read: whether boxes read the tile; else the
// sums are 0. staged: as large as the taps. Ends with a barrier.
template <int32_t width, typename feature_t, typename acc_t>
__device__ void write_by_pixels(
    const Tile& tile, const FeatureMap& gradient, int64_t slab, int64_t num_channels,
    feature_t* image, bool is_read, const acc_t (&sum)[kPixelsPerWarp][kChannelsPerLane],
    acc_t* staged) {
  constexpr int32_t kPitch = kMaxTilePixels + 1;  // channels in different banks
  constexpr int32_t kAtOnce = 8 / sizeof(acc_t);  // of kChannelsPerLane
  static_assert(kAtOnce * kWarp * kPitch * sizeof(acc_t) <= kMaxTaps * sizeof(Tap<acc_t>));
#pragma unroll
  for (int32_t first = 0; first < kChannelsPerLane; first += kAtOnce) {
    if (is_read) {
      __syncthreads();
#pragma unroll
      for (int32_t c = 0; c < kAtOnce; ++c) {
#pragma unroll
        for (int32_t i = 0; i < kPixelsPerWarp; ++i) {
          staged[(c * kWarp + lane_index()) * kPitch + warp_index() * kPixelsPerWarp + i] =
              sum[i][first + c];
        }
      }
      __syncthreads();
    }
#pragma unroll 1
    for (int32_t i = threadIdx.x; i < kAtOnce * kWarp * tile.pixels(); i += blockDim.x) {
      const int32_t staged_row = i / tile.pixels();
      const int32_t lane = staged_row % kWarp;
      const int32_t c = first + staged_row / kWarp;
      const int64_t channel =
          slab * kChannelsPerWarp + c / width * kWarp * width + lane * width + c % width;
      const int32_t pixel = i % tile.pixels();
      if (channel < num_channels && tile.has(gradient, pixel)) {
        store(
            is_read ? staged[staged_row * kPitch + pixel] : acc_t(0),
            image + channel * gradient.channel_stride + tile.offset(gradient, pixel));
      }
    }
  }
  __syncthreads();
}

// grad: channels are innermost. A warp serves kPixelsPerWarp pixels and kChannelsPerWarp channels.
// boxes, bits, images: touched_tiles_kernel's. width applies to grad and to the gradients whose
// channels are innermost.
template <typename feature_t, typename coord_t, int32_t width>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks<coord_t, kFewBlocks>)
    gather_feature_gradient_kernel(
        const __grid_constant__ Params params, const __grid_constant__ PooledTensor grad,
        const __grid_constant__ FeatureGradients gradients, const __grid_constant__ TileGrid tiles,
        const Box<coord_t>* boxes, const uint32_t* bits, const BoxesOfImage* images,
        const int64_t size) {
  using acc_t = accumulate_t<feature_t>;
  __shared__ BoxList list;
  __shared__ BoxBatch<coord_t> batch;
  __shared__ Tap<acc_t> taps[kMaxTaps];

  for (int64_t i = blockIdx.x; i < size; i += gridDim.x) {
    // The last levels first: their tiles have the most boxes.
    const int32_t position = static_cast<int32_t>(tiles.count() - 1 - i % tiles.count());
    const int64_t image = i / tiles.count() % params.num_images;
    const int64_t slab = i / tiles.count() / params.num_images;
    const Tile tile(tiles, position);
    const LaneChannels<width> channels(slab, params.channels);
    const feature_t* bins = static_cast<const feature_t*>(grad.data) + channels.first;
    acc_t sum[kPixelsPerWarp][kChannelsPerLane] = {};
    // The range of an image is worth a load where boxes are listed in several turns.
    const bool is_listed_once = params.num_rois <= kListedBoxes;
    const int64_t begin =
        is_listed_once ? 0
                       : (params.num_rois - images[image].to_first) / kListedBoxes * kListedBoxes;
    const int64_t end = is_listed_once ? params.num_rois : images[image].end;
    bool is_read = false;
    for (int64_t first = begin; first < end; first += kListedBoxes) {
      const int32_t listed =
          list.fill(boxes, bits + position * tiles.words, tiles.words, image, first);
      is_read = is_read || listed > 0;
      for (int32_t at = 0; at < listed; at += kBatch) {
        const int32_t in_hand = least(kBatch, listed - at);
        batch.fill(params, tile, boxes, list.boxes + at, in_hand);
        bool has_more = true;
        for (int32_t first_tap = 0; has_more; first_tap += kTapsPerPixel) {
          has_more = fill_pixel_taps(params, grad, tile, batch, first_tap, taps);
          __syncthreads();
          add_pixel_taps(channels, bins, taps, batch, first_tap, sum);
          __syncthreads();
        }
      }
    }
    const FeatureMap& gradient = gradients.levels[tile.level];
    feature_t* to = static_cast<feature_t*>(gradient.data) + image * gradient.image_stride;
    if (gradient.channel_stride == 1) {
#pragma unroll
      for (int32_t p = 0; p < kPixelsPerWarp; ++p) {
        const int32_t pixel = warp_index() * kPixelsPerWarp + p;
        if (tile.has(gradient, pixel)) {
          channels.store(sum[p], to + tile.offset(gradient, pixel) + channels.first);
        }
      }
    } else {
      write_by_pixels<width>(
          tile, gradient, slab, params.channels, to, is_read, sum, reinterpret_cast<acc_t*>(taps));
    }
  }
}

}  // namespace shape_roi_align::cuda
