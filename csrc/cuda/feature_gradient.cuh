// Gradient of the features, in the gather form: each pixel adds up the bins that read it, box after
// box. Every element is written. No floating-point atomics: the result does not depend on the order
// in which threads run.
#pragma once

#include "cuda/patch_taps.cuh"
#include "cuda/tiles.cuh"

namespace shape_roi_align::cuda {

constexpr int32_t kBatch = 8;  // boxes that a block works on at a time
constexpr int32_t kTapsPerPixel = kMaxTaps / kMaxTilePixels;

// What sample i of a bin takes from a row (or column). size: height (or width) of the feature map.
template <typename T>
__device__ T
weight_of_sample(const Axis<T>& axis, int32_t bin, int32_t i, int32_t line, int32_t size) {
  const T at = sample_coordinate(axis, bin, i);
  return is_inside(at, size) ? weight_at(interpolate(at, size), line) : T(0);
}

// A superset of the samples of a bin that read a row (or column).
template <typename T>
__device__ Range<int32_t> samples_reading(const Axis<T>& axis, int32_t bin, int32_t line) {
  constexpr int32_t kFewSamples = 4;  // a search costs more
  if (axis.samples <= kFewSamples) {
    return {0, axis.samples};
  }
  return samples_within(axis, bin, T(line) - T(1), T(line) + T(1));
}

// Weight of a pixel in bin (ph, pw).
template <typename T>
__device__ T pixel_weight(
    const Params& params, const Box<T>& box, int32_t ph, int32_t row, int32_t pw, int32_t column) {
  const Axis<T>& y = box.geometry.y;
  const Axis<T>& x = box.geometry.x;
  const FeatureMap& feature_map = params.levels[box.level];
  const bool has_prob_map = params.prob_maps != nullptr;
  const bool aligned = params.options.map_aligned;
  const Range<int32_t> rows = samples_reading(y, ph, row);
  const Range<int32_t> columns = samples_reading(x, pw, column);
  T sum = T(0);
#pragma unroll 1  // few samples: registers matter more than unrolling
  for (int32_t i = rows.begin; i < rows.end; ++i) {
    const T of_row = weight_of_sample(y, ph, i, row, feature_map.height);
    if (of_row == T(0)) {
      continue;
    }
    Interpolation<T> prob_map_row{};
    if (has_prob_map) {
      prob_map_row = interpolate_prob_map(sample_uv(y, ph, i), params.prob_map_height, aligned);
    }
    T along_row = T(0);
#pragma unroll 1
    for (int32_t j = columns.begin; j < columns.end; ++j) {
      T of_column = weight_of_sample(x, pw, j, column, feature_map.width);
      if (has_prob_map && of_column != T(0)) {
        of_column *= sample_prob_map(
            params, box.index, prob_map_row,
            interpolate_prob_map(sample_uv(x, pw, j), params.prob_map_width, aligned));
      }
      along_row += of_column;
    }
    sum += of_row * along_row;
  }
  return sum * box.geometry.inverse_count;
}

// One tile of one image. Warp i / kPixelsPerWarp serves pixel i, numbered row by row.
struct Tile {
  int32_t level;
  int32_t row;
  int32_t column;
  int32_t height;
  int32_t width;

  __device__ Tile(const TileGrid& tiles, int32_t i) {
    level = tiles.level_of(i);
    height = tiles.height;
    width = tiles.width;
    row = (i - tiles.first[level]) / tiles.across[level] * height;
    column = (i - tiles.first[level]) % tiles.across[level] * width;
  }
  __device__ int32_t pixels() const {
    return height * width;
  }
  __device__ int32_t row_of(int32_t pixel) const {
    return pixel / width;
  }
  __device__ int32_t column_of(int32_t pixel) const {
    return pixel % width;
  }
  __device__ bool has(const FeatureMap& gradient, int32_t pixel) const {
    return row + row_of(pixel) < gradient.height && column + column_of(pixel) < gradient.width;
  }
  __device__ int64_t offset(const FeatureMap& gradient, int32_t pixel) const {
    return (row + row_of(pixel)) * gradient.row_stride +
           (column + column_of(pixel)) * gradient.column_stride;
  }
};

// Some boxes, and their bins that read each row and each column of a tile.
template <typename coord_t>
struct BoxBatch {
  Box<coord_t> boxes[kBatch];
  Range<int32_t> rows[kBatch][kMaxTilePixels];
  Range<int32_t> columns[kBatch][kMaxTilePixels];

