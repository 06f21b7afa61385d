// Gradients of the probability maps and of the boxes: sums over channels, for which one block owns
// one box.
//
// Both follow from the products <feature pixel, gradient of the bin> of the four pixels of a
// sample, summed over channels. Samples are taken a block's worth at a time, in order: teams of
// threads reduce over channels; then thread t works out sample t, and each cell of the map collects
// the samples that read it. All sums have a fixed order.
#pragma once

#include "block.cuh"

namespace shape_roi_align::cuda {

// Samples of an axis numbered over all bins: g = bin * samples + i.
template <typename T>
__device__ T coordinate_of(const Axis<T>& axis, int64_t g) {
  return sample_coordinate(
      axis, static_cast<int32_t>(g / axis.samples), static_cast<int32_t>(g % axis.samples));
}

template <typename T>
__device__ T place_of(const Axis<T>& axis, int64_t g) {
  return sample_place(
      axis, static_cast<int32_t>(g / axis.samples), static_cast<int32_t>(g % axis.samples));
}

// Samples [begin, end) of the axis that hold all those inside the map.
template <typename T>
__device__ Range<int64_t> axis_samples_inside(const Axis<T>& axis, int32_t size) {
  const Range<int32_t> bins = bins_within(axis, T(-1), T(size));
  if (bins.begin >= bins.end) {
    return {0, 0};
  }
  const int64_t first = samples_inside(axis, bins.begin, size).begin;
  const int64_t last = samples_inside(axis, bins.end - 1, size).end;
  const int64_t begin = bins.begin * int64_t(axis.samples) + first;
  const int64_t end = (bins.end - 1) * int64_t(axis.samples) + last;
  return {begin, end > begin ? end : begin};
}

// Of samples [begin, end), those that may read a cell of the probability map; places rise with the
// sample.
template <typename T>
__device__ Range<int64_t> samples_reading_map(
    const Axis<T>& axis, Range<int64_t> samples, int32_t cell, int32_t size, bool map_aligned) {
  const auto cells_of = [&](int64_t g) {
    return interpolate_map(place_of(axis, g), size, map_aligned);
  };
  Range<int64_t> reading;
  reading.begin =
      first_where(samples.begin, samples.end, [&](int64_t g) { return cells_of(g).high >= cell; });
  reading.end =
      first_where(reading.begin, samples.end, [&](int64_t g) { return cells_of(g).low > cell; });
  return reading;
}

// The samples of a box that may read the feature map, row by row, and those of them that a block
// has in hand.
struct SampleGrid {
  Range<int64_t> rows;
  Range<int64_t> columns;
  int64_t first;  // of the chunk
  int32_t count;  // of the chunk, at most the threads of the block

