// Forward: computes bins as sums of taps, with channels in the lanes or with bins in the lanes.
#pragma once

#include "cuda/patch_taps.cuh"

namespace shape_roi_align::cuda {

// Adds taps part, part + parts, ... below `count` to `sum`, for the channels of a lane.
template <int32_t width, typename feature_t, typename acc_t>
__device__ void add_taps(
    const LaneChannels<width>& channels, const feature_t* from, const Tap<acc_t>* taps,
    int32_t count, int32_t part, int32_t parts, acc_t* sum) {
  constexpr int32_t kInFlight = LaneChannels<width>::template kPixelsIn<feature_t, 16>;
  typename LaneChannels<width>::template Pixel<feature_t> pixels[kInFlight];
  int32_t tap = part;
#pragma unroll 1
  for (; tap + (kInFlight - 1) * parts < count; tap += kInFlight * parts) {
#pragma unroll
    for (int32_t i = 0; i < kInFlight; ++i) {
      channels.load(from + taps[tap + i * parts].offset, pixels[i]);
    }
#pragma unroll
    for (int32_t i = 0; i < kInFlight; ++i) {
      pixels[i].add_to(sum, taps[tap + i * parts].weight);
    }
  }
  const auto is_left = [&](int32_t i) { return tap + i * parts < count; };
#pragma unroll
  for (int32_t i = 0; i < kInFlight - 1; ++i) {
    if (is_left(i)) {
      channels.load(from + taps[tap + i * parts].offset, pixels[i]);
    }
  }
#pragma unroll
  for (int32_t i = 0; i < kInFlight - 1; ++i) {
    if (is_left(i)) {
      pixels[i].add_to(sum, taps[tap + i * parts].weight);
    }
  }
}

// Adds the sums of the other warps to the first warp's. sums: [num_warps() * kChannelsPerWarp] in
// shared memory. Begins and ends with a barrier.
template <typename acc_t>
__device__ void add_warps(acc_t* sums, acc_t* sum) {
  __syncthreads();
#pragma unroll
  for (int32_t c = 0; c < kChannelsPerLane; ++c) {
    sums[(warp_index() * kChannelsPerLane + c) * kWarp + lane_index()] = sum[c];
  }
  __syncthreads();
  if (warp_index() == 0) {
    for (int32_t warp = 1; warp < num_warps(); ++warp) {
#pragma unroll
      for (int32_t c = 0; c < kChannelsPerLane; ++c) {
        sum[c] += sums[(warp * kChannelsPerLane + c) * kWarp + lane_index()];
      }
    }
  }
  __syncthreads();
}

// Channels in the lanes: requires channels innermost in the features and in the output. A warp
// serves a bin. grid.slab_channels is kChannelsPerWarp. output: [K, C, PH, PW] of feature_t, every
// element is written.
template <typename feature_t, typename coord_t, int32_t width>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks<coord_t, kManyBlocks>)
    forward_channels_in_lanes_kernel(
        const __grid_constant__ Params params, const __grid_constant__ PooledTensor output,
        const __grid_constant__ BoxGrid grid) {
  using acc_t = accumulate_t<feature_t>;
  __shared__ Box<coord_t> box;
  __shared__ PatchPlan plan;
  __shared__ PatchTables<coord_t> tables;
  __shared__ TapsThenSums<acc_t, kMaxTaps> scratch;
  static_assert(sizeof(scratch.sums) >= kMaxThreads * kChannelsPerLane * sizeof(acc_t));

  for (int64_t i = blockIdx.x; i < grid.size(); i += gridDim.x) {
    load_box(params, grid.box(i), grid.max_bins, box, plan);
    const FeatureMap& feature_map = params.levels[box.level];
    const PatchGroups<coord_t> groups(params, box, plan);
    const LaneChannels<width> channels(grid.slab(i), params.channels);
    const feature_t* from = static_cast<const feature_t*>(feature_map.data) +
                            box.geometry.batch * feature_map.image_stride + channels.first;
    feature_t* to =
        static_cast<feature_t*>(output.data) + box.index * output.box_stride + channels.first;
    const bool is_shared = plan.has_many_taps();
    const int32_t part = is_shared ? warp_index() : 0;
    const int32_t parts = is_shared ? num_warps() : 1;
    for (int32_t group = grid.share(i); group < groups.count(); group += grid.shares) {
      acc_t sum[kChannelsPerLane] = {};
      groups.for_each_patch(group, [&](const Patch& patch, bool is_first, bool is_last) {
        fill_tables(params, box, patch, tables);
        fill_taps(
            feature_map, box.geometry.share, patch, plan.taps_per_bin(), tables, scratch.taps);
        for (int32_t bin = is_shared ? 0 : warp_index(); bin < patch.bins(); bin += num_warps()) {
          if (is_first) {
#pragma unroll
            for (int32_t c = 0; c < kChannelsPerLane; ++c) {
              sum[c] = acc_t(0);
            }
          }
          add_taps(
              channels, from, scratch.taps + bin * plan.taps_per_bin(),
              taps_of_bin(patch, tables, bin), part, parts, sum);
          if (is_shared && is_last) {
            add_warps(scratch.sums, sum);
          }
          if (is_last && (!is_shared || warp_index() == 0)) {
            channels.store(sum, to + bin_offset(output, patch, bin));
          }
        }
      });
    }
    __syncthreads();
  }
}

