// Tests how a compiler rounds (1) the values in csrc/geometry.h that decide what a sample reads and
// (2) a * b + c. On the host: prints both for random boxes, one line each. With nvcc -x cu:
// compiles a kernel for each.
#ifndef __CUDACC__
#define __host__
#define __device__
#endif

#include "geometry.h"

using namespace shape_roi_align;

template <typename T>
struct Sample {
  T coordinate;
  Interpolation<T> features;
  Interpolation<T> map;
};

template <typename T>
__host__ __device__ Sample<T> make_sample(
    const T* box, T scale, const SamplingOptions& options, int32_t bin, int32_t i, int32_t size) {
  const Axis<T> axis = make_box_geometry<T>(box, scale, 1, options).y;
  const T at = sample_coordinate(axis, bin, i);
  const T place = sample_uv(axis, bin, i);
  return {at, interpolate(at, size), interpolate_prob_map(place, size, options.map_aligned)};
}

template <typename T>
__host__ __device__ T multiply_and_add(const T* box) {
  return box[2] * box[4] + box[3];
}

#ifdef __CUDACC__

template <typename T>
__global__ void sample_kernel(
    const T* box, T scale, SamplingOptions options, int32_t bin, int32_t i, int32_t size,
    Sample<T>* to) {
  *to = make_sample(box, scale, options, bin, i, size);
}
template <typename T>
__global__ void multiply_and_add_kernel(const T* box, T* to) {
  *to = multiply_and_add(box);
}

template __global__ void sample_kernel(
    const float*, float, SamplingOptions, int32_t, int32_t, int32_t, Sample<float>*);
template __global__ void sample_kernel(
    const double*, double, SamplingOptions, int32_t, int32_t, int32_t, Sample<double>*);
template __global__ void multiply_and_add_kernel(const float*, float*);
template __global__ void multiply_and_add_kernel(const double*, double*);

#else

#include <cstdio>
#include <random>

template <typename T>
void print(bool samples) {
  std::minstd_rand random;
  const auto coordinate = [&] {  // in [-20, 44); rounded to T only once, fused or not
    return static_cast<T>(random() % (1 << 26)) / (1 << 20) - 20;
  };
  for (int32_t k = 0; k < 2000; ++k) {
    const T first = coordinate();
    const T box[] = {0, 0, first, 1, first + std::fabs(coordinate())};
    const SamplingOptions options{7, 7, 3, k % 2 == 0, k % 4 < 2, true};
    const Sample<T> s = make_sample(box, T(0.3), options, 1 + k % 6, k % 3, 12);
    if (samples) {
      std::printf(
          "%a %d %a %d %a ", double(s.coordinate), s.features.low, double(s.features.high_weight),
          s.map.low, double(s.map.high_weight));
    } else {
      std::printf("%a ", double(multiply_and_add(box)));
    }
  }
}

int main() {
  for (const bool samples : {true, false}) {
    print<float>(samples);
    print<double>(samples);
    std::puts("");
  }
}

#endif
