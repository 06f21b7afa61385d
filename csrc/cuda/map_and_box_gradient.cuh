// Gradients of the probability maps and of the boxes. Both are sums over channels; a block owns a
// box or a share of its bins.
//
// Both follow from the products <pixel, gradient of a bin>, summed over channels, one per tap. The
// products at the four pixels of a sample give the gradients of the sample's p and of its
// coordinates. Then each cell of the probability map adds up the samples that read it. All sums
// have a fixed order.
#pragma once

#include "cuda/patch_taps.cuh"
#include "cuda/shares.cuh"

namespace shape_roi_align::cuda {

// products[tap] = sum over channels of pixel * gradient of the bin, taps numbered as in
// for_each_tap. offsets: of the taps' pixels. Channels in the lanes: requires channels innermost in
// features and in grad. A warp processes one bin, or eight taps of a bin with many taps.
template <int32_t width, typename feature_t, typename acc_t, typename coord_t>
__device__ void multiply_channels_in_lanes(
    const Patch& patch, const PatchPlan& plan, const PatchTables<coord_t>& tables,
    const int64_t* offsets, int64_t num_channels, const feature_t* image, const PooledTensor& grad,
    const feature_t* of_box, acc_t* products) {
  constexpr int32_t kAtOnce = kChannelsPerLane;  // taps, for sum_over_lanes
  constexpr int32_t kInFlight = kLoadsInFlight<feature_t, kFewBlocks>;
  const bool is_shared = plan.has_many_taps();
  const int32_t part = is_shared ? warp_index() : 0;
  const int32_t parts = is_shared ? num_warps() : 1;
#pragma unroll 1
  for (int32_t bin = is_shared ? 0 : warp_index(); bin < patch.bins(); bin += num_warps()) {
    const int32_t count = taps_of_bin(patch, tables, bin);
    const int32_t first_tap = bin * plan.taps_per_bin();
    const feature_t* of_bin = of_box + bin_offset(grad, patch, bin);
#pragma unroll 1
    for (int32_t first = kAtOnce * part; first < count; first += kAtOnce * parts) {
      acc_t sum[kAtOnce] = {};
#pragma unroll 1
      for (int64_t slab = 0; slab * kChannelsPerWarp < num_channels; ++slab) {
        const LaneChannels<width> channels(slab, num_channels);
        acc_t gradient[kChannelsPerLane] = {};
        acc_t values[kInFlight][kChannelsPerLane] = {};
        channels.load(of_bin + channels.first, gradient);
#pragma unroll
        for (int32_t begin = 0; begin < kAtOnce; begin += kInFlight) {
#pragma unroll
          for (int32_t i = 0; i < kInFlight; ++i) {
            if (first + begin + i < count) {
              channels.load(
                  image + offsets[first_tap + first + begin + i] + channels.first, values[i]);
            }
          }
#pragma unroll
          for (int32_t i = 0; i < kInFlight; ++i) {
            if (first + begin + i < count) {
#pragma unroll
              for (int32_t c = 0; c < kChannelsPerLane; ++c) {
                sum[begin + i] += gradient[c] * values[i][c];
              }
            }
          }
        }
      }
      const acc_t total = sum_over_lanes(sum, kWarp);
      if (lane_index() < kAtOnce && first + lane_index() < count) {
        products[first_tap + first + lane_index()] = total;
      }
    }
  }
}

// The same with bins in the lanes: for any layout, fastest if columns are innermost. A thread
// serves a tap.
template <typename feature_t, typename acc_t, typename coord_t>
__device__ void multiply_bins_in_lanes(
    const FeatureMap& feature_map, const Patch& patch, const PatchPlan& plan,
    const PatchTables<coord_t>& tables, const int64_t* offsets, int64_t num_channels,
    const feature_t* image, const PooledTensor& grad, const feature_t* of_box, acc_t* products) {
  const auto multiply = [&](int32_t tap, int32_t, int32_t, int32_t, int32_t) {
    const feature_t* pixel = image + offsets[tap];
    const feature_t* of_bin = of_box + bin_offset(grad, patch, tap / plan.taps_per_bin());
    acc_t sum = acc_t(0);
#pragma unroll 8
    for (int64_t c = 0; c < num_channels; ++c) {
      sum += load(pixel[c * feature_map.channel_stride]) * load(of_bin[c * grad.channel_stride]);
    }
    products[tap] = sum;
  };
  for_each_tap(patch, plan.taps_per_bin(), tables, multiply);
}

// Sums over samples of d(loss)/d(sample coordinate), unweighted and weighted by u or v.
template <typename T>
struct BoxGradient {
  T y;
  T y_times_v;
  T x;
  T x_times_u;

