// Runs the CUDA kernels on the host, as launch.h configures them. usage: runner JOBS [RESULTS];
// jobs.py writes JOBS and reads RESULTS. Prints the names of the launched kernels. Without RESULTS,
// runs nothing and prints the kernels that it would launch. Without arguments, prints all kernels
// that launch.h can launch.
#include "cuda_on_host.h"

#include "cuda/launch_map_and_box_gradient.h"
#include "cuda/launch_transpose.h"

#include <cstring>
#include <list>
#include <set>
#include <stdexcept>

#include "far.h"

using namespace shape_roi_align;

namespace {

constexpr bool fit(int64_t num_rois, int32_t height, int32_t width, int32_t bins) {
  Params params{};
  params.num_rois = num_rois;
  params.num_levels = 2;
  params.levels[0].height = params.levels[1].height = height;
  params.levels[0].width = params.levels[1].width = width;
  params.options.pooled_height = params.options.pooled_width = bins;
  return cuda::counts_fit(params);
}
static_assert(fit(2'000'000'000, 30'000, 30'000, 8'000));
static_assert(!fit(int64_t(1) << 31, 1, 1, 1));
static_assert(!fit(1, 1 << 15, 1 << 15, 1));
static_assert(!fit(1, INT32_MAX, INT32_MAX, 1));
static_assert(!fit(1, 1, 1, 1 << 13));

// A heap block of exactly the requested size, so that AddressSanitizer knows its end. Initially NaN
// in every type.
class Array {
 public:
  explicit Array(size_t bytes) : data_(new char[bytes]), bytes_(bytes) {
    std::memset(data_.get(), 0xff, bytes);
  }
  void* data() {
    return data_.get();
  }
  size_t bytes() const {
    return bytes_;
  }

 private:
  std::unique_ptr<char[]> data_;
  size_t bytes_;
};

class File {
 public:
  File(const char* path, const char* mode) : file_(std::fopen(path, mode), &std::fclose) {
    if (file_ == nullptr) {
      throw std::runtime_error(std::string("cannot open ") + path);
    }
  }

  template <typename T>
  T read() {
    T value;
    fill(&value, sizeof(value));
    return value;
  }
  int32_t read_int() {
    return static_cast<int32_t>(read<int64_t>());
  }
  // Format: int64 size in bytes, then the bytes.
  Array read_array() {
    Array array(read<int64_t>());
    fill(array.data(), array.bytes());
    return array;
  }
  void write(Array& array) {
    if (std::fwrite(array.data(), 1, array.bytes(), file_.get()) != array.bytes()) {
      throw std::runtime_error("cannot write");
    }
  }

 private:
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;

  void fill(void* to, size_t bytes) {
    if (std::fread(to, 1, bytes, file_.get()) != bytes) {
      throw std::runtime_error("unexpected end of file");
    }
  }
};

struct HostLauncher {
  std::set<const void*>& launched;
  bool runs;

  template <typename Kernel, typename... Arguments>
  void operator()(
      Kernel kernel, int64_t blocks, int32_t threads, const Arguments&... arguments) const {
    launched.insert(reinterpret_cast<const void*>(kernel));
    if (!runs) {
      return;
    }
    cuda_on_host::launch({static_cast<unsigned>(blocks)}, {static_cast<unsigned>(threads)}, [&] {
      kernel(arguments...);
    });
  }
};

class Job {
 public:
  explicit Job(File& file) {
    const auto name = file.read_array();
    name_.assign(static_cast<const char*>(const_cast<Array&>(name).data()), name.bytes());
    options_.threads = file.read_int();
    options_.blocks = file.read_int();
    options_.wanted_blocks = file.read_int();
    options_.scratch = file.read<int64_t>();
    options_.few_channels = file.read_int();
    options_.few_boxes = file.read_int();
    options_.copied = file.read_int();
    far_factor_ = file.read<int64_t>();
    cuda_on_host::order = static_cast<cuda_on_host::Order>(file.read_int());
    params_.num_levels = file.read_int();
    params_.num_images = file.read<int64_t>();
    params_.channels = file.read<int64_t>();
    params_.num_rois = file.read<int64_t>();
    params_.feature_type = static_cast<ScalarType>(file.read_int());
    params_.roi_type = static_cast<ScalarType>(file.read_int());
    params_.prob_map_type = static_cast<ScalarType>(file.read_int());
    params_.prob_map_height = file.read_int();
    params_.prob_map_width = file.read_int();
    SamplingOptions& sampling = params_.options;
    sampling.pooled_height = file.read_int();
    sampling.pooled_width = file.read_int();
    sampling.sampling_ratio = file.read_int();
    sampling.aligned = file.read_int() != 0;
    sampling.map_aligned = file.read_int() != 0;
    sampling.average = file.read_int() != 0;
    params_.rois = read_pointer(file);
    params_.roi_levels = static_cast<const int64_t*>(read_pointer(file));
    params_.prob_maps = read_pointer(file);
    for (int32_t l = 0; l < params_.num_levels; ++l) {
      params_.levels[l] = read_feature_map(file);
      params_.levels[l].data = read_elements(file);
      move_apart(params_.levels[l], params_.num_images);
      gradients_[l] = read_feature_map(file);
      is_asked_[l] = file.read_int() != 0;
    }
    asks_maps_ = file.read_int() != 0;
    asks_rois_ = file.read_int() != 0;
    output_ = read_pooled_tensor(file);
    grad_ = read_pooled_tensor(file);
    grad_.data = read_elements(file);
    move_apart(grad_);
  }

