// A box in patches: as many of its bins, or of one bin's samples, as fit into shared memory.
//
// Within a patch each bin is a small matrix of taps: the feature rows that its samples touch times
// the columns that they touch, each cell once however many samples read it. Coordinates, cells and
// map values are computed once per patch, by all threads, and serve all channels.
#pragma once

#include "cuda/block.cuh"

namespace shape_roi_align::cuda {

constexpr int32_t kMaxTaps = 1024;       // of a patch
constexpr int32_t kMaxSamples = 1024;    // of a patch
constexpr int32_t kMaxAxisSamples = 64;  // of a patch, along one axis
constexpr int32_t kMaxBinSamples = 32;   // of a bin in a patch, along one axis
constexpr int32_t kMaxBinCells = 32;     // that these touch
constexpr int32_t kManyTaps = 128;       // of a bin: more, and the whole block works on it
static_assert(kMaxBinSamples * kMaxBinSamples <= kMaxSamples);
static_assert(kMaxBinCells * kMaxBinCells <= kMaxTaps);

// The work of a grid whose blocks serve boxes: (slab of channels, box, share of the box's groups of
// patches). Slabs are outermost, so that one slab of the features at a time passes through the
// cache.
struct BoxGrid {
  int64_t num_rois;
  int64_t slabs;
  int64_t slab_channels;
  int32_t shares;    // of a box
  int32_t max_bins;  // of a patch

  __host__ __device__ int64_t size() const {
    return slabs * num_rois * shares;
  }
  __device__ int64_t slab(int64_t i) const {
    return i / shares / num_rois;
  }
  __device__ int64_t box(int64_t i) const {
    return i / shares % num_rois;
  }
  __device__ int32_t share(int64_t i) const {
    return static_cast<int32_t>(i % shares);
  }
};

// How many samples of a bin a patch takes along one axis, and how many cells they touch at most.
struct BinExtent {
  int32_t samples;
  int32_t cells;
};

template <typename T>
__device__ BinExtent bin_extent(const Axis<T>& axis) {
  if (axis.samples <= 0) {
    return {0, 0};
  }
  constexpr T kEpsilon = std::numeric_limits<T>::epsilon();
  const T spacing = std::fabs(axis.extent) / (T(axis.bins) * T(axis.samples));
  // Twice the rounding of sample_coordinate, and of this bound, in pixels.
  const T slack = T(0.01) + T(16) * kEpsilon * (std::fabs(axis.start) + std::fabs(axis.extent));
  // Samples a distance d apart from first to last touch at most floor(d) + 3 cells, and two each.
  const T fitting = (T(kMaxBinCells - 3) - slack) / spacing + T(1);
  int32_t samples = kMaxBinSamples;
  if (fitting < T(kMaxBinSamples)) {
    samples = fitting > T(kMaxBinCells / 2) ? static_cast<int32_t>(fitting) : kMaxBinCells / 2;
  }
  samples = least(samples, axis.samples);
  const T cells = T(samples - 1) * spacing + slack + T(3);
  return {samples, cells < T(2 * samples) ? static_cast<int32_t>(cells) : 2 * samples};
}

// How a box is cut into patches. A patch is a rectangle of whole bins; or, of bins with too many
// samples, a rectangle of one bin's samples.
struct PatchPlan {
  BinExtent y;
  BinExtent x;
  bool whole_bins;
  int32_t bin_rows;  // of a patch
  int32_t bin_columns;

  __device__ int32_t taps_per_bin() const {
    return y.cells * x.cells;
  }
  // Such a bin has a patch of its own. A property of the box alone: its output does not depend on
  // the other boxes of the call.
  __device__ bool has_many_taps() const {
    return taps_per_bin() > kManyTaps;
  }
};

// max_bins: bins of a patch, at most; 1 or more.
template <typename T>
__device__ PatchPlan plan_patches(const Box<T>& box, int32_t max_bins) {
  const Axis<T>& y = box.geometry.y;
  const Axis<T>& x = box.geometry.x;
  PatchPlan plan{{0, 0}, {0, 0}, true, 1, 1};
  if (box.reads) {
    plan.y = bin_extent(y);
    plan.x = bin_extent(x);
    plan.whole_bins = plan.y.samples == y.samples && plan.x.samples == x.samples;
  }
  if (plan.whole_bins && !plan.has_many_taps()) {
    const int32_t along_y = kMaxAxisSamples / most(plan.y.samples, 1);
    const int32_t along_x = kMaxAxisSamples / most(plan.x.samples, 1);
    const int32_t by_taps = kMaxTaps / most(plan.taps_per_bin(), 1);
    const int32_t by_samples = kMaxSamples / most(plan.y.samples * plan.x.samples, 1);
    const int32_t bins = least(max_bins, least(by_taps, by_samples));
    plan.bin_columns = least(x.bins, least(along_x, bins));
    plan.bin_rows = least(y.bins, least(along_y, bins / plan.bin_columns));
  }
  return plan;
}

// Loads box k and its plan into shared memory that no thread is reading any more. Called by all
// threads of the block; ends with a barrier.
template <typename coord_t>
__device__ void load_box(
    const Params& params, int64_t k, int32_t max_bins, Box<coord_t>& box, PatchPlan& plan) {
  if (threadIdx.x == 0) {
    const Box<coord_t> loaded = make_box<coord_t>(params, k);
    const PatchPlan planned = plan_patches(loaded, max_bins);
    box = loaded;  // GCC's ThreadSanitizer would not see the result of a call stored here
    plan = planned;
  }
  __syncthreads();
}

// The samples of a patch along one axis: `samples` of each of `bins` bins, numbered bin by bin.
struct PatchAxis {
  int32_t first_bin;
  int32_t bins;
  int32_t first_sample;
  int32_t samples;