  // Sums over the block, in a fixed order; the first thread holds the result. shared:
  // [kMaxThreads / kWarp]. Begins and ends with a barrier.
  __device__ void sum_over_block(BoxGradient* shared) {
    for (int32_t distance = kWarp / 2; distance > 0; distance /= 2) {
      y += __shfl_xor_sync(kAllLanes, y, distance);
      y_times_v += __shfl_xor_sync(kAllLanes, y_times_v, distance);
      x += __shfl_xor_sync(kAllLanes, x, distance);
      x_times_u += __shfl_xor_sync(kAllLanes, x_times_u, distance);
    }
    __syncthreads();
    if (lane_index() == 0) {
      shared[warp_index()] = *this;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int32_t warp = 1; warp < num_warps(); ++warp) {
        y += shared[warp].y;
        y_times_v += shared[warp].y_times_v;
        x += shared[warp].x;
        x_times_u += shared[warp].x_times_u;
      }
    }
    __syncthreads();
  }

  // coordinate = edge1 * scale - offset + uv * extent, where extent = (edge2 - edge1) * scale
  // unless the extent is fixed at the minimum size. grad_roi: [5] = (batch index, x1, y1, x2, y2).
  // A box is invalid if the scale is not finite in T.
  __device__ void store(const BoxGeometry<T>& geometry, T spatial_scale, T* grad_roi) const {
    const T of_height = geometry.y.extent_varies ? y_times_v : T(0);
    const T of_width = geometry.x.extent_varies ? x_times_u : T(0);
    const T scale = geometry.valid ? spatial_scale : T(0);
    grad_roi[0] = T(0);
    grad_roi[1] = scale * (x - of_width);
    grad_roi[2] = scale * (y - of_height);
    grad_roi[3] = scale * of_width;
    grad_roi[4] = scale * of_height;
  }
};

// values[sample] = d(loss)/d(p of the sample), numbered as tables.p. Adds the thread's samples to
// box_gradient.
template <typename acc_t, typename coord_t>
__device__ void differentiate_samples(
    const BoxGeometry<coord_t>& geometry, const Patch& patch, int32_t taps_per_bin,
    const PatchTables<coord_t>& tables, const acc_t* products, coord_t* values,
    BoxGradient<coord_t>& box_gradient) {
#pragma unroll 1
  for (int32_t s = threadIdx.x; s < patch.y.size() * patch.x.size(); s += blockDim.x) {
    const int32_t i = s / patch.x.size();
    const int32_t j = s % patch.x.size();
    const Interpolation<coord_t>& y = tables.y.pixels[i];
    const Interpolation<coord_t>& x = tables.x.pixels[j];
    coord_t value = coord_t(0);
    if (is_read(y) && is_read(x)) {
      const int32_t bin_y = i / patch.y.samples;
      const int32_t bin_x = j / patch.x.samples;
      const acc_t* of_bin = products + (bin_y * patch.x.bins + bin_x) * taps_per_bin;
      const int32_t across = tables.x.touched[bin_x].count;
      coord_t product[2][2];  // low, high along y; low, high along x
#pragma unroll
      for (int32_t corner = 0; corner < 4; ++corner) {
        const int32_t row = tables.y.tap(patch.y, bin_y, i % patch.y.samples, corner / 2);
        const int32_t column = tables.x.tap(patch.x, bin_x, j % patch.x.samples, corner % 2);
        product[corner / 2][corner % 2] = geometry.share * coord_t(of_bin[row * across + column]);
      }
      const coord_t at_low = x.low_weight * product[0][0] + x.high_weight * product[0][1];
      const coord_t at_high = x.low_weight * product[1][0] + x.high_weight * product[1][1];
      value = y.low_weight * at_low + y.high_weight * at_high;
      const coord_t y_gradient = tables.p[s] * y.slope * (at_high - at_low);
      const coord_t x_gradient = tables.p[s] * x.slope *
                                 (y.low_weight * (product[0][1] - product[0][0]) +
                                  y.high_weight * (product[1][1] - product[1][0]));
      box_gradient.y += y_gradient;
      box_gradient.y_times_v +=
          y_gradient * sample_uv(geometry.y, patch.y.bin(i), patch.y.sample(i));
      box_gradient.x += x_gradient;
      box_gradient.x_times_u +=
          x_gradient * sample_uv(geometry.x, patch.x.bin(j), patch.x.sample(j));
    }
    values[s] = value;
  }
}

// The samples of a patch that read a cell of the probability map along one axis: a range, because u
// and v increase with the sample.
template <typename T>
__device__ Range<int32_t> samples_reading_prob_map(
    const AxisTable<T>& table, const PatchAxis& axis, int32_t cell) {
  Range<int32_t> samples;
  samples.begin =
      first_where(0, axis.size(), [&](int32_t i) { return table.prob_map[i].high >= cell; });
  samples.end = first_where(
      samples.begin, axis.size(), [&](int32_t i) { return table.prob_map[i].low > cell; });
  return samples;
}