  const std::string& name() const {
    return name_;
  }

  // Writes the output and the requested gradients: of the levels, of the maps, of the boxes.
  void run(File& results, const HostLauncher& launch) {
    const size_t feature_size = cuda::bytes_of(params_.feature_type);
    const int64_t pooled_elements = params_.num_rois * params_.channels * cuda::num_bins(params_);
    Array output(pooled_elements * feature_size);
    output_.data = output.data();
    move_apart(output_);
    cuda::forward(params_, output_, options_, launch);
    bring_back();
    results.write(output);

    PooledTensor grad_by_channels = grad_;
    if (grad_.channel_stride != 1) {
      arrays_.emplace_back(output.bytes());
      grad_by_channels = with_channels_innermost(arrays_.back().data());
      transpose(cuda::copy_of(grad_, params_, grad_by_channels.data), launch);
      move_apart(grad_by_channels);
    }
    std::vector<Array> arrays = allocate_gradients(feature_size);
    const FeatureGradients gradients = feature_gradients(arrays);
    const cuda::FeatureGradientPlan scratch(params_, gradients, options_);
    Array boxes(scratch.boxes);
    Array images = zeroed(scratch.images);
    Array bits = zeroed(scratch.bits);
    cuda::feature_gradient(
        params_, grad_by_channels, gradients, boxes.data(), images.data(), bits.data(), options_,
        launch);
    bring_back();
    for (int32_t l = 0; l < params_.num_levels; ++l) {
      if (is_asked_[l]) {
        results.write(arrays[l]);
      }
    }

    const auto allocate = [&](int32_t level) {
      const FeatureMap& map = params_.levels[level];
      const int64_t pixels = params_.num_images * map.height * map.width;
      return arrays_.emplace_back(pixels * params_.channels * feature_size).data();
    };
    const Params copied = cuda::with_copied_features(
        params_, options_, allocate,
        [&](const cuda::TransposedCopy& copy) { transpose(copy, launch); });
    const cuda::MapAndBoxScratch sizes(copied, asks_maps_, asks_rois_, options_);
    const int64_t map_cells = params_.num_rois * params_.prob_map_height * params_.prob_map_width;
    Array of_maps(asks_maps_ ? map_cells * cuda::bytes_of(params_.prob_map_type) : 0);
    Array of_rois(asks_rois_ ? params_.num_rois * 5 * cuda::bytes_of(params_.roi_type) : 0);
    Array partial(sizes.bytes());
    if (asks_maps_ || asks_rois_) {
      cuda::map_and_box_gradient(
          copied, cuda::prefers_channels_innermost(copied) ? grad_by_channels : grad_,
          {asks_maps_ ? of_maps.data() : nullptr, asks_rois_ ? of_rois.data() : nullptr},
          partial.data(), options_, launch);
    }
    results.write(of_maps);
    results.write(of_rois);
  }

 private:
  std::string name_;
  cuda::LaunchOptions options_;
  Params params_{};
  FeatureMap gradients_[kMaxLevels];
  bool is_asked_[kMaxLevels];
  bool asks_maps_;
  bool asks_rois_;
  PooledTensor output_;
  PooledTensor grad_;
  std::vector<Array> arrays_;
  int64_t far_factor_;  // 1: tensors stay as they are
  std::list<cuda_on_host::FarTensor> far_;

