// The taps of a tile's pixels: the bins that read each pixel, and their weights. The transpose of
// patch_taps.cuh.
#pragma once

#include "cuda/patch_taps.cuh"
#include "cuda/tiles.cuh"

namespace shape_roi_align::cuda {

// Boxes that a block works on at a time. A warp counts taps for kWarp pairs of a pixel and a box.
constexpr int32_t kBatch = 16;
constexpr int32_t kLargeBatch = 32;  // for tiles with fewer pixels
template <int32_t pixels_per_warp>
constexpr int32_t kBatchOf = pixels_per_warp == kPixelsPerWarp ? kBatch : kLargeBatch;

// Taps that a block works on at a time, in total and per pixel.
constexpr int32_t kTileTaps = 1024;
template <int32_t pixels_per_warp>
constexpr int32_t kTapsPerPixel = kTileTaps / kTilePixels<pixels_per_warp>;

// Weight of a row (or column) in sample i of a bin. size: height (or width) of the feature map.
template <typename T>
__device__ T
weight_of_sample(const Axis<T>& axis, int32_t bin, int32_t i, int32_t line, int32_t size) {
  const T at = sample_coordinate(axis, bin, i);
  return is_inside(at, size) ? weight_at(interpolate(at, size), line) : T(0);
}

// A superset of the samples of a bin that read a row (or column).
template <typename T>
__device__ Range<int32_t> samples_reading(const Axis<T>& axis, int32_t bin, int32_t line) {
  constexpr int32_t kFewSamples = 4;  // up to here, a search costs more than it saves
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
#pragma unroll 1  // saves registers; there are few samples
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
  return sum * box.geometry.share;
}

// A batch of boxes, and the bins of each box that read each row and each column of a tile.
template <typename coord_t, int32_t pixels_per_warp>
struct BoxBatch {
  static constexpr int32_t kBoxes = kBatchOf<pixels_per_warp>;
  Box<coord_t> boxes[kBoxes];
  Range<int32_t> bins[kTileLines<pixels_per_warp>][kBoxes];  // of rows, then of columns
  int32_t ends[kTilePixels<pixels_per_warp>][kBoxes];        // taps of a pixel in boxes [0, b]

  __device__ const Range<int32_t>& bins_of_row(const Tile& tile, int32_t pixel, int32_t b) const {
    return bins[tile.row_of(pixel)][b];
  }
  __device__ const Range<int32_t>& bins_of_column(
      const Tile& tile, int32_t pixel, int32_t b) const {
    return bins[tile.height + tile.column_of(pixel)][b];
  }
  __device__ int32_t taps_of(int32_t pixel) const {
    return ends[pixel][kBoxes - 1];
  }

  // all: [K]; may be null if checks_boxes: this function then makes the boxes. Called by all
  // threads of the block while no thread reads the batch; ends with a barrier.
  template <bool checks_boxes>
  __device__ void fill(
      const Params& params, const Tile& tile, const Box<coord_t>* all, const int32_t* listed,
      int32_t count) {
    if (checks_boxes && all == nullptr) {
#pragma unroll 1
      for (int32_t first = warp_index() * kWarp; first < 2 * count; first += blockDim.x) {
        const int32_t i = (first + lane_index()) / 2;
        const bool exists = i < count;
        make_box_by_lanes(params, exists ? listed[i] : 0, exists, boxes[exists ? i : 0]);
      }
    } else {
#pragma unroll 1
      for (int32_t i = threadIdx.x; i < count; i += blockDim.x) {
        const Box<coord_t> box = all[listed[i]];
        boxes[i] = box;
      }
    }
    __syncthreads();
    const FeatureMap& feature_map = params.levels[tile.level];
    // The box varies fastest, so that most warps have only rows or only columns.
#pragma unroll 1
    for (int32_t i = threadIdx.x; i < (tile.height + tile.width()) * count; i += blockDim.x) {
      const int32_t line = i / count;
      const int32_t b = i % count;
      const BoxGeometry<coord_t>& geometry = boxes[b].geometry;
      const bool is_row = line < tile.height;
      const int32_t at = is_row ? tile.row + line : tile.column + line - tile.height;
      const Range<int32_t> reading = is_row
                                         ? bins_reading(geometry.y, at, at + 1, feature_map.height)
                                         : bins_reading(geometry.x, at, at + 1, feature_map.width);
      const bool reads = !checks_boxes || boxes[b].reads;  // boxes listed from bits always read
      bins[line][b] = reads ? reading : Range<int32_t>{0, 0};
    }
    __syncthreads();
    count_taps(tile, count);
    __syncthreads();
  }

