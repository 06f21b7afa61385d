// Forward and the gradient of the features.
//
// A block serves a tile: a few units (bins of one box, or pixels of one map) times a slab of channels. Its threads first compute, together,
// the entries of each unit, i.e. (weight, offset of the other side), a bounded number at a time into shared memory; then each thread
// runs its own channels of one unit through them. Weights thus cost once per tile, not once per channel.
#pragma once

#include "sampling.cuh"

namespace shape_roi_align::cuda {

constexpr int32_t kMaxThreads = 256;
constexpr int32_t kMaxEntries = 1024;       // in shared memory at a time; at least one per unit
constexpr int32_t kChannelsPerThread = 8;   // independent loads in flight

// Threads of a block as units x lanes. A thread serves channels lane, lane + lanes, ... of its unit.
struct ThreadLayout {
  int32_t units;
  int32_t lanes;
  bool lanes_adjacent;  // neighbouring threads serve neighbouring channels, else neighbouring units

  __host__ __device__ int32_t threads() const {
    return units * lanes;
  }
  __host__ __device__ int32_t slab() const {
    return lanes * kChannelsPerThread;
  }
  __device__ int32_t unit() const {
    const int32_t thread = threadIdx.x;
    return lanes_adjacent ? thread / lanes : thread % units;
  }
  __device__ int32_t lane() const {
    const int32_t thread = threadIdx.x;
    return lanes_adjacent ? thread % lanes : thread / units;
  }
};

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// A thread's channels within one slab.
struct ChannelRange {
  int64_t first;
  int32_t step;
  int32_t count;  // at most kChannelsPerThread

  __device__ ChannelRange(const ThreadLayout& layout, int64_t slab, int64_t channels) {
    first = slab * layout.slab() + layout.lane();
    step = layout.lanes;
    const int64_t left = first < channels ? ceil_div(channels - first, step) : 0;
    count = left < kChannelsPerThread ? static_cast<int32_t>(left) : kChannelsPerThread;
  }