  // Called by all threads of the block, while none reads the batch; ends with a barrier.
  __device__ void fill(
      const Params& params, const Tile& tile, const Box<coord_t>* all, const int32_t* listed,
      int32_t count) {
#pragma unroll 1
    for (int32_t i = threadIdx.x; i < count; i += blockDim.x) {
      const Box<coord_t> box = all[listed[i]];
      boxes[i] = box;
    }
    __syncthreads();
    const FeatureMap& feature_map = params.levels[tile.level];
    const int32_t lines = tile.height + tile.width;
#pragma unroll 1
    for (int32_t i = threadIdx.x; i < count * lines; i += blockDim.x) {
      const BoxGeometry<coord_t>& geometry = boxes[i / lines].geometry;
      const int32_t line = i % lines;
      if (line < tile.height) {
        const int32_t row = tile.row + line;
        const Range<int32_t> bins = bins_reading(geometry.y, row, row + 1, feature_map.height);
        rows[i / lines][line] = bins;
      } else {
        const int32_t column = tile.column + line - tile.height;
        const Range<int32_t> bins = bins_reading(geometry.x, column, column + 1, feature_map.width);
        columns[i / lines][line - tile.height] = bins;
      }
    }
    __syncthreads();
  }
};

// Writes the taps [first, first + kTapsPerPixel) of each pixel of the tile, numbered box by box, to
// taps, kTapsPerPixel per pixel. Returns whether the thread's pixels have more. totals:
// [kMaxTilePixels], the number of taps of each pixel.
template <typename coord_t, typename acc_t>
__device__ bool fill_pixel_taps(
    const Params& params, const PooledTensor& grad, const Tile& tile,
    const BoxBatch<coord_t>& batch, int32_t boxes, int32_t first, Tap<acc_t>* taps,
    int32_t* totals) {
  bool has_more = false;
#pragma unroll 1
  for (int32_t item = threadIdx.x; item < tile.pixels() * kBatch; item += blockDim.x) {
    const int32_t pixel = item / kBatch;
    const int32_t b = item % kBatch;
    if (b >= boxes) {
      continue;
    }
    const int32_t row = tile.row_of(pixel);
    const int32_t column = tile.column_of(pixel);
    const auto bins_of = [&](int32_t i) {
      const Range<int32_t>& rows = batch.rows[i][row];
      const Range<int32_t>& columns = batch.columns[i][column];
      return (rows.end - rows.begin) * (columns.end - columns.begin);
    };
    int32_t before = 0;
#pragma unroll 1
    for (int32_t i = 0; i < b; ++i) {
      before += bins_of(i);
    }
    const int32_t end = before + bins_of(b);
    if (b + 1 == boxes) {
      totals[pixel] = end;
    }
    const Box<coord_t>& box = batch.boxes[b];
    const Range<int32_t>& columns = batch.columns[b][column];
    const int32_t last = least(end, first + kTapsPerPixel);
#pragma unroll 1
    for (int32_t i = most(before, first); i < last; ++i) {
      const int32_t across = columns.end - columns.begin;
      const int32_t ph = batch.rows[b][row].begin + (i - before) / across;
      const int32_t pw = columns.begin + (i - before) % across;
      Tap<acc_t>& tap = taps[pixel * kTapsPerPixel + i - first];
      tap.offset = box.index * grad.box_stride + ph * grad.row_stride + pw * grad.column_stride;
      tap.weight = static_cast<acc_t>(
          pixel_weight(params, box, ph, tile.row + row, pw, tile.column + column));
    }
    has_more = has_more || end > first + kTapsPerPixel;
  }
  return has_more;
}

// Adds the taps of a warp's pixels to `sum`, for the channels of a lane.
template <int32_t width, typename feature_t, typename acc_t>
__device__ void add_pixel_taps(
    const LaneChannels<width>& channels, const feature_t* bins, const Tap<acc_t>* taps,
    const int32_t* totals, int32_t first, acc_t (&sum)[kPixelsPerWarp][kChannelsPerLane]) {
  constexpr int32_t kInFlight = kLoadsInFlight<feature_t, kFewBlocks>;
  static_assert(kPixelsPerWarp % kInFlight == 0);
  const int32_t pixel = warp_index() * kPixelsPerWarp;
  int32_t counts[kPixelsPerWarp];
  int32_t longest = 0;
#pragma unroll
  for (int32_t i = 0; i < kPixelsPerWarp; ++i) {
    counts[i] = least(totals[pixel + i] - first, kTapsPerPixel);
    longest = most(longest, counts[i]);
  }
  acc_t values[kInFlight][kChannelsPerLane] = {};
#pragma unroll 1
  for (int32_t tap = 0; tap < longest; ++tap) {
#pragma unroll
    for (int32_t begin = 0; begin < kPixelsPerWarp; begin += kInFlight) {
#pragma unroll
      for (int32_t i = 0; i < kInFlight; ++i) {
        if (tap < counts[begin + i]) {
          channels.load(bins + taps[(pixel + begin + i) * kTapsPerPixel + tap].offset, values[i]);
        }
      }
#pragma unroll
      for (int32_t i = 0; i < kInFlight; ++i) {
        if (tap < counts[begin + i]) {
          add_scaled(
              taps[(pixel + begin + i) * kTapsPerPixel + tap].weight, values[i], sum[begin + i]);
        }
      }
    }
  }
}

// Writes the sums of a tile where channels are not innermost: through shared memory, so that
// neighbouring threads write neighbouring pixels. staged: as large as the taps. Begins and ends
// with a barrier.
template <int32_t width, typename feature_t, typename acc_t>
__device__ void write_by_pixels(
    const Tile& tile, const FeatureMap& gradient, int64_t slab, int64_t num_channels,
    feature_t* image, const acc_t (&sum)[kPixelsPerWarp][kChannelsPerLane], acc_t* staged) {
  constexpr int32_t kPitch = kMaxTilePixels + 1;  // channels in different banks
  constexpr int32_t kAtOnce = 8 / sizeof(acc_t);  // of kChannelsPerLane
  static_assert(kAtOnce * kWarp * kPitch * sizeof(acc_t) <= kMaxTaps * sizeof(Tap<acc_t>));
#pragma unroll
  for (int32_t first = 0; first < kChannelsPerLane; first += kAtOnce) {
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
            staged[staged_row * kPitch + pixel],
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
  __shared__ int32_t totals[kMaxTilePixels];

  for (int64_t i = blockIdx.x; i < size; i += gridDim.x) {
    // The last levels first: their tiles have the most boxes.
    const int32_t position = static_cast<int32_t>(tiles.count() - 1 - i % tiles.count());
    const int64_t image = i / tiles.count() % params.num_images;
    const int64_t slab = i / tiles.count() / params.num_images;
    const Tile tile(tiles, position);
    const LaneChannels<width> channels(slab, params.channels);
    const feature_t* bins = static_cast<const feature_t*>(grad.data) + channels.first;
    acc_t sum[kPixelsPerWarp][kChannelsPerLane] = {};
    const int64_t end = images[image].end;
    const int64_t begin = (params.num_rois - images[image].to_first) / kListedBoxes * kListedBoxes;
    for (int64_t first = begin; first < end; first += kListedBoxes) {
      const int32_t listed = list.fill(params, boxes, bits + position * tiles.words, image, first);
      for (int32_t at = 0; at < listed; at += kBatch) {
        const int32_t in_hand = least(kBatch, listed - at);
        batch.fill(params, tile, boxes, list.boxes + at, in_hand);
        bool has_more = true;
        for (int32_t first_tap = 0; has_more; first_tap += kTapsPerPixel) {
          has_more = __syncthreads_or(
              fill_pixel_taps(params, grad, tile, batch, in_hand, first_tap, taps, totals));
          add_pixel_taps(channels, bins, taps, totals, first_tap, sum);
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
          tile, gradient, slab, params.channels, to, sum, reinterpret_cast<acc_t*>(taps));
    }
  }
}

}  // namespace shape_roi_align::cuda