// Adds the values of a patch's samples to the cells [first_cell, first_cell + num_cells) of the
// box's grad_prob_map: [num_cells]. A thread owns a cell.
template <typename T>
__device__ void add_to_prob_map(
    const Patch& patch, const PatchTables<T>& tables, int32_t prob_map_width, const T* values,
    int64_t first_cell, int64_t num_cells, T* grad_prob_map) {
  if (patch.y.size() == 0 || patch.x.size() == 0) {
    return;
  }
  const int32_t first_row = tables.y.prob_map[0].low;
  const int32_t first_column = tables.x.prob_map[0].low;
  const int64_t rows = tables.y.prob_map[patch.y.size() - 1].high + 1 - first_row;
  const int64_t columns = tables.x.prob_map[patch.x.size() - 1].high + 1 - first_column;
#pragma unroll 1
  for (int64_t cell = threadIdx.x; cell < rows * columns; cell += blockDim.x) {
    const int32_t row = first_row + static_cast<int32_t>(cell / columns);
    const int32_t column = first_column + static_cast<int32_t>(cell % columns);
    const int64_t at = int64_t(row) * prob_map_width + column - first_cell;
    if (at < 0 || at >= num_cells) {
      continue;
    }
    const Range<int32_t> ys = samples_reading_prob_map(tables.y, patch.y, row);
    const Range<int32_t> xs = samples_reading_prob_map(tables.x, patch.x, column);
    T sum = T(0);
#pragma unroll 1
    for (int32_t i = ys.begin; i < ys.end; ++i) {
      T along_row = T(0);
#pragma unroll 1
      for (int32_t j = xs.begin; j < xs.end; ++j) {
        along_row += weight_at(tables.x.prob_map[j], column) * values[i * patch.x.size() + j];
      }
      sum += weight_at(tables.y.prob_map[i], row) * along_row;
    }
    grad_prob_map[at] += sum;
  }
}

// Writes every element of the shares' gradients. width: of vectors of channels, which are innermost
// in features and grad; 0: any layout.
template <typename feature_t, typename coord_t, int32_t width>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks<coord_t, kFewBlocks>)
    map_and_box_gradient_kernel(
        const __grid_constant__ Params params, const __grid_constant__ PooledTensor grad,
        const __grid_constant__ BoxGrid grid,
        const __grid_constant__ ShareGradients<coord_t> gradients) {
  using acc_t = accumulate_t<feature_t>;
  __shared__ Box<coord_t> box;
  __shared__ PatchPlan plan;
  __shared__ PatchTables<coord_t> tables;
  __shared__ int64_t offsets[kMaxTaps];
  __shared__ acc_t products[kMaxTaps];
  __shared__ coord_t values[kMaxSamples];
  __shared__ BoxGradient<coord_t> of_warps[kMaxThreads / kWarp];

  for (int64_t i = blockIdx.x; i < grid.size(); i += gridDim.x) {
    load_box(params, grid.box(i), grid.max_bins, box, plan);
    const BoxGeometry<coord_t>& geometry = box.geometry;
    const FeatureMap& feature_map = params.levels[box.level];
    const PatchGroups<coord_t> groups(params, box, plan);
    const feature_t* image =
        static_cast<const feature_t*>(feature_map.data) + geometry.batch * feature_map.image_stride;
    const feature_t* of_box =
        static_cast<const feature_t*>(grad.data) + box.index * grad.box_stride;
    const int64_t to = grid.share(i) * params.num_rois + box.index;
    coord_t* const grad_prob_map =
        gradients.prob_maps == nullptr ? nullptr : gradients.prob_maps + to * gradients.cells;
    if (grad_prob_map != nullptr) {  // the first patch has barriers before it adds to the map
#pragma unroll 1
      for (int64_t cell = threadIdx.x; cell < gradients.cells; cell += blockDim.x) {
        grad_prob_map[cell] = coord_t(0);
      }
    }
    BoxGradient<coord_t> box_gradient{};
    for (int32_t group = grid.share(i); group < groups.count(); group += grid.shares) {
      groups.for_each_patch(group, [&](const Patch& patch, bool, bool) {
        fill_tables(params, box, patch, tables);
        for_each_tap(
            patch, plan.taps_per_bin(), tables,
            [&](int32_t tap, int32_t bin_y, int32_t tap_y, int32_t bin_x, int32_t tap_x) {
              offsets[tap] = tables.y.line(patch.y, bin_y, tap_y) * feature_map.row_stride +
                             tables.x.line(patch.x, bin_x, tap_x) * feature_map.column_stride;
            });
        __syncthreads();
        if constexpr (width == 0) {
          multiply_bins_in_lanes(
              feature_map, patch, plan, tables, offsets, params.channels, image, grad, of_box,
              products);
        } else {
          multiply_channels_in_lanes<width>(
              patch, plan, tables, offsets, params.channels, image, grad, of_box, products);
        }
        __syncthreads();
        differentiate_samples(
            geometry, patch, plan.taps_per_bin(), tables, products, values, box_gradient);
        if (grad_prob_map != nullptr) {
          __syncthreads();
          add_to_prob_map(
              patch, tables, params.prob_map_width, values, gradients.first_cell, gradients.cells,
              grad_prob_map);
        }
      });
    }
    if (gradients.rois != nullptr) {
      box_gradient.sum_over_block(of_warps);
      if (threadIdx.x == 0) {
        box_gradient.store(geometry, coord_t(feature_map.spatial_scale), gradients.rois + 5 * to);
      }
    }
    __syncthreads();
  }
}

}  // namespace shape_roi_align::cuda