  // f(i, offset in elements); i is a constant in every unrolled copy.
  template <typename F>
  __device__ void for_each(int64_t channel_stride, F f) const {
#pragma unroll
    for (int32_t i = 0; i < kChannelsPerThread; ++i) {
      if (i < count) {
        f(i, (first + int64_t(i) * step) * channel_stride);
      }
    }
  }
};

// Shared memory of the entries; unit u owns [u * per_unit, (u + 1) * per_unit) of offset and weight.
template <typename acc_t>
struct Entries {
  int64_t* offset;  // [kMaxEntries]
  acc_t* weight;    // [kMaxEntries]
};

// consume(weight, offset) of every entry of this thread's unit, in order. fill(unit, i, offset) returns the weight of entry i and sets its
// offset; counts(unit) is the number of entries. To be called by all threads of the block with counts visible to all of them. Ends with a
// barrier: what it reads of shared memory may be overwritten at once.
template <typename acc_t, typename Counts, typename Fill, typename Consume>
__device__ void for_each_entry(
    const ThreadLayout& layout, const Entries<acc_t>& entries, Counts counts, Fill fill,
    Consume consume) {
  const int32_t per_unit = kMaxEntries / layout.units;
  const int32_t unit = layout.unit();
  const int64_t count = counts(unit);
  for (int64_t first = 0; __syncthreads_or(first < count); first += per_unit) {
    for (int32_t slot = threadIdx.x; slot < layout.units * per_unit; slot += layout.threads()) {
      const int32_t of_unit = slot / per_unit;
      const int64_t i = first + slot % per_unit;
      if (i < counts(of_unit)) {
        int64_t offset = 0;
        entries.weight[slot] = static_cast<acc_t>(fill(of_unit, i, offset));
        entries.offset[slot] = offset;
      }
    }
    __syncthreads();
    const int64_t left = count - first;
    const int32_t here = left < per_unit ? static_cast<int32_t>(left > 0 ? left : 0) : per_unit;
#pragma unroll 1  // consume has kChannelsPerThread independent loads
    for (int32_t i = 0; i < here; ++i) {
      consume(entries.weight[unit * per_unit + i], entries.offset[unit * per_unit + i]);
    }
  }
}

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

// Loads box k into shared memory that no thread is reading any more. Called by all threads of the block; ends with a barrier.
template <typename coord_t>
__device__ void load_box(const Params& params, int64_t k, Box<coord_t>& box) {
  if (threadIdx.x == 0) {
    box = make_box<coord_t>(params, k);
  }
  __syncthreads();
}

// for_each_entry over the pixels that the bins of a tile read, as offsets into `map`, a map of the box's level.
template <typename coord_t, typename acc_t, typename Consume>
__device__ void for_each_pixel(
    const Params& params, const ThreadLayout& layout, const BinTile& tile, const Box<coord_t>& box,
    const FeatureMap& map, const BinFootprints& footprints, const Entries<acc_t>& entries,
    Consume consume) {
  const int32_t pooled_width = params.options.pooled_width;
  for (int32_t unit = threadIdx.x; unit < layout.units; unit += layout.threads()) {
    if (unit < tile.bins && box.reads) {
      const int32_t bin = tile.first_bin + unit;
      footprints.rows[unit] =
          make_footprint(box.geometry.y, bin / pooled_width, map.height);
      footprints.columns[unit] =
          make_footprint(box.geometry.x, bin % pooled_width, map.width);
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
__global__ void __launch_bounds__(kMaxThreads) forward_kernel(
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
      feature_t* to = static_cast<feature_t*>(output.data) +
                      bin_offset(
                          output, tile.box, tile.first_bin + layout.unit(),
                          params.options.pooled_width);
      channels.for_each(output.channel_stride, [&](int32_t c, int64_t channel) {
        store(sum[c], to + channel);
      });
    }
  }
}

// The gradients of all levels, zeroed, in the accumulate type; data is null where not asked for.
struct FeatureGradients {
  FeatureMap levels[kMaxLevels];
};

// Scatters: the order of the additions, hence the last bits, varies from run to run.
template <typename feature_t, typename coord_t>
__global__ void __launch_bounds__(kMaxThreads) scatter_feature_gradient_kernel(
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
      const feature_t* from = static_cast<const feature_t*>(grad.data) +
                              bin_offset(
                                  grad, tile.box, tile.first_bin + layout.unit(),
                                  params.options.pooled_width);
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

// The pixels that a box reads; none where begin == end.
struct BoxFootprint {
  int64_t image;
  int32_t level;
  Range<int32_t> rows;
  Range<int32_t> columns;
};

template <typename T>
__device__ Range<int32_t> cells_read(const Axis<T>& axis, int32_t size) {
  Range<int32_t> cells{size, 0};
  const Range<int32_t> bins = bins_within(axis, T(-1), T(size));
  for (int32_t bin = bins.begin; bin < bins.end; ++bin) {
    const Range<int32_t> samples = samples_inside(axis, bin, size);
    if (samples.begin < samples.end) {
      for (const int32_t i : {samples.begin, samples.end - 1}) {
        const Interpolation<T> at = interpolate(sample_coordinate(axis, bin, i), size);
        cells.begin = at.low < cells.begin ? at.low : cells.begin;
        cells.end = at.high + 1 > cells.end ? at.high + 1 : cells.end;
      }
    }
  }
  return {cells.begin < cells.end ? cells.begin : cells.end, cells.end};
}

// footprints: [K]
template <typename coord_t>
__global__ void __launch_bounds__(kMaxThreads)
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

// A rectangle of pixels of one image of one level and one slab of channels; its units are the pixels, row by row.
struct PixelTile {
  int64_t image;
  int64_t slab;
  int64_t row;
  int64_t column;
  int32_t height;
  int32_t width;

  static __host__ __device__ int64_t count(
      const Params& params, const FeatureMap& map, const ThreadLayout& layout, int32_t width) {
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

// Gathers: each pixel adds up the bins that read it, box after box. Same bits in every run, no atomics, every element is written.
// gradient: one level's, in feature_t. footprints: [K].
template <typename feature_t, typename coord_t>
__global__ void __launch_bounds__(kMaxThreads) gather_feature_gradient_kernel(
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
              offset = box.index * grad.box_stride + ph * grad.row_stride +
                       pw * grad.column_stride;
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
