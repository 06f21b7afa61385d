// Checks the adjoint identity of the CUDA kernels, <op(x, p), g> = <x, dx> = <p, dp>, with samples
// on the borders of the feature map and random fusing of multiplications and additions. usage:
// adjoint rounded|open CALLS. Prints the number of images that violate the identity: first for a
// call with a known box, then for CALLS random calls. open: rounded_product does not round.
#include "contracted.h"
#include "cuda_on_host.h"

#include "cuda/launch_map_and_box_gradient.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>

using namespace shape_roi_align;

namespace {

constexpr int64_t kImages = 8;
constexpr int64_t kBoxesPerImage = 8;
constexpr int64_t kRois = kImages * kBoxesPerImage;
constexpr int64_t kChannels = 2;
constexpr int32_t kMapSize = 5;
// Above the effect of rounding, below the effect of a sample that only one side reads.
constexpr double kTolerance = 1e-5;

std::minstd_rand engine;
double uniform(double low, double high) {
  return std::uniform_real_distribution<double>(low, high)(engine);
}
int32_t integer(int32_t low, int32_t high) {
  return std::uniform_int_distribution<int32_t>(low, high)(engine);
}

struct Setting {
  SamplingOptions options;
  int32_t height;
  int32_t width;
  double spatial_scale;
};

struct Edges {
  double low;
  double high;
};

// Edges of a box with one sample on a border of the map (-1 or size), up to rounding.
Edges edges_on_border(const Setting& setting, int32_t bins, int32_t size) {
  const SamplingOptions& options = setting.options;
  const bool adaptive = options.sampling_ratio <= 0;
  const int32_t samples = adaptive ? integer(1, 6) : options.sampling_ratio;
  double extent = adaptive ? bins * (samples - uniform(0, 0.9)) : uniform(1, 1.5 * size + 2);
  if (options.aligned && !adaptive && integer(0, 3) == 0) {
    extent = -extent;
  }
  const double sample = integer(0, samples - 1) + 0.5;
  const double place = (integer(0, bins - 1) + sample / samples) / bins;
  const double border = integer(0, 1) == 0 ? -1 : size;
  const double start = border - place * extent + (options.aligned ? 0.5 : 0);
  return {start / setting.spatial_scale, (start + extent) / setting.spatial_scale};
}

Edges edges_inside(const Setting& setting, int32_t size) {
  const double start = uniform(-2, size - 1);
  return {start / setting.spatial_scale, (start + uniform(1, size)) / setting.spatial_scale};
}

Setting random_setting() {
  constexpr int32_t kRatios[] = {-1, 1, 2, 3, 5};
  constexpr double kScales[] = {1, 0.25, 0.3};
  SamplingOptions options{integer(1, 7), integer(1, 7), kRatios[integer(0, 4)], false, false, true};
  if (integer(0, 9) == 0) {  // a bin in several patches
    options = {2, 1, cuda::kMaxBinSamples + 3, false, false, true};
  }
  options.aligned = integer(0, 1) != 0;
  options.map_aligned = integer(0, 1) != 0;
  options.average = integer(0, 1) != 0;
  return {options, integer(2, 20), integer(2, 20), kScales[integer(0, 2)]};
}

template <typename T>
std::vector<T> random_boxes(const Setting& setting) {
  std::vector<T> rois;
  for (int64_t k = 0; k < kRois; ++k) {
    const bool along_y = integer(0, 1) != 0;
    const bool along_x = !along_y || integer(0, 1) != 0;
    const Edges y = along_y
                        ? edges_on_border(setting, setting.options.pooled_height, setting.height)
                        : edges_inside(setting, setting.height);
    const Edges x = along_x ? edges_on_border(setting, setting.options.pooled_width, setting.width)
                            : edges_inside(setting, setting.width);
    const double roi[] = {double(k / kBoxesPerImage), x.low, y.low, x.high, y.high};
    rois.insert(rois.end(), std::begin(roi), std::end(roi));
  }
  return rois;
}

// A box with a sample at y = 80 that is inside with only one of the two roundings.
constexpr Setting kKnownSetting{{7, 7, -1, false, false, true}, 80, 16, 1};
template <typename T>
std::vector<T> known_boxes() {
  std::vector<T> rois;
  for (int64_t k = 0; k < kRois; ++k) {
    const double roi[] = {double(k / kBoxesPerImage), 2, 43.22079849243164, 9, 82.32779693603516};
    rois.insert(rois.end(), std::begin(roi), std::end(roi));
  }
  return rois;
}

std::vector<float> positive(size_t size) {
  std::vector<float> values(size);
  for (float& value : values) {
    value = static_cast<float>(uniform(0.5, 1.5));
  }
  return values;
}

template <typename A, typename B>
double dot(const std::vector<A>& a, const std::vector<B>& b, int64_t image) {
  const size_t size = a.size() / kImages;
  double sum = 0;
  for (size_t i = image * size; i < (image + 1) * size; ++i) {
    sum += double(a[i]) * double(b[i]);
  }
  return sum;
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, const Arguments&... arguments) {
  cuda_on_host::launch(
      {static_cast<unsigned>(blocks)}, {cuda::kWarp}, [&] { kernel(arguments...); });
}

// Counts the images that violate the identity. All tensors have channels innermost. checks_boxes:
// also counts them for tiles that check all boxes themselves.
template <typename T>
int64_t count_unequal(
    const Setting& setting, const std::vector<T>& rois, bool checks_boxes = false) {
  using Coordinate = cuda_on_host::Contracted<T>;
  const auto [options, height, width, spatial_scale] = setting;
  const int64_t row = width * kChannels;
  const int64_t pooled_row = options.pooled_width * kChannels;
  const int64_t pooled_box = options.pooled_height * pooled_row;
  std::vector<float> features = positive(kImages * height * row);
  std::vector<float> maps = positive(kRois * kMapSize * kMapSize);
  std::vector<float> grad = positive(kRois * pooled_box);
  std::vector<float> pooled(grad.size());
  std::vector<float> grad_features(features.size());
  std::vector<Coordinate> grad_maps(maps.size(), Coordinate(0));

  Params params{};
  params.levels[0] = {features.data(), height * row, 1,     row,
                      kChannels,       height,       width, spatial_scale};
  params.num_levels = 1;
  params.num_images = kImages;
  params.channels = kChannels;
  params.num_rois = kRois;
  params.rois = rois.data();
  params.prob_maps = maps.data();
  params.feature_type = params.prob_map_type = ScalarType::kFloat;
  params.roi_type = sizeof(T) == sizeof(double) ? ScalarType::kDouble : ScalarType::kFloat;
  params.prob_map_height = params.prob_map_width = kMapSize;
  params.options = options;
  const cuda::LaunchOptions launch_options{cuda::kWarp, cuda::kMaxBlocks, 1, 0};

  const PooledTensor of_pooled{pooled.data(), pooled_box, 1, pooled_row, kChannels};
  const cuda::BoxGrid grid = cuda::make_box_grid(params, kChannels, launch_options);
  launch(
      cuda::forward_bins_in_lanes_kernel<float, Coordinate>, grid.size(), params, of_pooled, grid);

  const PooledTensor of_grad{grad.data(), pooled_box, 1, pooled_row, kChannels};
  FeatureGradients gradients{};
  gradients.levels[0] = params.levels[0];
  gradients.levels[0].data = grad_features.data();
  const cuda::TileGrid tiles = cuda::make_tiles(params, gradients, launch_options);
  std::vector<cuda::Box<Coordinate>> boxes(kRois);
  std::vector<cuda::BoxesOfImage> images(kImages);
  std::vector<uint32_t> bits(tiles.count() * tiles.words);
  launch(
      cuda::touched_tiles_kernel<Coordinate>, kRois, params, tiles, boxes.data(), bits.data(),
      images.data());
  const int64_t size = tiles.count() * kImages;
  launch(
      cuda::gather_feature_gradient_kernel<float, Coordinate, 1>, size, params, of_grad, gradients,
      tiles, cuda::TouchedTiles<Coordinate>{boxes.data(), bits.data(), images.data()}, size);
  launch(
      cuda::map_and_box_gradient_kernel<float, Coordinate, 0>, grid.size(), params, of_grad, grid,
      cuda::ShareGradients<Coordinate>{grad_maps.data(), nullptr, 0, kMapSize * kMapSize});

  const auto count = [&] {
    int64_t unequal = 0;
    for (int64_t image = 0; image < kImages; ++image) {
      const double by_pooled = dot(pooled, grad, image);
      const double most = kTolerance * by_pooled;
      const bool is_equal = std::fabs(dot(features, grad_features, image) - by_pooled) <= most &&
                            std::fabs(dot(maps, grad_maps, image) - by_pooled) <= most;
      unequal += !is_equal;
    }
    return unequal;
  };
  int64_t unequal = count();
  if (checks_boxes) {
    const cuda::TileGrid small = cuda::make_tiles_of<1>(params, gradients, launch_options);
    const int64_t small_size = small.count() * kImages;
    launch(
        cuda::gather_feature_gradient_kernel<float, Coordinate, 1, cuda::kChannelsPerLane, 1>,
        small_size, params, of_grad, gradients, small, cuda::TouchedTiles<Coordinate>{},
        small_size);
    unequal += count();
  }
  return unequal;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s rounded|open CALLS\n", argv[0]);
    return 2;
  }
  cuda_on_host::products_are_rounded = std::string(argv[1]) == "rounded";
  const int64_t of_known = count_unequal<float>(kKnownSetting, known_boxes<float>());
  int64_t of_random = 0;
  for (int64_t call = 0; call < std::atoll(argv[2]); ++call) {
    const Setting setting = random_setting();
    const bool looks = cuda_on_host::products_are_rounded && call % 8 < 2;
    of_random += call % 4 == 0 ? count_unequal(setting, random_boxes<double>(setting), looks)
                               : count_unequal(setting, random_boxes<float>(setting), looks);
  }
  std::printf("%lld %lld\n", static_cast<long long>(of_known), static_cast<long long>(of_random));
}
