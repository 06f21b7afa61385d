#include "call.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "oracle.h"

namespace fuzz {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

constexpr int64_t kChannels[] = {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 40, 64, 70, 0};
constexpr double kScales[] = {1, 0.5, 0.25, 0.0625, 0.3, 2, 1e-3, -0.5, 0, 1e30, 0x1p-1074, kNan};
constexpr double kBorderCoordinates[] = {
    kNan, kInfinity, -kInfinity, -0.0, 0,         1e30,    -1e30,  1e-40, 0x1p-1074,
    1e9,  -1e9,      1e5,        -1e5, 16777217., 0x1p31,  0x1p30, 1e18,  3.4028235e38,
    -1,   0.5,       -0.5,       2e5,  0x1p53,    -0x1p31, 1e308,  64,    -3.4028235e38};
constexpr double kBatchIndices[] = {-1, 0.5, -0.5, kNan, 1e30, -1e30, 255, -0.0};

ScalarType feature_type(Bytes& bytes) {
  return static_cast<ScalarType>(bytes.byte() % 4);
}

// Kinds of values that fill a tensor.
enum class Fill { kDyadic, kPositive, kSigned, kSparse, kSubnormal, kLarge, kNotFinite };

double draw(Fill fill, Random& random, const Precision& precision) {
  switch (fill) {
    case Fill::kDyadic:
      return random.integer(-128, 128) / 64.0;
    case Fill::kPositive:
      return random.integer(32, 96) / 64.0;
    case Fill::kSigned:
      return 2 * random.uniform() - 1;
    case Fill::kSparse:
      return random.integer(0, 3) > 0 ? (random.integer(0, 1) == 0 ? 0.0 : -0.0) : random.uniform();
    case Fill::kSubnormal:
      return precision.smallest * random.integer(-100, 100);
    case Fill::kLarge:
      return precision.largest * (random.uniform() - 0.5) / 64;
    case Fill::kNotFinite:
      return random.integer(0, 7) > 0 ? random.uniform()
                                      : (random.integer(0, 1) == 0 ? kNan : kInfinity);
  }
  return 0;
}

void fill(Tensor& tensor, Fill how, Random& random) {
  const Precision precision = precision_of(tensor.type);
  for (int64_t at = 0; at < tensor.stored(); ++at) {
    tensor.set_stored(at, draw(how, random, precision));
  }
}

// A tensor that is contiguous, channels_last, or has any other strides: dimensions in any order,
// gaps, expanded dimensions (stride 0).
Tensor make_tensor(Bytes& bytes, ScalarType type, const Four& sizes) {
  const uint8_t kind = bytes.byte();
  const int64_t offset = kind % 3 == 2 ? bytes.integer(1, 9) : 0;
  if (kind < 96) {
    return {type, sizes, dense_strides(sizes, kContiguous), offset};
  }
  if (kind < 180) {
    return {type, sizes, dense_strides(sizes, kChannelsLast), offset};
  }
  std::array<int, 4> order{0, 1, 2, 3};
  for (int left = bytes.integer(0, 23); left > 0; --left) {
    std::next_permutation(order.begin(), order.end());
  }
  const uint8_t expanded = kind < 215 ? 0 : bytes.byte();
  Four strides;
  int64_t next = 1;
  for (const int dim : order) {
    const uint8_t gap = bytes.byte();
    const int64_t step = gap % 8 == 7 ? 2 : 1;
    const bool is_expanded = (expanded >> dim) % 2 != 0;
    strides[dim] = is_expanded ? 0 : next * step;
    next = is_expanded ? next : next * step * std::max<int64_t>(sizes[dim], 1) + gap / 64;
  }
  return {type, sizes, strides, offset};
}

// A box coordinate in image pixels, mostly on or near the feature map. scale: feature pixels per
// image pixel.
double make_coordinate(Bytes& bytes, double scale) {
  const uint8_t kind = bytes.byte();
  if (kind < 160) {
    const double on_map = (bytes.raw<uint16_t>() % 1024) / 16.0 - 16;
    return std::isnormal(scale) ? on_map / scale : on_map;
  }
  if (kind < 200) {
    return bytes.raw<int8_t>() / 2.0;
  }
  return kind < 225 ? bytes.raw<float>() : bytes.choice(kBorderCoordinates);
}

void make_boxes(Bytes& bytes, Call& call) {
  Params& params = call.params;
  const int64_t num_rois = params.num_rois;
  call.rois =
      Tensor(params.roi_type, {1, 1, num_rois, 5}, dense_strides({1, 1, num_rois, 5}, kContiguous));
  const bool has_levels = params.num_levels > 1 || bytes.flag();
  call.levels = Block(has_levels ? num_rois * int64_t(sizeof(int64_t)) : 0);
  int64_t* levels = reinterpret_cast<int64_t*>(call.levels.data());
  for (int64_t k = 0; k < num_rois; ++k) {
    const uint8_t kind = bytes.byte();
    const bool has_bad_level = has_levels && kind == 255;
    const int64_t level = has_bad_level ? bytes.raw<int64_t>() : (kind / 16) % params.num_levels;
    if (has_levels) {
      levels[k] = level;
    }
    const bool is_level = level >= 0 && level < params.num_levels;
    const double scale = is_level ? params.levels[level].spatial_scale : 1;
    const bool has_image = params.num_images > 0;
    const double batch = kind % 16 == 15 || !has_image ? bytes.choice(kBatchIndices)
                                                       : double(kind % 16 % params.num_images);
    const double x = make_coordinate(bytes, scale);
    const double y = make_coordinate(bytes, scale);
    const bool is_point = kind % 16 == 14;
    const double roi[] = {
        batch, x, y, is_point ? x : make_coordinate(bytes, scale),
        is_point ? y : make_coordinate(bytes, scale)};
    for (int i = 0; i < 5; ++i) {
      call.rois.set_stored(5 * k + i, roi[i]);
    }
    const double image = std::trunc(call.rois.get_stored(5 * k));
    call.has_bad_box |= !is_level || !(image >= 0 && image < double(params.num_images));
  }
  params.rois = call.rois.data();
  params.roi_levels = has_levels ? levels : nullptr;
}

void bound_samples(Params& params, double most_steps) {
  while (oracle_steps(params) > most_steps && params.options.sampling_ratio != 1) {
    const int32_t ratio = params.options.sampling_ratio;
    params.options.sampling_ratio = ratio > 1 ? ratio / 2 : 2;
  }
}

Fill make_fill(Bytes& bytes, Call& call) {
  const uint8_t kind = bytes.byte();
  if (call.check == Check::kAdjoint) {
    return Fill::kPositive;
  }
  if (kind < 180) {
    return static_cast<Fill>(kind % 4);
  }
  const Fill fill = static_cast<Fill>(kind % 7);
  if (fill == Fill::kNotFinite) {
    call.check = Check::kOnlyMemory;
  }
  return fill;
}

}  // namespace

