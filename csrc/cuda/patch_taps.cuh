// The taps of a patch: the merged weights of its samples.
#pragma once

#include "cuda/patch_tables.cuh"

namespace shape_roi_align::cuda {

// A pixel that a bin reads and its weight.
template <typename acc_t>
struct alignas(16) Tap {
  int64_t offset;  // elements from the channel's first pixel
  acc_t weight;
};

// Shared memory of the taps that a block works on, then of sums that its threads exchange.
template <typename acc_t, int32_t count>
union TapsThenSums {
  Tap<acc_t> taps[count];
  acc_t sums[count * sizeof(Tap<acc_t>) / sizeof(acc_t)];
};

// Calls f(tap, bin along y, tap along y, bin along x, tap along x) for the taps of a patch. Bin i
// has the taps [taps_per_bin * i, taps_per_bin * i + count).
template <typename T, typename F>
__device__ void for_each_tap(
    const Patch& patch, int32_t taps_per_bin, const PatchTables<T>& tables, F f) {
  const int32_t taps = patch.bins() * taps_per_bin;
#pragma unroll 1
  for (int32_t tap = threadIdx.x; tap < taps; tap += blockDim.x) {
    const int32_t bin = tap / taps_per_bin;
    const int32_t of_bin = tap % taps_per_bin;
    const int32_t bin_y = bin / patch.x.bins;
    const int32_t bin_x = bin % patch.x.bins;
    const int32_t across = tables.x.touched[bin_x].count;
    if (of_bin < tables.y.touched[bin_y].count * across) {
      f(tap, bin_y, of_bin / across, bin_x, of_bin % across);
    }
  }
}

template <typename T>
__device__ int32_t taps_of_bin(const Patch& patch, const PatchTables<T>& tables, int32_t bin) {
  return tables.y.touched[bin / patch.x.bins].count * tables.x.touched[bin % patch.x.bins].count;
}

// taps: [kMaxTaps] in shared memory. Called by all threads; ends with a barrier.
template <typename T, typename acc_t>
__device__ void fill_taps(
    const FeatureMap& feature_map, T share, const Patch& patch, int32_t taps_per_bin,
    const PatchTables<T>& tables, Tap<acc_t>* taps) {
  const auto fill = [&](int32_t tap, int32_t bin_y, int32_t tap_y, int32_t bin_x, int32_t tap_x) {
    const int32_t row = tables.y.line(patch.y, bin_y, tap_y);
    const int32_t column = tables.x.line(patch.x, bin_x, tap_x);
    const Range<int16_t> ys = tables.y.samples_of_tap[tables.y.first_tap(patch.y, bin_y) + tap_y];
    const Range<int16_t> xs = tables.x.samples_of_tap[tables.x.first_tap(patch.x, bin_x) + tap_x];
    T weight = T(0);
#pragma unroll 1
    for (int32_t i = ys.begin; i < ys.end; ++i) {
      const int32_t y = bin_y * patch.y.samples + i;
      T along_row = T(0);
#pragma unroll 1
      for (int32_t j = xs.begin; j < xs.end; ++j) {
        const int32_t x = bin_x * patch.x.samples + j;
        along_row += weight_at(tables.x.pixels[x], column) * tables.p[y * patch.x.size() + x];
      }
      weight += weight_at(tables.y.pixels[y], row) * along_row;
    }
    taps[tap].offset = row * feature_map.row_stride + column * feature_map.column_stride;
    taps[tap].weight = static_cast<acc_t>(weight * share);
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
