// The tables of a patch in shared memory: coordinates, touched pixel rows and columns, values of
// the probability map. Computed once per patch, by all threads, for all channels.
#pragma once

#include "cuda/patch.cuh"

namespace shape_roi_align::cuda {

// The rows (or columns) that the samples of one bin touch: taps [0, count). If dense, tap i is row
// first + i. Else taps 2i and 2i + 1 are the low and the high row of sample first + i.
struct Touched {
  int32_t first;
  int32_t count;
  bool is_dense;
};

// Along one axis; in shared memory.
template <typename T>
struct AxisTable {
  Interpolation<T> pixels[kMaxAxisSamples];    // by sample; weights are 0 if it is outside
  Interpolation<T> prob_map[kMaxAxisSamples];  // by sample
  Touched touched[kMaxAxisSamples];            // by bin
  // At first_tap() + i: the samples of the bin that read its tap i.
  Range<int16_t> samples_of_tap[2 * kMaxAxisSamples];

  __device__ static int32_t first_tap(const PatchAxis& axis, int32_t bin) {
    return 2 * axis.samples * bin;
  }
  // The row (or column) of a tap.
  __device__ int32_t line(const PatchAxis& axis, int32_t bin, int32_t tap) const {
    const Touched& of_bin = touched[bin];
    if (of_bin.is_dense) {
      return of_bin.first + tap;
    }
    const Interpolation<T>& at = pixels[bin * axis.samples + of_bin.first + tap / 2];
    return tap % 2 == 0 ? at.low : at.high;
  }
  // The tap of a sample's low row (high: 0) or high row (high: 1). The sample must be inside the
  // feature map.
  __device__ int32_t tap(const PatchAxis& axis, int32_t bin, int32_t sample, int32_t high) const {
    const Touched& of_bin = touched[bin];
    const Interpolation<T>& at = pixels[bin * axis.samples + sample];
    return of_bin.is_dense ? (high == 0 ? at.low : at.high) - of_bin.first
                           : 2 * (sample - of_bin.first) + high;
  }
};

template <typename T>
struct PatchTables {
  AxisTable<T> y;
  AxisTable<T> x;
  T p[kMaxSamples];  // of sample (i along y, j along x) at i * x.size() + j; 1 without prob_maps
};

template <typename T>
__device__ bool is_read(const Interpolation<T>& at) {
  return at.low_weight != T(0) || at.high_weight != T(0);
}

// The functions fill_... divide their work among the threads `thread` of `threads`.
template <typename T>
__device__ void fill_samples(
    const Params& params, const Axis<T>& axis, const PatchAxis& part, int32_t size,
    int32_t prob_map_size, int32_t thread, int32_t threads, AxisTable<T>& table) {
#pragma unroll 1
  for (int32_t i = thread; i < part.size(); i += threads) {
    const T at = sample_coordinate(axis, part.bin(i), part.sample(i));
    Interpolation<T> pixels = interpolate(at, size);
    if (!is_inside(at, size)) {
      pixels.low_weight = pixels.high_weight = pixels.slope = T(0);
    }
    table.pixels[i] = pixels;
    if (params.prob_maps != nullptr) {
      const Interpolation<T> prob_map = interpolate_prob_map(
          sample_uv(axis, part.bin(i), part.sample(i)), prob_map_size, params.options.map_aligned);
      table.prob_map[i] = prob_map;
    }
  }
}

template <typename T>
__device__ void fill_touched(
    const PatchAxis& part, int32_t thread, int32_t threads, AxisTable<T>& table) {
#pragma unroll 1
  for (int32_t bin = thread; bin < part.bins; bin += threads) {
    const Interpolation<T>* samples = table.pixels + bin * part.samples;
    int32_t begin = 0;
    int32_t end = part.samples;
    while (begin < end && !is_read(samples[begin])) {
      ++begin;
    }
    while (begin < end && !is_read(samples[end - 1])) {
      --end;
    }
    Touched touched{0, 0, true};
    if (begin < end) {
      const int32_t low = min_of(samples[begin].low, samples[end - 1].low);
      const int32_t high = max_of(samples[begin].high, samples[end - 1].high);
      touched.is_dense = high + 1 - low <= 2 * (end - begin);
      touched.first = touched.is_dense ? low : begin;
      touched.count = touched.is_dense ? high + 1 - low : 2 * (end - begin);
    }
    table.touched[bin] = touched;
  }
}

template <typename T>
__device__ void fill_samples_of_taps(
    const PatchAxis& part, bool is_negative, int32_t thread, int32_t threads, AxisTable<T>& table) {
#pragma unroll 1
  for (int32_t i = thread; i < 2 * part.size(); i += threads) {
    const int32_t bin = i / (2 * part.samples);
    const int32_t tap = i % (2 * part.samples);
    const Touched& touched = table.touched[bin];
    if (tap >= touched.count) {
      continue;
    }
    const Interpolation<T>* samples = table.pixels + bin * part.samples;
    int32_t begin = touched.first + tap / 2;
    int32_t end = begin + 1;
    if (touched.is_dense) {
      const int32_t line = touched.first + tap;
      begin = first_where(0, part.samples, [&](int32_t s) {
        return is_negative ? samples[s].low <= line : samples[s].high >= line;
      });
      end = first_where(begin, part.samples, [&](int32_t s) {
        return is_negative ? samples[s].high < line : samples[s].low > line;
      });
    } else if (tap % 2 == 1 && samples[begin].high == samples[begin].low) {
      end = begin;  // already counted by the previous tap
    }
    table.samples_of_tap[i].begin = static_cast<int16_t>(begin);
    table.samples_of_tap[i].end = static_cast<int16_t>(end);
  }
}

template <typename T>
__device__ void fill_prob_map_values(
    const Params& params, int64_t k, const Patch& patch, PatchTables<T>& tables) {
  const int32_t across = patch.x.size();
#pragma unroll 1
  for (int32_t i = threadIdx.x; i < patch.y.size() * across; i += blockDim.x) {
    T p = T(1);
    if (params.prob_maps != nullptr) {
      p = sample_prob_map(params, k, tables.y.prob_map[i / across], tables.x.prob_map[i % across]);
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
  const FeatureMap& feature_map = params.levels[box.level];
  const int32_t threads = blockDim.x;
  const int32_t for_y = threadIdx.x;
  const int32_t for_x = threads - 1 - for_y;  // the last threads, idle along y, start here
  __syncthreads();
  fill_samples(
      params, y, patch.y, feature_map.height, params.prob_map_height, for_y, threads, tables.y);
  fill_samples(
      params, x, patch.x, feature_map.width, params.prob_map_width, for_x, threads, tables.x);
  __syncthreads();
  fill_touched(patch.y, for_y, threads, tables.y);
  fill_touched(patch.x, for_x, threads, tables.x);
  fill_prob_map_values(params, box.index, patch, tables);
  __syncthreads();
  fill_samples_of_taps(patch.y, y.extent < T(0), for_y, threads, tables.y);
  fill_samples_of_taps(patch.x, x.extent < T(0), for_x, threads, tables.x);
  __syncthreads();
}

}  // namespace shape_roi_align::cuda