  __device__ int64_t row_length() const {
    return columns.end - columns.begin;
  }
  __device__ int64_t size() const {
    return (rows.end - rows.begin) * row_length();
  }
  __device__ int64_t row_of(int64_t i) const {
    return rows.begin + (first + i) / row_length();
  }
  __device__ int64_t column_of(int64_t i) const {
    return columns.begin + (first + i) % row_length();
  }
  // Place in the chunk of a sample; outside [0, count): in another chunk.
  __device__ int64_t index_of(int64_t gy, int64_t gx) const {
    return (gy - rows.begin) * row_length() + gx - columns.begin - first;
  }
};

template <typename T>
struct Sample {
  T v;  // place inside the box, (0, 1)
  T u;
  bool reads;
  Interpolation<T> y;
  Interpolation<T> x;
};

// Where the operands of a sample are, in elements.
struct SampleOffsets {
  int64_t row[2];
  int64_t column[2];
  int64_t bin;
  bool reads;
};

// Products of the four pixels of a sample: [low, high along y][low, high along x], numbered 0 to 3.
constexpr int32_t kCorners = 4;

// products[corner * kMaxThreads + s] = sum over channels of pixel * gradient of the bin, for the
// chunk's samples s. offsets: [count]. partial: [kCorners * kMaxThreads]. Called by all threads;
// begins and ends with a barrier.
template <typename feature_t, typename acc_t>
__device__ void multiply_channels(
    const ThreadLayout& layout, int64_t channels, int32_t count, const SampleOffsets* offsets,
    const feature_t* image, int64_t image_channel_stride, const feature_t* bins,
    int64_t bin_channel_stride, acc_t* partial, acc_t* products) {
  const int32_t unit = layout.unit();
  const int32_t lane = layout.lane();
  for (int32_t base = 0; base < count; base += layout.units) {
    __syncthreads();
    acc_t sum[kCorners] = {};
    if (base + unit < count && offsets[base + unit].reads) {
      const SampleOffsets& at = offsets[base + unit];
      for (int64_t c = lane; c < channels; c += layout.lanes) {
        const acc_t of_bin = load(bins[at.bin + c * bin_channel_stride]);
        const feature_t* plane = image + c * image_channel_stride;
#pragma unroll
        for (int32_t corner = 0; corner < kCorners; ++corner) {
          sum[corner] += of_bin * load(plane[at.row[corner / 2] + at.column[corner % 2]]);
        }
      }
    }
#pragma unroll
    for (int32_t corner = 0; corner < kCorners; ++corner) {
      partial[(corner * layout.units + unit) * layout.lanes + lane] = sum[corner];
    }
    __syncthreads();
    for (int32_t i = threadIdx.x; i < kCorners * layout.units; i += layout.threads()) {
      const int32_t s = base + i % layout.units;
      if (s < count) {
        acc_t total = acc_t(0);
        for (int32_t l = 0; l < layout.lanes; ++l) {
          total += partial[i * layout.lanes + l];
        }
        products[i / layout.units * kMaxThreads + s] = total;
      }
    }
  }
  __syncthreads();
}

// Adds the chunk's values, d(loss)/d(p of the sample), to the cells of the box's map: each cell is
// one thread's. values: [count].
template <typename T>
__device__ void add_to_map(
    const Params& params, const BoxGeometry<T>& geometry, const SampleGrid& grid, const T* values,
    T* grad_map) {
  const bool aligned = params.options.map_aligned;
  const Axis<T>& y = geometry.y;
  const Axis<T>& x = geometry.x;
  const auto map_rows = [&](int64_t gy) {
    return interpolate_map(place_of(y, gy), params.map_height, aligned);
  };
  const auto map_columns = [&](int64_t gx) {
    return interpolate_map(place_of(x, gx), params.map_width, aligned);
  };
  const Range<int64_t> rows{grid.row_of(0), grid.row_of(grid.count - 1) + 1};
  const int64_t begin = int64_t(map_rows(rows.begin).low) * params.map_width;
  const int64_t end = int64_t(map_rows(rows.end - 1).high + 1) * params.map_width;
  for (int64_t cell = begin + threadIdx.x; cell < end; cell += blockDim.x) {
    const int32_t row = static_cast<int32_t>(cell / params.map_width);
    const int32_t column = static_cast<int32_t>(cell % params.map_width);
    const Range<int64_t> gys = samples_reading_map(y, rows, row, params.map_height, aligned);
    const Range<int64_t> gxs =
        samples_reading_map(x, grid.columns, column, params.map_width, aligned);
    T sum = T(0);
    for (int64_t gy = gys.begin; gy < gys.end; ++gy) {
      T along_row = T(0);
      for (int64_t gx = gxs.begin; gx < gxs.end; ++gx) {
        const int64_t s = grid.index_of(gy, gx);
        if (s >= 0 && s < grid.count) {
          along_row += weight_at(map_columns(gx), column) * values[s];
        }
      }
      sum += weight_at(map_rows(gy), row) * along_row;
    }
    grad_map[cell] += sum;
  }
}

// d(loss)/d(coordinate) summed over samples, plain and weighted by their place in the box.
template <typename T>
struct BoxGradient {
  T y;
  T y_by_place;
  T x;
  T x_by_place;

