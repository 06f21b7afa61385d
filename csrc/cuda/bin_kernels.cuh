// Kernels whose units are bins: forward, and the scattered gradient of the features.
#pragma once

#include "block.cuh"

namespace shape_roi_align::cuda {

// Consecutive bins of one box and one slab of channels.
struct BinTile {
  int64_t box;
  int64_t slab;
  int32_t first_bin;
  int32_t bins;

  static __host__ __device__ int64_t count(const Params& params, const ThreadLayout& layout) {
    const int64_t bins = int64_t(params.options.pooled_height) * params.options.pooled_width;
    return params.num_rois * ceil_div(bins, layout.units) *
           ceil_div(params.channels, layout.slab());
  }

  // The tiles of one box follow one another, so that they meet in the cache.
  __device__ BinTile(const Params& params, const ThreadLayout& layout, int64_t i) {
    const int32_t all_bins = params.options.pooled_height * params.options.pooled_width;
    const int64_t tiles = ceil_div(all_bins, layout.units);
    const int64_t slabs = ceil_div(params.channels, layout.slab());
    slab = i % slabs;
    first_bin = static_cast<int32_t>(i / slabs % tiles) * layout.units;
    box = i / slabs / tiles;
    bins = all_bins - first_bin < layout.units ? all_bins - first_bin : layout.units;
  }
};

// Shared memory for the footprints of a tile's bins.
struct BinFootprints {
  Footprint* rows;     // [kMaxThreads]
  Footprint* columns;  // [kMaxThreads]
};

// for_each_entry over the pixels that the bins of a tile read, as offsets into `map`, a map of the
// box's level.
template <typename coord_t, typename acc_t, typename Consume>
__device__ void for_each_pixel(
    const Params& params, const ThreadLayout& layout, const BinTile& tile, const Box<coord_t>& box,
    const FeatureMap& map, const BinFootprints& footprints, const Entries<acc_t>& entries,
    Consume consume) {
  const int32_t pooled_width = params.options.pooled_width;
  for (int32_t unit = threadIdx.x; unit < layout.units; unit += layout.threads()) {
    if (unit < tile.bins && box.reads) {
      const int32_t bin = tile.first_bin + unit;
      footprints.rows[unit] = make_footprint(box.geometry.y, bin / pooled_width, map.height);
      footprints.columns[unit] = make_footprint(box.geometry.x, bin % pooled_width, map.width);
    } else {
      footprints.rows[unit].count = footprints.columns[unit].count = 0;
    }
  }
  __syncthreads();
  for_each_entry(
      layout, entries,
      [&](int32_t unit) {
        return int64_t(footprints.rows[unit].count) * footprints.columns[unit].count;
      },
      [&](int32_t unit, int64_t i, int64_t& offset) {
        const int32_t ph = (tile.first_bin + unit) / pooled_width;
        const int32_t pw = (tile.first_bin + unit) % pooled_width;
        const Footprint& rows = footprints.rows[unit];
        const Footprint& columns = footprints.columns[unit];
        const Tap row = tap_of_footprint(
            box.geometry.y, ph, map.height, rows, static_cast<int32_t>(i / columns.count));
        const Tap column = tap_of_footprint(
            box.geometry.x, pw, map.width, columns, static_cast<int32_t>(i % columns.count));
        offset = row.cell * map.row_stride + column.cell * map.column_stride;
        return pixel_weight(params, box, ph, pw, row, column);
      },
      consume);
}

// Offset of bin `bin` of box k in a pooled tensor.
__device__ inline int64_t bin_offset(
    const PooledMap& pooled, int64_t k, int32_t bin, int32_t pooled_width) {
  return k * pooled.box_stride + bin / pooled_width * pooled.row_stride +
         bin % pooled_width * pooled.column_stride;
}

// output: [K, C, PH, PW] of feature_t, every element is written.
template <typename feature_t, typename coord_t>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks) forward_kernel(
    const __grid_constant__ Params params, const __grid_constant__ PooledMap output,
    const ThreadLayout layout, const int64_t num_tiles) {
  using acc_t = accumulate_t<feature_t>;
  __shared__ Box<coord_t> box;
  __shared__ Footprint rows[kMaxThreads];
  __shared__ Footprint columns[kMaxThreads];
  __shared__ int64_t offsets[kMaxEntries];
  __shared__ acc_t weights[kMaxEntries];

  for (int64_t i = blockIdx.x; i < num_tiles; i += gridDim.x) {
    const BinTile tile(params, layout, i);
    const ChannelRange channels(layout, tile.slab, params.channels);
    load_box(params, tile.box, box);
    const FeatureMap& map = params.levels[box.level];
    const feature_t* image =
        static_cast<const feature_t*>(map.data) + box.geometry.batch * map.image_stride;
    acc_t sum[kChannelsPerThread] = {};
    for_each_pixel(
        params, layout, tile, box, map, BinFootprints{rows, columns},
        Entries<acc_t>{offsets, weights}, [&](acc_t weight, int64_t pixel) {
          channels.for_each(map.channel_stride, [&](int32_t c, int64_t channel) {
            sum[c] += weight * load(image[pixel + channel]);
          });
        });
    if (layout.unit() < tile.bins) {
      feature_t* to =
          static_cast<feature_t*>(output.data) +
          bin_offset(output, tile.box, tile.first_bin + layout.unit(), params.options.pooled_width);
      channels.for_each(
          output.channel_stride, [&](int32_t c, int64_t channel) { store(sum[c], to + channel); });
    }
  }
}

// The gradients of all levels, zeroed, in the accumulate type; data is null where not asked for.
struct FeatureGradients {
  FeatureMap levels[kMaxLevels];
};

// Scatters: the order of the additions, hence the last bits, varies from run to run.
template <typename feature_t, typename coord_t>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks) scatter_feature_gradient_kernel(
    const __grid_constant__ Params params, const __grid_constant__ PooledMap grad,
    const __grid_constant__ FeatureGradients gradients, const ThreadLayout layout,
    const int64_t num_tiles) {
  using acc_t = accumulate_t<feature_t>;
  __shared__ Box<coord_t> box;
  __shared__ Footprint rows[kMaxThreads];
  __shared__ Footprint columns[kMaxThreads];
  __shared__ int64_t offsets[kMaxEntries];
  __shared__ acc_t weights[kMaxEntries];

  for (int64_t i = blockIdx.x; i < num_tiles; i += gridDim.x) {
    const BinTile tile(params, layout, i);
    load_box(params, tile.box, box);
    const FeatureMap& map = gradients.levels[box.level];
    if (!box.reads || map.data == nullptr) {
      __syncthreads();
      continue;
    }
    const ChannelRange channels(layout, tile.slab, params.channels);
    acc_t of_bin[kChannelsPerThread] = {};
    if (layout.unit() < tile.bins) {
      const feature_t* from =
          static_cast<const feature_t*>(grad.data) +
          bin_offset(grad, tile.box, tile.first_bin + layout.unit(), params.options.pooled_width);
      channels.for_each(grad.channel_stride, [&](int32_t c, int64_t channel) {
        of_bin[c] = load(from[channel]);
      });
    }
    acc_t* image = static_cast<acc_t*>(map.data) + box.geometry.batch * map.image_stride;
    for_each_pixel(
        params, layout, tile, box, map, BinFootprints{rows, columns},
        Entries<acc_t>{offsets, weights}, [&](acc_t weight, int64_t pixel) {
          channels.for_each(map.channel_stride, [&](int32_t c, int64_t channel) {
            atomicAdd(image + pixel + channel, weight * of_bin[c]);
          });
        });
  }
}

}  // namespace shape_roi_align::cuda