// Adds the taps numbered lane, lane + lanes, ... of one bin to `sum`, for kChannelsPerLane channels
// from `from` on; only the first `channels` exist.
template <typename feature_t, typename acc_t>
__device__ void add_lane_taps(
    const feature_t* from, int64_t channel_stride, int32_t channels, const Tap<acc_t>* taps,
    int32_t count, int32_t lane, int32_t lanes, acc_t* sum) {
#pragma unroll 1  // kChannelsPerLane loads in flight
  for (int32_t tap = lane; tap < count; tap += lanes) {
    const acc_t weight = taps[tap].weight;
    const feature_t* at = from + taps[tap].offset;
    acc_t values[kChannelsPerLane];
#pragma unroll
    for (int32_t c = 0; c < kChannelsPerLane; ++c) {
      values[c] = c < channels ? load(*at) : acc_t(0);
      at += channel_stride;  // one addition; c * channel_stride takes four instructions
    }
#pragma unroll
    for (int32_t c = 0; c < kChannelsPerLane; ++c) {
      sum[c] += weight * values[c];
    }
  }
}

// The bins of a patch that one warp serves, and their outputs. The outputs are staged so that
// neighbouring bins are written together. One padding bin per channel avoids bank conflicts of a
// warp's stores.
template <typename acc_t>
struct StagedBins {
  static constexpr int32_t kBins = 128 / sizeof(acc_t);
  Range<int32_t> bins;
  acc_t channel_sums[kChannelsPerLane][kBins + 1];
};

// The bins of the calling warp. Warps take the groups of channels in turn; if there are more warps
// than groups, several warps share the bins of a group.
__device__ inline Range<int32_t> bins_of_warp(
    const Patch& patch, const PatchPlan& plan, int32_t channel_groups) {
  const int32_t parts = plan.whole_bins ? max_of(num_warps() / channel_groups, 1) : 1;
  const int32_t bins = (patch.bins() + parts - 1) / parts;
  const int32_t begin = warp_index() / channel_groups * bins;
  return {begin, min_of(begin + bins, patch.bins())};  // empty for the warps beyond `parts`
}

// The work of forward_bins_in_lanes_kernel on one patch.
template <typename feature_t, typename acc_t, typename coord_t>
struct BinsInLanes {
  const Patch& patch;
  const PatchTables<coord_t>& tables;
  const Tap<acc_t>* taps;
  int32_t taps_per_bin;
  bool is_first;  // whether `patch` is the first one of its bins
  bool is_last;   // whether it is the last one

  // Pools the bins staged.bins, each by a team of `lanes`. sum[i] of a lane belongs to channel i of
  // the bin that its team serves. from: the first of `channels` channels, at most kChannelsPerLane.
  // to: the same channel in the box's output. Called by whole warps.
  template <int32_t lanes>
  __device__ void pool(
      const feature_t* from, int64_t from_stride, int32_t channels, acc_t* sum,
      StagedBins<acc_t>& staged, const PooledTensor& output, feature_t* to) const {
    constexpr int32_t kTeams = kWarp / lanes;
    const int32_t lane = lane_index() % lanes;
#pragma unroll 1
    for (int32_t first = staged.bins.begin; first < staged.bins.end; first += staged.kBins) {
      const int32_t bins = min_of(staged.kBins, staged.bins.end - first);
      // Each lane counts the taps of one bin for all teams, because divisions are slow.
      const int32_t count =
          lane_index() < bins ? taps_of_bin(patch, tables, first + lane_index()) : 0;
#pragma unroll 1
      for (int32_t base = 0; base < bins; base += kTeams) {
        const int32_t bin = base + lane_index() / lanes;
        if (is_first) {
#pragma unroll
          for (int32_t c = 0; c < kChannelsPerLane; ++c) {
            sum[c] = acc_t(0);
          }
        }
        add_lane_taps(
            from, from_stride, channels, taps + (first + bin) * taps_per_bin,
            __shfl_sync(kAllLanes, count, bin), lane, lanes, sum);
        if (is_last) {
          const acc_t total = sum_over_lanes(sum, lanes);
          if (bin < bins && lane < kChannelsPerLane) {
            staged.channel_sums[lane][bin] = total;
          }
        }
      }
      if (is_last) {
        write(staged, first, bins, channels, output, to);
      }
    }
  }

