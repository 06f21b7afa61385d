#include "oracle.h"

#include <algorithm>
#include <cmath>
#include <optional>

namespace fuzz {
namespace {

using shape_roi_align::SamplingOptions;

struct Tap {
  int64_t index;
  double weight;
  double slope;  // d(weight)/d(coordinate)
};

// The two taps of a coordinate, clamped to [0, size - 1]. At the border, one tap has weight 0.
struct Taps {
  Tap low;
  Tap high;
};

struct Sample {
  int32_t bin;
  double position;  // u or v: in the box, in (0, 1)
  Taps pixels;
  Taps cells;
};

struct Axis {
  std::vector<Sample> samples;  // those that read the feature map
  double all_samples;           // per bin
  bool extent_varies;
};

template <typename T>
Taps taps_at(T coordinate, int32_t size) {
  const T last = T(size - 1);
  if (coordinate < T(0)) {
    return {{0, 1, 0}, {0, 0, 0}};
  }
  if (coordinate >= last) {
    return {{size - 1, 1, 0}, {size - 1, 0, 0}};
  }
  const double low = std::floor(double(coordinate));
  const double fraction = double(coordinate) - low;
  return {{int64_t(low), 1 - fraction, -1}, {int64_t(low) + 1, fraction, 1}};
}

// The positions of the samples of a box along one axis. of() returns none if the box is too large
// or not finite. Edges are in image pixels. This file is compiled without fused multiply-adds.
template <typename T>
struct Placement {
  T start;
  T extent;
  double samples;  // per bin
  bool extent_varies;

  static std::optional<Placement> of(
      T edge1, T edge2, T scale, int32_t bins, const SamplingOptions& options) {
    constexpr double kMaxSamples = 1 << 30;
    const T offset = options.aligned ? T(0.5) : T(0);
    Placement place;
    place.start = edge1 * scale - offset;
    place.extent = (edge2 * scale - offset) - place.start;
    if (!std::isfinite(place.start) || !std::isfinite(place.extent)) {
      return std::nullopt;
    }
    place.extent_varies = options.aligned || place.extent >= T(1);
    if (!place.extent_varies) {
      place.extent = T(1);
    }
    place.samples = options.sampling_ratio > 0
                        ? double(options.sampling_ratio)
                        : std::max(0.0, double(std::ceil(place.extent / T(bins))));
    return place.samples <= kMaxSamples ? std::optional(place) : std::nullopt;
  }
};

template <typename T>
Axis make_axis(
    const Placement<T>& place, int32_t bins, int32_t size, int32_t map_size,
    const SamplingOptions& options) {
  Axis axis{{}, place.samples, place.extent_varies};
  const T bin_size = place.extent / T(bins);
  const T samples = T(place.samples);
  for (int32_t bin = 0; bin < bins; ++bin) {
    for (int64_t i = 0; i < int64_t(place.samples); ++i) {
      const T offset_in_bin = (T(i) + T(0.5)) * bin_size / samples;
      const T coordinate = (place.start + T(bin) * bin_size) + offset_in_bin;
      if (!(coordinate >= T(-1) && coordinate <= T(size))) {
        continue;
      }
      const T position = (T(bin) + (T(i) + T(0.5)) / samples) / T(bins);
      const T cell = position * T(map_size) - (options.map_aligned ? T(0.5) : T(0));
      axis.samples.push_back(
          {bin, double(position), taps_at(coordinate, size),
           map_size > 0 ? taps_at(cell, map_size) : Taps{}});
    }
  }
  return axis;
}

struct Box {
  int64_t index;
  int64_t level;
  int64_t image;
  double scale;
  double share;
  Axis y;
  Axis x;
};

void add(Expected& to, double term, double magnitude, int64_t terms = 1) {
  to.value += term;
  to.magnitude += magnitude;
  to.terms += terms;
}

class Oracle {
 public:
  explicit Oracle(const Call& call) : call_(call), params_(call.params) {
    const auto resize = [](std::vector<Expected>& expected, const Tensor& tensor) {
      expected.resize(tensor.count());
    };
    resize(expected_.output, call.grad);
    for (const Tensor& input : call.inputs) {
      resize(expected_.features.emplace_back(), input);
    }
    resize(expected_.prob_maps, call.prob_maps);
    resize(expected_.rois, call.rois);
  }