 private:
  // Each lane counts the taps of one pixel in one box: the bins that read both its row and column.
  __device__ void count_taps(const Tile& tile, int32_t count) {
    static_assert(kWarp % kBoxes == 0 && pixels_per_warp * kBoxes % kWarp == 0);  // whole warps
#pragma unroll 1
    for (int32_t i = threadIdx.x; i < tile.pixels() * kBoxes; i += blockDim.x) {
      const int32_t pixel = i / kBoxes;
      const int32_t b = i % kBoxes;
      int32_t taps = 0;
      if (b < count) {
        const Range<int32_t>& of_row = bins_of_row(tile, pixel, b);
        const Range<int32_t>& of_column = bins_of_column(tile, pixel, b);
        taps = (of_row.end - of_row.begin) * (of_column.end - of_column.begin);
      }
      ends[pixel][b] = sum_up_to_lane(taps, kBoxes);
    }
  }
};

// Writes tap number `tap` of a pixel. Taps are numbered box by box and bin by bin.
template <int32_t pixels_per_warp, typename coord_t, typename acc_t>
__device__ void fill_pixel_tap(
    const Params& params, const PooledTensor& grad, const Tile& tile,
    const BoxBatch<coord_t, pixels_per_warp>& batch, int32_t pixel, int32_t tap, Tap<acc_t>& to) {
  const int32_t* ends = batch.ends[pixel];
  const int32_t b = first_where(0, batch.kBoxes - 1, [&](int32_t i) { return ends[i] > tap; });
  const int32_t of_box = b == 0 ? tap : tap - ends[b - 1];
  const Box<coord_t>& box = batch.boxes[b];
  const Range<int32_t>& columns = batch.bins_of_column(tile, pixel, b);
  const int32_t across = columns.end - columns.begin;
  const int32_t ph = batch.bins_of_row(tile, pixel, b).begin + of_box / across;
  const int32_t pw = columns.begin + of_box % across;
  to.offset = box.index * grad.box_stride + ph * grad.row_stride + pw * grad.column_stride;
  to.weight = static_cast<acc_t>(pixel_weight(
      params, box, ph, tile.row + tile.row_of(pixel), pw, tile.column + tile.column_of(pixel)));
}

// Writes the taps [first, first + kTapsPerPixel) of each pixel of the tile to `taps`, kTapsPerPixel
// per pixel. All threads of the block divide the work. Returns whether any pixel has more taps; the
// result is block-uniform.
template <int32_t pixels_per_warp, typename coord_t, typename acc_t>
__device__ bool fill_pixel_taps(
    const Params& params, const PooledTensor& grad, const Tile& tile,
    const BoxBatch<coord_t, pixels_per_warp>& batch, int32_t first, Tap<acc_t>* taps) {
  // Each lane counts the taps of one pixel; every warp does the same.
  static_assert(kTilePixels<pixels_per_warp> <= kWarp);
  constexpr int32_t kTaps = kTapsPerPixel<pixels_per_warp>;
  const auto taps_left = [&] {
    return lane_index() < tile.pixels() ? max_of(batch.taps_of(lane_index()) - first, 0) : 0;
  };
  const int32_t end = sum_up_to_lane(min_of(taps_left(), kTaps), kWarp);
  const int32_t total = __shfl_sync(kAllLanes, end, kWarp - 1);
#pragma unroll 1
  for (int32_t base = warp_index() * kWarp; base < total; base += blockDim.x) {
    const int32_t i = base + lane_index();
    int32_t pixel = 0;  // the first pixel whose end is above i
#pragma unroll
    for (int32_t step = kWarp / 2; step > 0; step /= 2) {
      if (__shfl_sync(kAllLanes, end, pixel + step - 1) <= i) {
        pixel += step;
      }
    }
    const int32_t begin = __shfl_sync(kAllLanes, end, max_of(pixel - 1, 0));
    const int32_t of_pixel = pixel == 0 ? i : i - begin;
    if (i < total) {
      fill_pixel_tap(
          params, grad, tile, batch, pixel, first + of_pixel, taps[pixel * kTaps + of_pixel]);
    }
  }
  return __ballot_sync(kAllLanes, taps_left() > kTaps) != 0;
}

}  // namespace shape_roi_align::cuda