  // sizes: N or K first, in the order of the strides.
  template <typename map_t>
  void move_apart(map_t& map, const cuda_on_host::Four& sizes, int64_t& outermost_stride) {
    if (far_factor_ > 1 && map.data != nullptr) {
      const cuda_on_host::Four strides{
          outermost_stride, map.channel_stride, map.row_stride, map.column_stride};
      const auto& far = far_.emplace_back(
          map.data, sizes, strides, far_factor_, cuda::bytes_of(params_.feature_type));
      map.data = far.data();
      outermost_stride = far.strides()[0];
      map.channel_stride = far.strides()[1];
      map.row_stride = far.strides()[2];
      map.column_stride = far.strides()[3];
    }
  }
  void move_apart(FeatureMap& map, int64_t num_images) {
    move_apart(map, {num_images, params_.channels, map.height, map.width}, map.image_stride);
  }
  void move_apart(PooledTensor& map) {
    const SamplingOptions& sampling = params_.options;
    move_apart(
        map, {params_.num_rois, params_.channels, sampling.pooled_height, sampling.pooled_width},
        map.box_stride);
  }
  void bring_back() const {
    for (const auto& far : far_) {
      far.bring_back();
    }
  }

  void transpose(const cuda::TransposedCopy& copy, const HostLauncher& launch) const {
    cuda::transpose(copy, params_.feature_type, options_, launch);
  }

  PooledTensor with_channels_innermost(void* data) const {
    const int64_t row = params_.channels * params_.options.pooled_width;
    return {data, row * params_.options.pooled_height, 1, row, params_.channels};
  }

  static Array zeroed(size_t bytes) {
    Array array(bytes);
    std::memset(array.data(), 0, bytes);
    return array;
  }

  // Format: int64 number of elements of params_.feature_type to skip, then as in read_pointer.
  void* read_elements(File& file) {
    const int64_t skipped = file.read<int64_t>();
    return static_cast<char*>(read_pointer(file)) + skipped * cuda::bytes_of(params_.feature_type);
  }

  // Format: int64, whether there is an array; then the array.
  void* read_pointer(File& file) {
    if (file.read_int() == 0) {
      return nullptr;
    }
    arrays_.push_back(file.read_array());
    return arrays_.back().data();
  }

  static FeatureMap read_feature_map(File& file) {
    FeatureMap map{};
    map.image_stride = file.read<int64_t>();
    map.channel_stride = file.read<int64_t>();
    map.row_stride = file.read<int64_t>();
    map.column_stride = file.read<int64_t>();
    map.height = file.read_int();
    map.width = file.read_int();
    map.spatial_scale = file.read<double>();
    return map;
  }

  static PooledTensor read_pooled_tensor(File& file) {
    PooledTensor map{};
    map.box_stride = file.read<int64_t>();
    map.channel_stride = file.read<int64_t>();
    map.row_stride = file.read<int64_t>();
    map.column_stride = file.read<int64_t>();
    return map;
  }

  std::vector<Array> allocate_gradients(size_t element_size) const {
    std::vector<Array> arrays;
    for (int32_t l = 0; l < params_.num_levels; ++l) {
      const FeatureMap& map = gradients_[l];
      arrays.emplace_back(
          params_.num_images * params_.channels * map.height * map.width * element_size);
    }
    return arrays;
  }

  FeatureGradients feature_gradients(std::vector<Array>& arrays) {
    FeatureGradients gradients{};
    for (int32_t l = 0; l < params_.num_levels; ++l) {
      gradients.levels[l] = gradients_[l];
      gradients.levels[l].data = is_asked_[l] ? arrays[l].data() : nullptr;
      move_apart(gradients.levels[l], params_.num_images);
    }
    return gradients;
  }
};

}  // namespace

int main(int argc, char** argv) {
  const auto kernels = cuda_on_host::find_kernels();
  if (argc == 1) {
    for (const auto& kernel : kernels) {
      std::puts(kernel.second.c_str());
    }
    return 0;
  }
  if (argc > 3) {
    std::fprintf(stderr, "usage: %s JOBS [RESULTS]\n", argv[0]);
    return 2;
  }
  const bool runs = argc == 3;
  File jobs(argv[1], "rb");
  File results(runs ? argv[2] : "/dev/null", "wb");
  std::set<const void*> launched;
  for (int64_t left = jobs.read<int64_t>(); left > 0; --left) {
    Job job(jobs);
    std::fprintf(stderr, "%s\n", job.name().c_str());
    job.run(results, HostLauncher{launched, runs});
  }
  for (const void* kernel : launched) {
    std::puts(kernels.at(kernel).c_str());
  }
}