  ExpectedResults expect() && {
    const bool is_double =
        params_.feature_type == ScalarType::kDouble || params_.roi_type == ScalarType::kDouble;
    for (int64_t k = 0; k < params_.num_rois; ++k) {
      const std::optional<Box> box = is_double ? make_box<double>(k) : make_box<float>(k);
      if (box) {
        pool(*box);
      }
    }
    return std::move(expected_);
  }

 private:
  const Call& call_;
  const Params& params_;
  ExpectedResults expected_;

  // Returns none for a box without samples.
  template <typename T>
  std::optional<Box> make_box(int64_t k) const {
    const int64_t level = params_.roi_levels == nullptr ? 0 : params_.roi_levels[k];
    const double batch = std::trunc(call_.rois.get_stored(5 * k));
    if (level < 0 || level >= params_.num_levels ||
        !(batch >= 0 && batch < double(params_.num_images))) {
      return std::nullopt;
    }
    const FeatureMap& map = params_.levels[level];
    const SamplingOptions& options = params_.options;
    const auto edge = [&](int i) { return T(call_.rois.get_stored(5 * k + i)); };
    const T scale = T(map.spatial_scale);
    const auto x = Placement<T>::of(edge(1), edge(3), scale, options.pooled_width, options);
    const auto y = Placement<T>::of(edge(2), edge(4), scale, options.pooled_height, options);
    if (!x || !y || x->samples == 0 || y->samples == 0 || map.height == 0 || map.width == 0) {
      return std::nullopt;
    }
    const double share = options.average ? 1 / (x->samples * y->samples) : 1;
    return Box{
        k,
        level,
        static_cast<int64_t>(batch),
        double(scale),
        share,
        make_axis(*y, options.pooled_height, map.height, params_.prob_map_height, options),
        make_axis(*x, options.pooled_width, map.width, params_.prob_map_width, options)};
  }

  void pool(const Box& box) {
    for (const Sample& y : box.y.samples) {
      for (const Sample& x : box.x.samples) {
        pool(box, y, x);
      }
    }
  }

  void pool(const Box& box, const Sample& y, const Sample& x) {
    const Tensor& input = call_.inputs[box.level];
    const auto [images, channels, height, width] = input.sizes;
    const auto [pooled_height, pooled_width] =
        std::pair(params_.options.pooled_height, params_.options.pooled_width);
    std::vector<Expected>& grad_features = expected_.features[box.level];
    double p = 1;
    double p_magnitude = 1;
    if (params_.prob_maps != nullptr) {
      p = p_magnitude = 0;
      for_each_tap(y.cells, x.cells, [&](const Tap& v, const Tap& u) {
        const double cell = call_.prob_maps.get(box.index, 0, v.index, u.index);
        p += v.weight * u.weight * cell;
        p_magnitude += v.weight * u.weight * std::fabs(cell);
      });
    }
    // d(loss)/d(p), d(loss)/db and d(loss)/da of the sample.
    Expected of_p;
    Expected of_b;
    Expected of_a;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t bin =
          ((box.index * channels + c) * pooled_height + y.bin) * pooled_width + x.bin;
      const double g = box.share * call_.grad.get(box.index, c, y.bin, x.bin);
      for_each_tap(y.pixels, x.pixels, [&](const Tap& b, const Tap& a) {
        const double pixel = input.get(box.image, c, b.index, a.index);
        const double weight = b.weight * a.weight;
        add(expected_.output[bin], box.share * p * weight * pixel,
            box.share * p_magnitude * weight * std::fabs(pixel));
        const int64_t at = ((box.image * channels + c) * height + b.index) * width + a.index;
        add(grad_features[at], p * weight * g, p_magnitude * weight * std::fabs(g));
        const double product = g * pixel;
        const double magnitude = std::fabs(product);
        add(of_p, weight * product, weight * magnitude);
        add(of_b, p * b.slope * a.weight * product,
            p_magnitude * std::fabs(b.slope) * a.weight * magnitude);
        add(of_a, p * b.weight * a.slope * product,
            p_magnitude * b.weight * std::fabs(a.slope) * magnitude);
      });
    }
    if (params_.prob_maps != nullptr) {
      for_each_tap(y.cells, x.cells, [&](const Tap& v, const Tap& u) {
        const double weight = v.weight * u.weight;
        const int64_t cell =
            (box.index * params_.prob_map_height + v.index) * params_.prob_map_width + u.index;
        add(expected_.prob_maps[cell], weight * of_p.value, weight * of_p.magnitude, of_p.terms);
      });
    }
    add_to_edges(box, 1, of_a, box.x.extent_varies ? x.position : 0);
    add_to_edges(box, 2, of_b, box.y.extent_varies ? y.position : 0);
  }

