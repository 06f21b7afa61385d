// The kernel whose units are pixels: the gathered gradient of the features.
#pragma once

#include "block.cuh"

namespace shape_roi_align::cuda {

// The pixels that a box reads; none where begin == end.
struct BoxFootprint {
  int64_t image;
  int32_t level;
  Range<int32_t> rows;
  Range<int32_t> columns;
};

// The rows (or columns) from the first to the last that a box reads.
template <typename T>
__device__ Range<int32_t> cells_read(const Axis<T>& axis, int32_t size) {
  Range<int32_t> cells{size, 0};
  const auto include = [&](int32_t bin, int32_t i) {
    const Interpolation<T> at = interpolate(sample_coordinate(axis, bin, i), size);
    cells.begin = at.low < cells.begin ? at.low : cells.begin;
    cells.end = at.high + 1 > cells.end ? at.high + 1 : cells.end;
  };
  const Range<int32_t> bins = bins_within(axis, T(-1), T(size));
  for (int32_t bin = bins.begin; bin < bins.end; ++bin) {
    const Range<int32_t> samples = samples_inside(axis, bin, size);
    if (samples.begin < samples.end) {
      include(bin, samples.begin);
      include(bin, samples.end - 1);
    }
  }
  return {cells.begin < cells.end ? cells.begin : cells.end, cells.end};
}

// footprints: [K]
template <typename coord_t>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks)
    box_footprints_kernel(const __grid_constant__ Params params, BoxFootprint* footprints) {
  for (int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; k < params.num_rois;
       k += int64_t(gridDim.x) * blockDim.x) {
    const Box<coord_t> box = make_box<coord_t>(params, k);
    const FeatureMap& map = params.levels[box.level];
    BoxFootprint footprint{box.geometry.batch, box.level, {0, 0}, {0, 0}};
    if (box.reads) {
      footprint.rows = cells_read(box.geometry.y, map.height);
      footprint.columns = cells_read(box.geometry.x, map.width);
    }
    footprints[k] = footprint;
  }
}

// A rectangle of pixels of one image of one level and one slab of channels; its units are the
// pixels, row by row.
struct PixelTile {
  int64_t image;
  int64_t slab;
  int64_t row;
  int64_t column;
  int32_t height;
  int32_t width;

  static __host__ __device__ int64_t
  count(const Params& params, const FeatureMap& map, const ThreadLayout& layout, int32_t width) {
    return ceil_div(map.height, layout.units / width) * ceil_div(map.width, width) *
           params.num_images * ceil_div(params.channels, layout.slab());
  }

  __device__ PixelTile(
      const Params& params, const FeatureMap& map, const ThreadLayout& layout, int32_t tile_width,
      int64_t i) {
    width = tile_width;
    height = layout.units / tile_width;
    const int64_t across = ceil_div(map.width, width);
    const int64_t down = ceil_div(map.height, height);
    const int64_t slabs = ceil_div(params.channels, layout.slab());
    slab = i % slabs;
    column = i / slabs % across * width;
    row = i / slabs / across % down * height;
    image = i / slabs / across / down;
  }

  __device__ bool meets(const BoxFootprint& box, int32_t level) const {
    return box.level == level && box.image == image && box.rows.begin < row + height &&
           box.rows.end > row && box.columns.begin < column + width && box.columns.end > column;
  }
  __device__ int64_t row_of(int32_t unit) const {
    return row + unit / width;
  }
  __device__ int64_t column_of(int32_t unit) const {
    return column + unit % width;
  }
  __device__ bool has(int32_t unit, const FeatureMap& map) const {
    return unit < height * width && row_of(unit) < map.height && column_of(unit) < map.width;
  }
};

// Gathers: each pixel adds up the bins that read it, box after box. Same bits in every run, no
// atomics, every element is written. gradient: one level's, in feature_t. footprints: [K].
template <typename feature_t, typename coord_t>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks) gather_feature_gradient_kernel(
    const __grid_constant__ Params params, const __grid_constant__ PooledMap grad,
    const BoxFootprint* footprints, const int32_t level,
    const __grid_constant__ FeatureMap gradient, const ThreadLayout layout,
    const int32_t tile_width, const int64_t num_tiles) {
  using acc_t = accumulate_t<feature_t>;
  __shared__ Box<coord_t> box;
  __shared__ bool is_met[kMaxThreads];
  __shared__ Range<int32_t> bin_rows[kMaxThreads];
  __shared__ Range<int32_t> bin_columns[kMaxThreads];
  __shared__ int64_t offsets[kMaxEntries];
  __shared__ acc_t weights[kMaxEntries];
  const int32_t threads = layout.threads();
  const int32_t unit = layout.unit();
  const feature_t* bins = static_cast<const feature_t*>(grad.data);

  for (int64_t i = blockIdx.x; i < num_tiles; i += gridDim.x) {
    const PixelTile tile(params, gradient, layout, tile_width, i);
    const ChannelRange channels(layout, tile.slab, params.channels);
    acc_t sum[kChannelsPerThread] = {};
    for (int64_t first = 0; first < params.num_rois; first += threads) {
      const int64_t k = first + threadIdx.x;
      __syncthreads();
      is_met[threadIdx.x] = k < params.num_rois && tile.meets(footprints[k], level);
      __syncthreads();
      for (int32_t candidate = 0; candidate < threads; ++candidate) {
        if (!is_met[candidate]) {
          continue;
        }
        load_box(params, first + candidate, box);
        for (int32_t u = threadIdx.x; u < layout.units; u += threads) {
          bin_rows[u] = bin_columns[u] = {0, 0};
          if (tile.has(u, gradient)) {
            bin_rows[u] = bins_reading(box.geometry.y, static_cast<int32_t>(tile.row_of(u)));
            bin_columns[u] = bins_reading(box.geometry.x, static_cast<int32_t>(tile.column_of(u)));
          }
        }
        __syncthreads();
        for_each_entry(
            layout, Entries<acc_t>{offsets, weights},
            [&](int32_t u) {
              return int64_t(bin_rows[u].end - bin_rows[u].begin) *
                     (bin_columns[u].end - bin_columns[u].begin);
            },
            [&](int32_t u, int64_t entry, int64_t& offset) {
              const int32_t across = bin_columns[u].end - bin_columns[u].begin;
              const int32_t ph = bin_rows[u].begin + static_cast<int32_t>(entry / across);
              const int32_t pw = bin_columns[u].begin + static_cast<int32_t>(entry % across);
              offset = box.index * grad.box_stride + ph * grad.row_stride + pw * grad.column_stride;
              return pixel_weight(
                  params, box, ph, pw,
                  tap_at_cell(box.geometry.y, ph, static_cast<int32_t>(tile.row_of(u))),
                  tap_at_cell(box.geometry.x, pw, static_cast<int32_t>(tile.column_of(u))));
            },
            [&](acc_t weight, int64_t bin) {
              channels.for_each(grad.channel_stride, [&](int32_t c, int64_t channel) {
                sum[c] += weight * load(bins[bin + channel]);
              });
            });
      }
    }
    if (tile.has(unit, gradient)) {
      feature_t* to = static_cast<feature_t*>(gradient.data) + tile.image * gradient.image_stride +
                      tile.row_of(unit) * gradient.row_stride +
                      tile.column_of(unit) * gradient.column_stride;
      channels.for_each(gradient.channel_stride, [&](int32_t c, int64_t channel) {
        store(sum[c], to + channel);
      });
    }
  }
}

}  // namespace shape_roi_align::cuda
