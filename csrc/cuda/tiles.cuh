// Records which boxes read which tiles of the feature maps: one bit per box and tile.
#pragma once

#include "cuda/block.cuh"

namespace shape_roi_align::cuda {

// Neighbouring pixels along a row that a warp serves. If tiles are few, a warp serves one pixel, so
// that four times as many blocks share the work.
constexpr int32_t kPixelsPerWarp = 4;
constexpr int32_t kMaxWarps = kMaxThreads / kWarp;

// Maximum number of pixels of a tile.
template <int32_t pixels_per_warp>
constexpr int32_t kTilePixels = kMaxWarps * pixels_per_warp;
template <int32_t pixels_per_warp>
constexpr int32_t kTileWidth = pixels_per_warp == kPixelsPerWarp ? 16 : 8;
template <int32_t pixels_per_warp>
constexpr int32_t kTileLines = kMaxWarps + kTileWidth<pixels_per_warp>;  // rows and columns

constexpr int32_t kBoxesPerWord = 32;

// The tiles of one image, level by level. A tile is the rectangle of pixels that one block serves.
// Levels whose gradient is not requested have no tiles.
struct TileGrid {
  int32_t pixels_per_warp;
  int32_t height;       // of a tile, in pixels
  int32_t width_shift;  // the width of a tile is 1 << width_shift
  int32_t down[kMaxLevels];
  int32_t across[kMaxLevels];
  int32_t first[kMaxLevels + 1];  // first tile of each level; then the number of tiles
  int32_t num_levels;
  int64_t words;  // of bits per tile

  __host__ __device__ int32_t count() const {
    return first[num_levels];
  }
  __device__ int32_t level_of(int32_t tile) const {
    int32_t level = 0;
    while (tile >= first[level + 1]) {
      ++level;
    }
    return level;
  }
};

// One tile of one image. Pixels are numbered row by row, warp by warp.
struct Tile {
  int32_t level;
  int32_t row;
  int32_t column;
  int32_t height;
  int32_t width_shift;