  // coordinate = edge1 * scale - offset + place * extent, where extent = (edge2 - edge1) * scale
  // unless it is held fixed.
  __device__ void store(const BoxGeometry<T>& geometry, T spatial_scale, T* grad_roi) const {
    const T of_height = geometry.y.extent_varies ? y_by_place : T(0);
    const T of_width = geometry.x.extent_varies ? x_by_place : T(0);
    grad_roi[0] = T(0);
    grad_roi[1] = spatial_scale * (x - of_width);
    grad_roi[2] = spatial_scale * (y - of_height);
    grad_roi[3] = spatial_scale * of_width;
    grad_roi[4] = spatial_scale * of_height;
  }
};

// grad_maps: [K, map_height, map_width], zeroed, or null. grad_rois: [K, 5], every element is
// written, or null.
template <typename feature_t, typename coord_t>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks) map_and_box_gradient_kernel(
    const __grid_constant__ Params params, const __grid_constant__ PooledMap grad,
    coord_t* grad_maps, coord_t* grad_rois, const ThreadLayout layout) {
  using acc_t = accumulate_t<feature_t>;
  __shared__ Box<coord_t> box;
  __shared__ SampleOffsets offsets[kMaxThreads];
  __shared__ acc_t partial[kCorners * kMaxThreads];
  __shared__ acc_t products[kCorners * kMaxThreads];
  __shared__ coord_t values[kMaxThreads];
  __shared__ BoxGradient<coord_t> box_gradients[kMaxThreads];
  const int32_t threads = layout.threads();
  const int32_t thread = threadIdx.x;

  for (int64_t k = blockIdx.x; k < params.num_rois; k += gridDim.x) {
    load_box(params, k, box);
    const BoxGeometry<coord_t>& geometry = box.geometry;
    const FeatureMap& map = params.levels[box.level];
    SampleGrid grid{};
    if (box.reads) {
      grid.rows = axis_samples_inside(geometry.y, map.height);
      grid.columns = axis_samples_inside(geometry.x, map.width);
    }
    BoxGradient<coord_t> box_gradient{};
    for (; grid.first < grid.size(); grid.first += threads) {
      const int64_t left = grid.size() - grid.first;
      grid.count = left < threads ? static_cast<int32_t>(left) : threads;
      Sample<coord_t> sample{};
      if (thread < grid.count) {
        const int64_t gy = grid.row_of(thread);
        const int64_t gx = grid.column_of(thread);
        const coord_t at_y = coordinate_of(geometry.y, gy);
        const coord_t at_x = coordinate_of(geometry.x, gx);
        sample.v = place_of(geometry.y, gy);
        sample.u = place_of(geometry.x, gx);
        sample.reads = is_inside(at_y, map.height) && is_inside(at_x, map.width);
        sample.y = interpolate(at_y, map.height);
        sample.x = interpolate(at_x, map.width);
        offsets[thread] = {
            {sample.y.low * map.row_stride, sample.y.high * map.row_stride},
            {sample.x.low * map.column_stride, sample.x.high * map.column_stride},
            gy / geometry.y.samples * grad.row_stride +
                gx / geometry.x.samples * grad.column_stride,
            sample.reads};
      }
      multiply_channels(
          layout, params.channels, grid.count, offsets,
          static_cast<const feature_t*>(map.data) + geometry.batch * map.image_stride,
          map.channel_stride, static_cast<const feature_t*>(grad.data) + k * grad.box_stride,
          grad.channel_stride, partial, products);
      coord_t value = coord_t(0);
      if (sample.reads) {
        coord_t product[kCorners];
#pragma unroll
        for (int32_t corner = 0; corner < kCorners; ++corner) {
          product[corner] =
              geometry.inverse_count * coord_t(products[corner * kMaxThreads + thread]);
        }
        const Interpolation<coord_t>& y = sample.y;
        const Interpolation<coord_t>& x = sample.x;
        const coord_t at_low = x.low_weight * product[0] + x.high_weight * product[1];
        const coord_t at_high = x.low_weight * product[2] + x.high_weight * product[3];
        value = y.low_weight * at_low + y.high_weight * at_high;
        if (grad_rois != nullptr) {
          const coord_t p = sample_map(params, k, sample.v, sample.u);
          const coord_t slope_y = at_high - at_low;
          const coord_t slope_x =
              y.low_weight * (product[1] - product[0]) + y.high_weight * (product[3] - product[2]);
          box_gradient.y += p * y.slope * slope_y;
          box_gradient.y_by_place += p * y.slope * slope_y * sample.v;
          box_gradient.x += p * x.slope * slope_x;
          box_gradient.x_by_place += p * x.slope * slope_x * sample.u;
        }
      }
      if (grad_maps != nullptr) {
        values[thread] = value;
        __syncthreads();
        add_to_map(
            params, geometry, grid, values, grad_maps + k * params.map_height * params.map_width);
      }
    }
    if (grad_rois != nullptr) {
      box_gradients[thread] = box_gradient;
      __syncthreads();
      if (thread == 0) {
        for (int32_t t = 1; t < threads; ++t) {
          box_gradient.y += box_gradients[t].y;
          box_gradient.y_by_place += box_gradients[t].y_by_place;
          box_gradient.x += box_gradients[t].x;
          box_gradient.x_by_place += box_gradients[t].x_by_place;
        }
        box_gradient.store(geometry, coord_t(map.spatial_scale), grad_rois + 5 * k);
      }
    }
    __syncthreads();
  }
}

}  // namespace shape_roi_align::cuda
