// shape_roi_align._C: build facts, the instruction set in use, and the kernels' own sampling
// geometry as NumPy arrays. It has no tensor operator and includes no torch header.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "build_info.h"
#include "cpu/simd/instruction_set.h"
#include "cpu/taps/box_taps.h"
#include "geometry.h"

namespace py = pybind11;
using namespace py::literals;

namespace shape_roi_align {
namespace {

using Box = std::array<double, 4>;
using ProbMap = py::array_t<double, py::array::c_style | py::array::forcecast>;

template <typename T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::dict build_info() {
  py::dict facts;
  for (const BuildFact& fact : kBuildFacts) {
    facts[fact.name] = fact.value;
  }
  return facts;
}

BoxGeometry<double> geometry_of(
    const Box& box, double spatial_scale, const SamplingOptions& options) {
  const double roi[5] = {0, box[0], box[1], box[2], box[3]};
  return make_box_geometry<double>(roi, spatial_scale, 1, options);
}

SamplingOptions check_options(
    std::pair<int32_t, int32_t> output_size, int32_t height, int32_t width, int32_t sampling_ratio,
    bool aligned, bool map_aligned, bool average) {
  if (output_size.first < 1 || output_size.second < 1 || height < 1 || width < 1) {
    throw py::value_error("output_size, height and width must be at least 1");
  }
  return {output_size.first, output_size.second, sampling_ratio, aligned, map_aligned, average};
}

py::dict axis_samples(const Axis<double>& axis, int32_t size) {
  std::vector<int32_t> bins;
  std::vector<double> coordinates;
  std::vector<double> uv;
  std::vector<bool> inside;
  for (int32_t bin = 0; bin < axis.bins; ++bin) {
    const Range<int32_t> visible = visible_samples(axis, bin, size);
    for (int32_t i = visible.begin; i < visible.end; ++i) {
      bins.push_back(bin);
      coordinates.push_back(sample_coordinate(axis, bin, i));
      uv.push_back(sample_uv(axis, bin, i));
      inside.push_back(is_inside(coordinates.back(), size));
    }
  }
  py::array_t<bool> reads(static_cast<py::ssize_t>(inside.size()));
  std::copy(inside.begin(), inside.end(), reads.mutable_data());
  return py::dict(
      "bin"_a = to_array(bins), "coordinate"_a = to_array(coordinates), "place"_a = to_array(uv),
      "inside"_a = reads, "samples_per_bin"_a = axis.samples);
}

py::dict sampling_points(
    const Box& box, int32_t height, int32_t width, std::pair<int32_t, int32_t> output_size,
    double spatial_scale, int32_t sampling_ratio, bool aligned) {
  const SamplingOptions options =
      check_options(output_size, height, width, sampling_ratio, aligned, aligned, true);
  const BoxGeometry<double> geometry = geometry_of(box, spatial_scale, options);
  if (!geometry.valid) {
    throw py::value_error("box is not finite or too large");
  }
  return py::dict(
      "y"_a = axis_samples(geometry.y, height), "x"_a = axis_samples(geometry.x, width));
}

py::dict box_taps(
    const Box& box, int32_t height, int32_t width, std::pair<int32_t, int32_t> output_size,
    double spatial_scale, int32_t sampling_ratio, bool aligned, std::optional<ProbMap> prob_map,
    std::optional<bool> map_aligned, bool average) {
  const SamplingOptions options = check_options(
      output_size, height, width, sampling_ratio, aligned, map_aligned.value_or(aligned), average);
  if (prob_map && (prob_map->ndim() != 2 || prob_map->size() == 0)) {
    throw py::value_error("prob_map must have shape [Mh, Mw] with at least one cell");
  }
  const BoxGeometry<double> geometry = geometry_of(box, spatial_scale, options);
  cpu::BoxTaps<double> taps;
  if (geometry.valid) {
    const int32_t prob_map_height = prob_map ? static_cast<int32_t>(prob_map->shape(0)) : 0;
    const int32_t prob_map_width = prob_map ? static_cast<int32_t>(prob_map->shape(1)) : 0;
    cpu::BoxAxes<double> axes;
    axes.assign(geometry, height, width, prob_map_height, prob_map_width, options.map_aligned);
    std::vector<int64_t> row_offset;
    for (const int32_t row : axes.y.touched) {
      row_offset.push_back(int64_t(row) * width);
    }
    const std::vector<int64_t> column_offset(axes.x.touched.begin(), axes.x.touched.end());
    cpu::BinWeights<double>::Memory memory;
    cpu::BinWeights<double> weights(
        axes, prob_map ? prob_map->data() : nullptr, prob_map_width, memory);
    taps.assign(axes, weights, row_offset.data(), column_offset.data());
  } else {
    taps.bin_begin.assign(size_t(options.pooled_height) * options.pooled_width + 1, 0);
  }
  std::vector<int32_t> rows;
  std::vector<int32_t> columns;
  for (const int64_t offset : taps.offset) {
    rows.push_back(static_cast<int32_t>(offset / width));
    columns.push_back(static_cast<int32_t>(offset % width));
  }
  return py::dict(
      "bin_begin"_a = to_array(taps.bin_begin), "row"_a = to_array(rows),
      "column"_a = to_array(columns), "weight"_a = to_array(taps.weight));
}

}  // namespace
}  // namespace shape_roi_align

PYBIND11_MODULE(_C, m) {
  using namespace shape_roi_align;
  m.doc() = "Build facts and the sampling geometry of the shape_roi_align kernels.";
  m.def(
      "build_info", &build_info,
      "Facts of the build: version, torch headers, CUDA compiler and architectures (empty without "
      "CUDA), C++ compiler.");
  m.def(
      "cpu_capability", &cpu::instruction_set_name,
      "Instruction set of the CPU kernels in this process: portable, avx2 or avx512.");
  m.def(
      "sampling_points", &sampling_points, "box"_a, py::kw_only(), "height"_a, "width"_a,
      "output_size"_a, "spatial_scale"_a = 1.0, "sampling_ratio"_a = -1, "aligned"_a = false,
      "Samples of a box (x1, y1, x2, y2) on a feature map of height x width. 'y' and 'x' are dicts "
      "of arrays with one entry per sample: "
      "'bin', 'coordinate' in feature pixels, 'place' in the box, in (0, 1) (v for y, u for x), "
      "'inside': whether the sample reads the map. 'samples_per_bin' is a number. For boxes far "
      "larger than the map, samples outside the map may be missing.");
  m.def(
      "box_taps", &box_taps, "box"_a, py::kw_only(), "height"_a, "width"_a, "output_size"_a,
      "spatial_scale"_a = 1.0, "sampling_ratio"_a = -1, "aligned"_a = false,
      "prob_map"_a = py::none(), "map_aligned"_a = py::none(), "average"_a = true,
      "The merged taps of a box: bin b (row-major over the output) reads the pixels 'row', "
      "'column' with 'weight' in the range "
      "bin_begin[b]:bin_begin[b + 1].");
}