bool Call::asks_any_level() const {
  return std::find(asks_level.begin(), asks_level.end(), true) != asks_level.end();
}

bool Call::is_channels_last() const {
  return std::all_of(inputs.begin(), inputs.end(), [](const Tensor& input) {
    return input.strides == dense_strides(input.sizes, kChannelsLast) &&
           input.strides != dense_strides(input.sizes, kContiguous);
  });
}

Call make_call(Bytes& bytes, const Limits& limits) {
  Call call;
  Params& params = call.params;
  const uint8_t types = bytes.byte();
  params.feature_type = static_cast<ScalarType>(types % 4);
  params.roi_type = types / 4 % 4 == 0 ? ScalarType::kDouble : ScalarType::kFloat;
  params.options.aligned = types / 16 % 2 != 0;
  params.options.map_aligned = types / 32 % 2 != 0;
  params.options.average = types / 64 % 2 == 0;
  const bool has_prob_maps = types / 128 == 0;
  const uint8_t sizes = bytes.byte();
  params.num_levels = sizes < 160 ? 1 : sizes < 248 ? 2 + sizes % 2 : 1 + sizes % kMaxLevels;
  params.num_images = sizes % 16 == 15 ? 0 : 1 + sizes % 3;
  params.channels = bytes.choice(kChannels);
  params.options.pooled_height = bytes.integer(1, limits.bins);
  params.options.pooled_width = bytes.integer(1, limits.bins);
  const uint8_t ratio = bytes.byte();
  params.options.sampling_ratio = ratio < 80 ? -1 : ratio < 230 ? 1 + ratio % 5 : 1 << ratio % 16;
  const uint8_t boxes = bytes.byte();
  params.num_rois = std::min<int64_t>(boxes < 250 ? boxes % 7 : boxes % 70, limits.num_rois);

  int64_t pixels = 0;
  for (int32_t l = 0; l < params.num_levels; ++l) {
    FeatureMap& level = params.levels[l];
    level.height = bytes.integer(0, limits.height);
    level.width = bytes.integer(0, limits.width);
    const uint8_t scale = bytes.byte();
    level.spatial_scale = scale < 160   ? kScales[scale % 4]
                          : scale < 250 ? bytes.choice(kScales)
                                        : bytes.raw<double>();
    pixels += int64_t(level.height) * level.width;
  }
  const int64_t bins = params.options.pooled_height * params.options.pooled_width;
  while (params.channels > 1 &&
         params.channels * std::max(params.num_images * pixels, params.num_rois * bins) >
             limits.elements) {
    params.channels -= params.channels / 2;
  }
  if (has_prob_maps) {
    params.prob_map_type = feature_type(bytes);
    params.prob_map_height = bytes.integer(1, 12);
    params.prob_map_width = bytes.integer(1, 20);
  }
  make_boxes(bytes, call);
  bound_samples(params, limits.adjoint_steps);
  call.check = oracle_steps(params) > limits.oracle_steps ? Check::kAdjoint : Check::kOracle;

  const uint8_t asked = bytes.byte();
  call.asks_rois = asked % 2 == 0;
  call.asks_prob_maps = has_prob_maps && asked / 2 % 2 == 0;
  for (int32_t l = 0; l < params.num_levels; ++l) {
    call.asks_level.push_back(asked < 128 || asked >> (2 + l % 5) % 2 == 0);
  }
  Random random(bytes.raw<uint32_t>());
  const Fill features = make_fill(bytes, call);
  const Fill probabilities = make_fill(bytes, call);
  const Fill gradients = make_fill(bytes, call);
  for (int32_t l = 0; l < params.num_levels; ++l) {
    FeatureMap& level = params.levels[l];
    const Tensor& input = call.inputs.emplace_back(make_tensor(
        bytes, params.feature_type,
        {params.num_images, params.channels, level.height, level.width}));
    fill(call.inputs.back(), features, random);
    level.data = input.data();
    level.image_stride = input.strides[0];
    level.channel_stride = input.strides[1];
    level.row_stride = input.strides[2];
    level.column_stride = input.strides[3];
  }
  const Four map_sizes{
      has_prob_maps ? params.num_rois : 0, 1, params.prob_map_height, params.prob_map_width};
  call.prob_maps = Tensor(params.prob_map_type, map_sizes, dense_strides(map_sizes, kContiguous));
  fill(call.prob_maps, probabilities, random);
  params.prob_maps = has_prob_maps ? call.prob_maps.data() : nullptr;
  call.grad = make_tensor(
      bytes, params.feature_type,
      {params.num_rois, params.channels, params.options.pooled_height,
       params.options.pooled_width});
  fill(call.grad, gradients, random);
  if (std::getenv("FUZZ_DESCRIBE") != nullptr) {
    describe(call);
  }
  return call;
}