  __device__ int32_t size() const {
    return bins * samples;
  }
  __device__ int32_t bin(int32_t i) const {
    return first_bin + i / samples;
  }
  __device__ int32_t sample(int32_t i) const {
    return first_sample + i % samples;
  }
};

struct Patch {
  PatchAxis y;
  PatchAxis x;

  __device__ int32_t bins() const {
    return y.bins * x.bins;
  }
};

// The patches of a box group by group; the patches of a group hold the same bins.
template <typename T>
class PatchGroups {
 public:
  __device__ PatchGroups(const Params& params, const Box<T>& box, const PatchPlan& plan)
      : box_(box),
        plan_(plan),
        map_(params.levels[box.level]),
        rows_(params.options.pooled_height),
        columns_(params.options.pooled_width) {}

  __device__ int32_t count() const {
    return static_cast<int32_t>(
        ceil_div(rows_, plan_.bin_rows) * ceil_div(columns_, plan_.bin_columns));
  }

  // f(patch, is the first of the group, is the last of the group), once at least. Samples outside
  // the feature map may be left out.
  template <typename F>
  __device__ void for_each_patch(int32_t group, F f) const {
    const int32_t across = static_cast<int32_t>(ceil_div(columns_, plan_.bin_columns));
    const int32_t row = group / across * plan_.bin_rows;
    const int32_t column = group % across * plan_.bin_columns;
    Range<int32_t> y{0, plan_.y.samples};
    Range<int32_t> x{0, plan_.x.samples};
    if (!plan_.whole_bins) {
      y = samples_inside(box_.geometry.y, row, map_.height);
      x = samples_inside(box_.geometry.x, column, map_.width);
    }
    const int64_t down = most(ceil_div(y.end - y.begin, most(plan_.y.samples, 1)), 1);
    const int64_t right = most(ceil_div(x.end - x.begin, most(plan_.x.samples, 1)), 1);
    for (int64_t i = 0; i < down * right; ++i) {
      const int32_t first_y = y.begin + static_cast<int32_t>(i / right) * plan_.y.samples;
      const int32_t first_x = x.begin + static_cast<int32_t>(i % right) * plan_.x.samples;
      const Patch patch{
          {row, least(plan_.bin_rows, rows_ - row), first_y,
           least(plan_.y.samples, y.end - first_y)},
          {column, least(plan_.bin_columns, columns_ - column), first_x,
           least(plan_.x.samples, x.end - first_x)}};
      f(patch, i == 0, i + 1 == down * right);
    }
  }

 private:
  const Box<T>& box_;
  const PatchPlan& plan_;
  const FeatureMap& map_;
  int32_t rows_;
  int32_t columns_;
};

// The cells that the samples of one bin touch along one axis, numbered [0, count).
struct BinCells {
  int32_t first;
  int32_t count;
  bool dense;  // tap i is cell first + i; else taps 2i and 2i + 1 are the cells of sample first + i
};

// What all threads of a block know of a patch along one axis; in shared memory.
template <typename T>
struct AxisTable {
  Interpolation<T> features[kMaxAxisSamples];  // by sample; weights 0 where it is outside
  Interpolation<T> map[kMaxAxisSamples];       // by sample
  BinCells cells[kMaxAxisSamples];             // by bin
  Range<int16_t>
      readers[2 * kMaxAxisSamples];  // samples of its bin that read tap i, at first_tap + i

