// How the threads of a block share the work of the kernels that pool features or their gradients.
//
// A block serves a tile: a few units (bins of one box, or pixels of one map) times a slab of
// channels. Its threads first compute, together, the entries of each unit, i.e. (weight, offset of
// the other side), a bounded number at a time into shared memory; then each thread runs its own
// channels of one unit through them. Weights thus cost once per tile, not once per channel.
#pragma once

#include "sampling.cuh"

namespace shape_roi_align::cuda {

constexpr int32_t kMaxThreads = 256;
constexpr int32_t kMinBlocks = 1;          // per multiprocessor: rather many registers than spills
constexpr int32_t kMaxEntries = 1024;      // in shared memory at a time; at least one per unit
constexpr int32_t kChannelsPerThread = 8;  // independent loads in flight

// Threads of a block as units x lanes. A thread serves channels lane, lane + lanes, ... of its
// unit.
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
    int64_t offset = first * channel_stride;
#pragma unroll
    for (int32_t i = 0; i < kChannelsPerThread; ++i) {
      if (i < count) {
        f(i, offset);
      }
      offset += step * channel_stride;
    }
  }
};

// Shared memory of the entries; unit u owns [u * per_unit, (u + 1) * per_unit) of offset and
// weight.
template <typename acc_t>
struct Entries {
  int64_t* offset;  // [kMaxEntries]
  acc_t* weight;    // [kMaxEntries]
};

// consume(weight, offset) of every entry of this thread's unit, in order. fill(unit, i, offset)
// returns the weight of entry i and sets its offset; counts(unit) is the number of entries. To be
// called by all threads of the block with counts visible to all of them. Ends with a barrier: what
// it reads of shared memory may be overwritten at once.
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

// Loads box k into shared memory that no thread is reading any more. Called by all threads of the
// block; ends with a barrier.
template <typename coord_t>
__device__ void load_box(const Params& params, int64_t k, Box<coord_t>& box) {
  if (threadIdx.x == 0) {
    const Box<coord_t> loaded = make_box<coord_t>(params, k);
    box = loaded;  // GCC's ThreadSanitizer would not see the result of a call stored here
  }
  __syncthreads();
}

}  // namespace shape_roi_align::cuda