  // first: index of the low edge in the box; the high edge is at first + 2.
  void add_to_edges(const Box& box, int64_t first, const Expected& upstream, double position) {
    Expected* edges = expected_.rois.data() + 5 * box.index;
    const double magnitude = std::fabs(box.scale) * upstream.magnitude;
    add(edges[first], box.scale * (1 - position) * upstream.value, magnitude, upstream.terms);
    add(edges[first + 2], box.scale * position * upstream.value, magnitude, upstream.terms);
  }

  template <typename F>
  static void for_each_tap(const Taps& y, const Taps& x, F f) {
    f(y.low, x.low);
    f(y.low, x.high);
    f(y.high, x.low);
    f(y.high, x.high);
  }
};

// The number of samples along an axis: all, and an upper bound on those that read pixels.
struct Counts {
  double all = 0;
  double visible = 0;
};

Counts count(const std::optional<Placement<double>>& place, int32_t bins, int32_t size) {
  if (!place) {
    return {};
  }
  const double all = bins * place->samples;
  const double spacing = std::fabs(place->extent) / std::max(all, 1.0);
  // A margin for the spacing of float coordinates: kernels visit more samples than read pixels.
  const double margin = 2 + 1e-6 * (std::fabs(place->start) + std::fabs(place->extent));
  const double most = spacing > 0 ? (size + 2 * margin) / spacing + 2 * bins : all;
  return {all, std::min(all, most)};
}

}  // namespace

ExpectedResults expect(const Call& call) {
  return Oracle(call).expect();
}

double oracle_steps(const Params& params) {
  const SamplingOptions& options = params.options;
  double steps = 0;
  for (int64_t k = 0; k < params.num_rois; ++k) {
    const int64_t level = params.roi_levels == nullptr ? 0 : params.roi_levels[k];
    if (level < 0 || level >= params.num_levels) {
      continue;
    }
    double roi[5];
    for (int i = 0; i < 5; ++i) {
      roi[i] = params.roi_type == ScalarType::kDouble
                   ? static_cast<const double*>(params.rois)[5 * k + i]
                   : static_cast<const float*>(params.rois)[5 * k + i];
    }
    const FeatureMap& map = params.levels[level];
    const double scale = map.spatial_scale;
    const auto place = [&](int first, int32_t bins) {
      return Placement<double>::of(roi[first], roi[first + 2], scale, bins, options);
    };
    const Counts x = count(place(1, options.pooled_width), options.pooled_width, map.width);
    const Counts y = count(place(2, options.pooled_height), options.pooled_height, map.height);
    steps += x.visible * y.visible * double(4 * params.channels + 4) + x.visible + y.visible;
    // The oracle visits every sample of an axis; the kernels do not.
    steps += std::min(x.all + y.all, 1e5);
  }
  return steps;
}

}  // namespace fuzz