  __device__ Tile(const TileGrid& tiles, int32_t i) {
    level = tiles.level_of(i);
    height = tiles.height;
    width_shift = tiles.width_shift;
    row = (i - tiles.first[level]) / tiles.across[level] * height;
    column = (i - tiles.first[level]) % tiles.across[level] << width_shift;
  }
  __device__ int32_t width() const {
    return 1 << width_shift;
  }
  __device__ int32_t pixels() const {
    return height << width_shift;
  }
  // Within the tile.
  __device__ int32_t row_of(int32_t pixel) const {
    return pixel >> width_shift;
  }
  __device__ int32_t column_of(int32_t pixel) const {
    return pixel & (width() - 1);
  }
  __device__ bool has(const FeatureMap& gradient, int32_t pixel) const {
    return row + row_of(pixel) < gradient.height && column + column_of(pixel) < gradient.width;
  }
  // Whether box k, of this image and level, may read a pixel of the tile.
  template <typename T>
  __device__ bool may_be_read_by(const Params& params, int64_t k, int64_t image) const {
    const T index = load_roi<T>(params, k, 0);
    if (load_level(params, k) != level || !is_batch_index(index, params.num_images) ||
        static_cast<int64_t>(index) != image) {
      return false;
    }
    const T scale = T(params.levels[level].spatial_scale);
    bool may_be = true;
    // Along x, then along y. Unrolling would take more registers than the kernel has.
#pragma unroll 1
    for (int32_t i = 0; i < 2; ++i) {
      const int32_t begin = i == 0 ? column : row;
      const int32_t end = begin + (i == 0 ? width() : height);
      const T edge1 = load_roi<T>(params, k, 1 + i);
      const T edge2 = load_roi<T>(params, k, 3 + i);
      may_be = may_be && may_read(edge1, edge2, scale, params.options, begin, end);
    }
    return may_be;
  }
  __device__ int64_t offset(const FeatureMap& gradient, int32_t pixel) const {
    return (row + row_of(pixel)) * gradient.row_stride +
           (column + column_of(pixel)) * gradient.column_stride;
  }
};

// All boxes of an image have indices in [num_rois - first_from_end, end).
struct BoxesOfImage {
  int32_t first_from_end;
  int32_t end;
};

// A superset of the bins that have samples in [low, high]. The first and last bin of the range have
// such samples.
template <typename T>
__device__ Range<int32_t> bins_with_samples_within(const Axis<T>& axis, T low, T high) {
  Range<int32_t> bins = bins_within(axis, low, high);
  const auto has_none = [&](int32_t bin) {
    const Range<int32_t> samples = samples_within(axis, bin, low, high);
    return samples.begin >= samples.end;
  };
  while (bins.begin < bins.end && has_none(bins.begin)) {
    ++bins.begin;
  }
  while (bins.begin < bins.end && has_none(bins.end - 1)) {
    --bins.end;
  }
  return bins;
}

// A superset of the bins that read the rows (or columns) [begin, end). A sample that reads one of
// these rows is within one pixel of it, even if it is clamped to the border.
template <typename T>
__device__ Range<int32_t> bins_reading(
    const Axis<T>& axis, int32_t begin, int32_t end, int32_t size) {
  if (begin >= size) {
    return {0, 0};
  }
  return bins_with_samples_within(axis, T(begin) - T(1), T(min_of(end, size)));
}

// A superset of the tiles that the samples along an axis read. size: rows (or columns) per tile.
template <typename T>
__device__ Range<int32_t> tiles_within_reach(const Axis<T>& axis, int32_t size, int32_t tiles) {
  const Reach<T> reach(axis.start, axis.extent);
  const T most_pixels = T(size) * T(tiles);
  if (reach.high < T(0) || reach.low >= most_pixels) {
    return {0, 0};
  }
  return {
      reach.low > T(0) ? static_cast<int32_t>(reach.low) / size : 0,
      reach.high < most_pixels ? static_cast<int32_t>(reach.high) / size + 1 : tiles};
}

// boxes: [K]. bits: [tiles, words], zeroed. images: [num_images], zeroed. A warp serves a box. All
// atomics are on integers, so the results do not depend on their order.
template <typename coord_t>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks<coord_t, kManyBlocks>)
    touched_tiles_kernel(
        const __grid_constant__ Params params, const __grid_constant__ TileGrid tiles,
        Box<coord_t>* boxes, uint32_t* bits, BoxesOfImage* images) {
  const int64_t step = int64_t(gridDim.x) * num_warps();
  for (int64_t k = int64_t(blockIdx.x) * num_warps() + warp_index(); k < params.num_rois;
       k += step) {
    const Box<coord_t> box = make_box<coord_t>(params, k);
    if (lane_index() == 0) {
      boxes[k] = box;
    }
    if (!box.reads) {
      continue;
    }
    if (lane_index() == 0) {
      BoxesOfImage& image = images[box.geometry.batch];
      atomicMax(&image.first_from_end, static_cast<int32_t>(params.num_rois - k));
      atomicMax(&image.end, static_cast<int32_t>(k + 1));
    }
    const FeatureMap& feature_map = params.levels[box.level];
    const int32_t across = tiles.across[box.level];
    const Range<int32_t> down =
        tiles_within_reach(box.geometry.y, tiles.height, tiles.down[box.level]);
    const Range<int32_t> along = tiles_within_reach(box.geometry.x, 1 << tiles.width_shift, across);
    const auto reads_rows = [&](int32_t i) {
      const Range<int32_t> bins = bins_reading(
          box.geometry.y, i * tiles.height, (i + 1) * tiles.height, feature_map.height);
      return i < down.end && bins.begin < bins.end;
    };
    const auto reads_columns = [&](int32_t i) {
      const Range<int32_t> bins = bins_reading(
          box.geometry.x, i << tiles.width_shift, (i + 1) << tiles.width_shift, feature_map.width);
      return bins.begin < bins.end;
    };
    const uint32_t bit = uint32_t(1) << (k % kBoxesPerWord);
    for (int32_t row = down.begin; row < down.end; row += kWarp) {
      const uint32_t rows = __ballot_sync(kAllLanes, reads_rows(row + lane_index()));
      for (int32_t column = along.begin + lane_index(); rows != 0 && column < along.end;
           column += kWarp) {
        if (reads_columns(column)) {
          for (int32_t i = 0; i < kWarp; ++i) {
            if ((rows >> i & 1) != 0) {
              const int64_t tile = tiles.first[box.level] + (row + i) * across + column;
              atomicOr(bits + tile * tiles.words + k / kBoxesPerWord, bit);
            }
          }
        }
      }
    }
  }
}