 private:
  __device__ void write(
      const StagedBins<acc_t>& staged, int32_t first, int32_t bins, int32_t channels,
      const PooledTensor& output, feature_t* to) const {
    static_assert(kTeam == kChannelsPerLane);  // lane i of a team has the total of channel i
    __syncwarp();
#pragma unroll 1
    for (int32_t bin = lane_index(); bin < bins; bin += kWarp) {
      feature_t* at = to + bin_offset(output, patch, first + bin);
#pragma unroll 1
      for (int32_t c = 0; c < channels; ++c) {
        store(staged.channel_sums[c][bin], at);
        at += output.channel_stride;
      }
    }
    __syncwarp();
  }
};

// Bins in the lanes: for any layout, fastest if columns are innermost. 8 or 32 lanes serve the taps
// of a bin; a warp processes kChannelsPerLane channels at a time. output: [K, C, PH, PW] of
// feature_t, every element is written.
template <typename feature_t, typename coord_t>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks<coord_t, kManyBlocks>)
    forward_bins_in_lanes_kernel(
        const __grid_constant__ Params params, const __grid_constant__ PooledTensor output,
        const __grid_constant__ BoxGrid grid) {
  using acc_t = accumulate_t<feature_t>;
  __shared__ Box<coord_t> box;
  __shared__ PatchPlan plan;
  __shared__ PatchTables<coord_t> tables;
  __shared__ Tap<acc_t> taps[kMaxTaps];
  __shared__ StagedBins<acc_t> staged[kMaxThreads / kWarp];

  for (int64_t i = blockIdx.x; i < grid.size(); i += gridDim.x) {
    load_box(params, grid.box(i), grid.max_bins, box, plan);
    const FeatureMap& feature_map = params.levels[box.level];
    const PatchGroups<coord_t> groups(params, box, plan);
    const int64_t slab = grid.slab(i) * grid.slab_channels;
    const int32_t channels =
        static_cast<int32_t>(min_of(grid.slab_channels, params.channels - slab));
    const feature_t* from = static_cast<const feature_t*>(feature_map.data) +
                            box.geometry.batch * feature_map.image_stride +
                            slab * feature_map.channel_stride;
    feature_t* to = static_cast<feature_t*>(output.data) + box.index * output.box_stride +
                    slab * output.channel_stride;
    const int32_t step = num_warps() * kChannelsPerLane;
    const int32_t channel_groups = static_cast<int32_t>(ceil_div(channels, kChannelsPerLane));
    // If a bin has several patches, its sums stay in registers, so a warp makes one pass over the
    // patches per group of channels.
    const int32_t at_once = plan.whole_bins ? channels : step;
    for (int32_t group = grid.share(i); group < groups.count(); group += grid.shares) {
      for (int32_t first = 0; first < channels; first += at_once) {
        acc_t sum[kChannelsPerLane] = {};
        groups.for_each_patch(group, [&](const Patch& patch, bool is_first, bool is_last) {
          fill_tables(params, box, patch, tables);
          if (lane_index() == 0) {
            const Range<int32_t> bins = bins_of_warp(patch, plan, channel_groups);
            staged[warp_index()].bins = bins;
          }
          fill_taps(feature_map, box.geometry.share, patch, plan.taps_per_bin(), tables, taps);
          const BinsInLanes<feature_t, acc_t, coord_t> work{
              patch, tables, taps, plan.taps_per_bin(), is_first, is_last};
          const int32_t last = min_of(first + at_once, channels);
          const auto pool = [&](auto lanes) {
#pragma unroll 1
            for (int32_t c = first + warp_index() % channel_groups * kChannelsPerLane; c < last;
                 c += step) {
              work.template pool<lanes>(
                  from + c * feature_map.channel_stride, feature_map.channel_stride,
                  min_of(last - c, kChannelsPerLane), sum, staged[warp_index()], output,
                  to + c * output.channel_stride);
            }
          };
          // Teams have enough lanes for all taps of most bins.
          if (plan.taps_per_bin() > kWarp) {
            pool(std::integral_constant<int32_t, kWarp>{});
          } else {
            pool(std::integral_constant<int32_t, kTeam>{});
          }
        });
      }
    }
    __syncthreads();
  }
}

}  // namespace shape_roi_align::cuda