  __device__ static int32_t first_tap(const PatchAxis& axis, int32_t bin) {
    return 2 * axis.samples * bin;
  }
  __device__ int32_t cell(const PatchAxis& axis, int32_t bin, int32_t tap) const {
    const BinCells& of_bin = cells[bin];
    if (of_bin.dense) {
      return of_bin.first + tap;
    }
    const Interpolation<T>& at = features[bin * axis.samples + of_bin.first + tap / 2];
    return tap % 2 == 0 ? at.low : at.high;
  }
  // Tap of the low (0) or high (1) cell of a sample of the bin that is inside.
  __device__ int32_t tap(const PatchAxis& axis, int32_t bin, int32_t sample, int32_t high) const {
    const BinCells& of_bin = cells[bin];
    const Interpolation<T>& at = features[bin * axis.samples + sample];
    return of_bin.dense ? (high == 0 ? at.low : at.high) - of_bin.first
                        : 2 * (sample - of_bin.first) + high;
  }
};

template <typename T>
struct PatchTables {
  AxisTable<T> y;
  AxisTable<T> x;
  T p[kMaxSamples];  // of sample (i along y, j along x) at i * x.size() + j; 1 without maps
};

template <typename T>
__device__ bool is_read(const Interpolation<T>& at) {
  return at.low_weight != T(0) || at.high_weight != T(0);
}

// The functions fill_... share their work among threads `thread` of `threads`.
template <typename T>
__device__ void fill_samples(
    const Params& params, const Axis<T>& axis, const PatchAxis& part, int32_t size,
    int32_t map_size, int32_t thread, int32_t threads, AxisTable<T>& table) {
#pragma unroll 1
  for (int32_t i = thread; i < part.size(); i += threads) {
    const T at = sample_coordinate(axis, part.bin(i), part.sample(i));
    Interpolation<T> features = interpolate(at, size);
    if (!is_inside(at, size)) {
      features.low_weight = features.high_weight = features.slope = T(0);
    }
    table.features[i] = features;
    if (params.prob_maps != nullptr) {
      const Interpolation<T> map = interpolate_prob_map(
          sample_uv(axis, part.bin(i), part.sample(i)), map_size, params.options.map_aligned);
      table.map[i] = map;
    }
  }
}

template <typename T>
__device__ void fill_cells(
    const PatchAxis& part, int32_t thread, int32_t threads, AxisTable<T>& table) {
#pragma unroll 1
  for (int32_t bin = thread; bin < part.bins; bin += threads) {
    const Interpolation<T>* samples = table.features + bin * part.samples;
    int32_t begin = 0;
    int32_t end = part.samples;
    while (begin < end && !is_read(samples[begin])) {
      ++begin;
    }
    while (begin < end && !is_read(samples[end - 1])) {
      --end;
    }
    BinCells cells{0, 0, true};
    if (begin < end) {
      const int32_t low = least(samples[begin].low, samples[end - 1].low);
      const int32_t high = most(samples[begin].high, samples[end - 1].high);
      cells.dense = high + 1 - low <= 2 * (end - begin);
      cells.first = cells.dense ? low : begin;
      cells.count = cells.dense ? high + 1 - low : 2 * (end - begin);
    }
    table.cells[bin] = cells;
  }
}

template <typename T>
__device__ void fill_readers(
    const PatchAxis& part, bool falls, int32_t thread, int32_t threads, AxisTable<T>& table) {
#pragma unroll 1
  for (int32_t i = thread; i < 2 * part.size(); i += threads) {
    const int32_t bin = i / (2 * part.samples);
    const int32_t tap = i % (2 * part.samples);
    const BinCells& cells = table.cells[bin];
    if (tap >= cells.count) {
      continue;
    }
    const Interpolation<T>* samples = table.features + bin * part.samples;
    int32_t begin = cells.first + tap / 2;
    int32_t end = begin + 1;
    if (cells.dense) {
      const int32_t cell = cells.first + tap;
      begin = first_where(0, part.samples, [&](int32_t s) {
        return falls ? samples[s].low <= cell : samples[s].high >= cell;
      });
      end = first_where(begin, part.samples, [&](int32_t s) {
        return falls ? samples[s].high < cell : samples[s].low > cell;
      });
    } else if (tap % 2 == 1 && samples[begin].high == samples[begin].low) {
      end = begin;  // counted by the tap before
    }
    table.readers[i].begin = static_cast<int16_t>(begin);
    table.readers[i].end = static_cast<int16_t>(end);
  }
}

template <typename T>
__device__ void fill_map_values(
    const Params& params, int64_t k, const Patch& patch, PatchTables<T>& tables) {
  const int32_t across = patch.x.size();
#pragma unroll 1
  for (int32_t i = threadIdx.x; i < patch.y.size() * across; i += blockDim.x) {
    T p = T(1);
    if (params.prob_maps != nullptr) {
      p = sample_map(params, k, tables.y.map[i / across], tables.x.map[i % across]);
    }
    tables.p[i] = p;
  }
}

// Called by all threads of the block; begins and ends with a barrier.
template <typename T>
__device__ void fill_tables(
    const Params& params, const Box<T>& box, const Patch& patch, PatchTables<T>& tables) {
  const Axis<T>& y = box.geometry.y;
  const Axis<T>& x = box.geometry.x;
  const FeatureMap& map = params.levels[box.level];
  const int32_t threads = blockDim.x;
  const int32_t for_y = threadIdx.x;
  const int32_t for_x = threads - 1 - for_y;  // others than those busy with y
  __syncthreads();
  fill_samples(params, y, patch.y, map.height, params.prob_map_height, for_y, threads, tables.y);
  fill_samples(params, x, patch.x, map.width, params.prob_map_width, for_x, threads, tables.x);
  __syncthreads();
  fill_cells(patch.y, for_y, threads, tables.y);
  fill_cells(patch.x, for_x, threads, tables.x);
  fill_map_values(params, box.index, patch, tables);
  __syncthreads();
  fill_readers(patch.y, y.extent < T(0), for_y, threads, tables.y);
  fill_readers(patch.x, x.extent < T(0), for_x, threads, tables.x);
  __syncthreads();
}

// A pixel that a bin reads, and what it weighs there.
template <typename acc_t>
struct alignas(16) Tap {
  int64_t offset;  // elements from the channel's first pixel
  acc_t weight;
};

// Taps of bin i of a patch, [taps_per_bin * i, taps_per_bin * i + count), as f(slot, bin along y,
// tap along y, bin along x, tap along x).
template <typename T, typename F>
__device__ void for_each_tap(
    const Patch& patch, int32_t taps_per_bin, const PatchTables<T>& tables, F f) {
  const int32_t slots = patch.bins() * taps_per_bin;
#pragma unroll 1
  for (int32_t slot = threadIdx.x; slot < slots; slot += blockDim.x) {
    const int32_t bin = slot / taps_per_bin;
    const int32_t tap = slot % taps_per_bin;
    const int32_t bin_y = bin / patch.x.bins;
    const int32_t bin_x = bin % patch.x.bins;
    const int32_t across = tables.x.cells[bin_x].count;
    if (tap < tables.y.cells[bin_y].count * across) {
      f(slot, bin_y, tap / across, bin_x, tap % across);
    }
  }
}

template <typename T>
__device__ int32_t taps_of_bin(const Patch& patch, const PatchTables<T>& tables, int32_t bin) {
  return tables.y.cells[bin / patch.x.bins].count * tables.x.cells[bin % patch.x.bins].count;
}

// taps: [kMaxTaps] in shared memory. Called by all threads; ends with a barrier.
template <typename T, typename acc_t>
__device__ void fill_taps(
    const FeatureMap& map, T inverse_count, const Patch& patch, int32_t taps_per_bin,
    const PatchTables<T>& tables, Tap<acc_t>* taps) {
  const auto fill = [&](int32_t slot, int32_t bin_y, int32_t tap_y, int32_t bin_x, int32_t tap_x) {
    const int32_t row = tables.y.cell(patch.y, bin_y, tap_y);
    const int32_t column = tables.x.cell(patch.x, bin_x, tap_x);
    const Range<int16_t> ys = tables.y.readers[tables.y.first_tap(patch.y, bin_y) + tap_y];
    const Range<int16_t> xs = tables.x.readers[tables.x.first_tap(patch.x, bin_x) + tap_x];
    T weight = T(0);
#pragma unroll 1
    for (int32_t i = ys.begin; i < ys.end; ++i) {
      const int32_t y = bin_y * patch.y.samples + i;
      T along_row = T(0);
#pragma unroll 1
      for (int32_t j = xs.begin; j < xs.end; ++j) {
        const int32_t x = bin_x * patch.x.samples + j;
        along_row += weight_at(tables.x.features[x], column) * tables.p[y * patch.x.size() + x];
      }
      weight += weight_at(tables.y.features[y], row) * along_row;
    }
    taps[slot].offset = row * map.row_stride + column * map.column_stride;
    taps[slot].weight = static_cast<acc_t>(weight * inverse_count);
  };
  for_each_tap(patch, taps_per_bin, tables, fill);
  __syncthreads();
}

// Offset of bin i of a patch in the pooled tensor of its box.
__device__ inline int64_t bin_offset(const PooledTensor& pooled, const Patch& patch, int32_t i) {
  return (patch.y.first_bin + i / patch.x.bins) * pooled.row_stride +
         (patch.x.first_bin + i % patch.x.bins) * pooled.column_stride;
}

}  // namespace shape_roi_align::cuda