// The results of touched_tiles_kernel. All null if each tile checks all boxes itself, because boxes
// are few or the bits do not fit in scratch.
template <typename T>
struct TouchedTiles {
  const Box<T>* boxes;
  const uint32_t* bits;
  const BoxesOfImage* images;
};

constexpr int32_t kListedWords = kWarp;  // one per lane
constexpr int32_t kListedBoxes = kListedWords * kBoxesPerWord;

// The boxes of one image among [first, first + kListedBoxes) that read a tile, in order.
struct BoxList {
  int32_t boxes[kListedBoxes];
  uint32_t chosen[kListedWords];  // a bit per box

  // bits: [words] of the tile. May be null if checks_boxes; the list is then a superset: all boxes
  // whose edges allow them to read the tile. Returns the number of boxes. Called by all threads of
  // the block; ends with a barrier if any box is listed.
  template <bool checks_boxes, typename coord_t>
  __device__ int32_t fill(
      const Params& params, const Tile& tile, const Box<coord_t>* all, const uint32_t* bits,
      int64_t words, int64_t image, int64_t first) {
    static_assert(kBoxesPerWord == kWarp);  // a lane per bit
    uint32_t of_all_images = ~uint32_t(0);
    [[maybe_unused]] bool is_any_listed = false;
    const bool has_bits = !checks_boxes || bits != nullptr;
    if (has_bits) {
      const int64_t at = first / kBoxesPerWord + lane_index();
      of_all_images = at < words ? bits[at] : 0;
      if (__ballot_sync(kAllLanes, of_all_images != 0) == 0) {  // block-uniform
        return 0;
      }
    }
#pragma unroll 1
    for (int32_t i = warp_index(); i < kListedWords; i += num_warps()) {
      const uint32_t word = __shfl_sync(kAllLanes, of_all_images, i);
      const int64_t k = first + i * kBoxesPerWord + lane_index();
      bool is_listed = (word >> lane_index() & 1) != 0;
      if (has_bits) {
        is_listed = is_listed && all[k].geometry.batch == image;
      } else {
        is_listed = k < params.num_rois && tile.may_be_read_by<coord_t>(params, k, image);
      }
      const uint32_t lanes_of_image = __ballot_sync(kAllLanes, is_listed);
      is_any_listed = is_any_listed || lanes_of_image != 0;
      if (lane_index() == 0) {
        chosen[i] = lanes_of_image;
      }
    }
    if constexpr (checks_boxes) {
      if (__syncthreads_or(is_any_listed) == 0) {
        return 0;
      }
    } else {
      __syncthreads();
    }
    const uint32_t of_lane = chosen[lane_index()];
    const int32_t end = sum_up_to_lane(__popc(of_lane), kWarp);
#pragma unroll 1
    for (int32_t i = warp_index(); i < kListedWords; i += num_warps()) {
      const uint32_t word = __shfl_sync(kAllLanes, of_lane, i);
      const int32_t begin = __shfl_sync(kAllLanes, end - __popc(of_lane), i);
      const uint32_t below = (uint32_t(1) << lane_index()) - 1;
      if ((word >> lane_index() & 1) != 0) {
        boxes[begin + __popc(word & below)] =
            static_cast<int32_t>(first) + i * kBoxesPerWord + lane_index();
      }
    }
    __syncthreads();
    return __shfl_sync(kAllLanes, end, kWarp - 1);
  }
};

}  // namespace shape_roi_align::cuda
