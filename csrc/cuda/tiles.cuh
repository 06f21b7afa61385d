// Which boxes read which tile of the feature maps: one bit per box and tile.
#pragma once

#include "cuda/block.cuh"

namespace shape_roi_align::cuda {

constexpr int32_t kPixelsPerWarp = 4;  // of a tile, neighbours along a row
constexpr int32_t kMaxTilePixels = kMaxThreads / kWarp * kPixelsPerWarp;
constexpr int32_t kBoxesPerWord = 32;

// The tiles of one image, level by level. A tile is a rectangle of as many pixels as a block
// serves. Levels whose gradient is not asked for have none.
struct TileGrid {
  int32_t height;  // of a tile, in pixels
  int32_t width;
  int32_t down[kMaxLevels];
  int32_t across[kMaxLevels];
  int32_t first[kMaxLevels + 1];  // tile of each level; then the number of tiles
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

// The boxes of an image are among [num_rois - to_first, end).
struct BoxesOfImage {
  int32_t to_first;
  int32_t end;
};

// A superset of the bins that have samples in [low, high]; the first and the last of it have some.
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
// them, clamped to the border or not, is within one pixel of them.
template <typename T>
__device__ Range<int32_t> bins_reading(
    const Axis<T>& axis, int32_t begin, int32_t end, int32_t size) {
  if (begin >= size) {
    return {0, 0};
  }
  return bins_with_samples_within(axis, T(begin) - T(1), T(least(end, size)));
}

// boxes: [K]. bits: [tiles, words], zeroed. images: [num_images], zeroed. A warp serves a box. Only
// integer atomics, whose result does not depend on order.
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
      atomicMax(&image.to_first, static_cast<int32_t>(params.num_rois - k));
      atomicMax(&image.end, static_cast<int32_t>(k + 1));
    }
    const FeatureMap& feature_map = params.levels[box.level];
    const int32_t across = tiles.across[box.level];
    const auto reads_rows = [&](int32_t i) {
      const Range<int32_t> bins = bins_reading(
          box.geometry.y, i * tiles.height, (i + 1) * tiles.height, feature_map.height);
      return i < tiles.down[box.level] && bins.begin < bins.end;
    };
    const auto reads_columns = [&](int32_t i) {
      const Range<int32_t> bins =
          bins_reading(box.geometry.x, i * tiles.width, (i + 1) * tiles.width, feature_map.width);
      return i < across && bins.begin < bins.end;
    };
    const uint32_t bit = uint32_t(1) << (k % kBoxesPerWord);
    for (int32_t row = 0; row < tiles.down[box.level]; row += kWarp) {
      const uint32_t rows = __ballot_sync(kAllLanes, reads_rows(row + lane_index()));
      for (int32_t column = lane_index(); rows != 0 && column < across; column += kWarp) {
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

constexpr int32_t kListedBoxes = 1024;

// The boxes of one image among [first, first + kListedBoxes) that read a tile, in order.
struct BoxList {
  int32_t boxes[kListedBoxes];
  uint32_t chosen[kListedBoxes / kWarp];  // a bit per box

  // bits: the tile's. Returns the number of boxes. Called by all threads of the block; begins and
  // ends with a barrier.
  template <typename coord_t>
  __device__ int32_t fill(
      const Params& params, const Box<coord_t>* all, const uint32_t* bits, int64_t image,
      int64_t first) {
    __syncthreads();
#pragma unroll 1
    for (int32_t i = threadIdx.x; i < kListedBoxes; i += blockDim.x) {
      const int64_t k = first + i;
      const bool is_read = k < params.num_rois &&
                           (bits[k / kBoxesPerWord] >> (k % kBoxesPerWord) & 1) != 0 &&
                           all[k].geometry.batch == image;
      const uint32_t of_warp = __ballot_sync(kAllLanes, is_read);
      if (lane_index() == 0) {
        chosen[i / kWarp] = of_warp;
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int32_t i = threadIdx.x; i < kListedBoxes; i += blockDim.x) {
      if ((chosen[i / kWarp] >> lane_index() & 1) != 0) {
        const uint32_t before = (uint32_t(1) << lane_index()) - 1;
        boxes[count(i / kWarp) + __popc(chosen[i / kWarp] & before)] =
            static_cast<int32_t>(first + i);
      }
    }
    __syncthreads();
    return count(kListedBoxes / kWarp);
  }

 private:
  // Number of boxes that the first `words` words choose.
  __device__ int32_t count(int32_t words) const {
    int32_t sum = 0;
#pragma unroll 1
    for (int32_t i = 0; i < words; ++i) {
      sum += __popc(chosen[i]);
    }
    return sum;
  }
};

}  // namespace shape_roi_align::cuda