PooledTensor to_pooled_tensor(const Tensor& tensor) {
  return {
      tensor.data(), tensor.strides[0], tensor.strides[1], tensor.strides[2], tensor.strides[3]};
}

Results::Results(const Call& call, bool zeroed) {
  const Params& params = call.params;
  const auto empty = [](const Tensor& like, bool is_asked, const std::array<int, 4>& order) {
    Four sizes = like.sizes;
    if (!is_asked) {
      sizes[0] = 0;
    }
    return Tensor(like.type, sizes, dense_strides(sizes, order));
  };
  output = empty(call.grad, true, call.is_channels_last() ? kChannelsLast : kContiguous);
  for (int32_t l = 0; l < params.num_levels; ++l) {
    const Tensor& input = call.inputs[l];
    const bool by_channels = input.strides == dense_strides(input.sizes, kChannelsLast) &&
                             input.strides != dense_strides(input.sizes, kContiguous);
    features.push_back(empty(input, call.asks_level[l], by_channels ? kChannelsLast : kContiguous));
  }
  prob_maps = empty(call.prob_maps, call.asks_prob_maps, kContiguous);
  rois = empty(call.rois, call.asks_rois, kContiguous);
  if (zeroed) {
    std::memset(prob_maps.block.data(), 0, prob_maps.block.bytes());
    std::memset(rois.block.data(), 0, rois.block.bytes());
  }
}

FeatureGradients Results::feature_gradients(const Call& call) const {
  FeatureGradients gradients{};
  for (int32_t l = 0; l < call.params.num_levels; ++l) {
    if (call.asks_level[l]) {
      const Tensor& gradient = features[l];
      gradients.levels[l] = call.params.levels[l];
      gradients.levels[l].data = gradient.data();
      gradients.levels[l].image_stride = gradient.strides[0];
      gradients.levels[l].channel_stride = gradient.strides[1];
      gradients.levels[l].row_stride = gradient.strides[2];
      gradients.levels[l].column_stride = gradient.strides[3];
    }
  }
  return gradients;
}

std::vector<const Tensor*> Results::all() const {
  std::vector<const Tensor*> tensors{&output, &prob_maps, &rois};
  for (const Tensor& gradient : features) {
    tensors.push_back(&gradient);
  }
  return tensors;
}

std::vector<std::vector<uint8_t>> copy_operands(const Call& call) {
  std::vector<std::vector<uint8_t>> copies{
      call.rois.block.copy(), call.levels.copy(), call.prob_maps.block.copy(),
      call.grad.block.copy()};
  for (const Tensor& input : call.inputs) {
    copies.push_back(input.block.copy());
  }
  return copies;
}

void describe(const Call& call) {
  const Params& params = call.params;
  const auto& options = params.options;
  std::fprintf(
      stderr, "types of features %d, boxes %d, maps %d; N %lld, C %lld, K %lld\n",
      int(params.feature_type), int(params.roi_type), int(params.prob_map_type),
      static_cast<long long>(params.num_images), static_cast<long long>(params.channels),
      static_cast<long long>(params.num_rois));
  std::fprintf(
      stderr,
      "bins %d x %d, sampling_ratio %d, aligned %d, map_aligned %d, average %d, maps %d x %d\n",
      options.pooled_height, options.pooled_width, options.sampling_ratio, options.aligned,
      options.map_aligned, options.average, params.prob_map_height, params.prob_map_width);
  const auto print_strides = [](const char* name, const Tensor& tensor) {
    std::fprintf(
        stderr, "%s: strides %lld %lld %lld %lld\n", name,
        static_cast<long long>(tensor.strides[0]), static_cast<long long>(tensor.strides[1]),
        static_cast<long long>(tensor.strides[2]), static_cast<long long>(tensor.strides[3]));
  };
  for (int32_t l = 0; l < params.num_levels; ++l) {
    const FeatureMap& level = params.levels[l];
    std::fprintf(
        stderr, "level %d: %d x %d, scale %.17g\n", l, level.height, level.width,
        level.spatial_scale);
    print_strides("  features", call.inputs[l]);
  }
  print_strides("grad", call.grad);
  for (int64_t k = 0; k < params.num_rois; ++k) {
    std::fprintf(
        stderr, "box %lld: level %lld,", static_cast<long long>(k),
        static_cast<long long>(params.roi_levels == nullptr ? 0 : params.roi_levels[k]));
    for (int i = 0; i < 5; ++i) {
      std::fprintf(stderr, " %.17g", call.rois.get_stored(5 * k + i));
    }
    std::fprintf(stderr, "\n");
  }
}

void fail(const Call& call, const char* what) {
  std::fprintf(stderr, "FAILED: %s\n", what);
  describe(call);
  std::abort();
}

}  // namespace fuzz
