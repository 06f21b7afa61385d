// Runs the CUDA kernels on the host, as launch.h configures them. usage: runner JOBS RESULTS;
// tests/test_cuda_on_host.py writes and reads.
#include "cuda_on_host.h"

#include "cuda/launch.h"

#include <cstring>
#include <stdexcept>

using namespace shape_roi_align;

namespace {

// A heap block of exactly the size asked for, so that AddressSanitizer knows its end. Starts as NaN
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
  // int64 size in bytes, then the bytes.
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
  template <typename Kernel, typename... Arguments>
  void operator()(
      Kernel kernel, int64_t blocks, int32_t threads, const Arguments&... arguments) const {
    cuda_on_host::launch({static_cast<unsigned>(blocks)}, {static_cast<unsigned>(threads)}, [&] {
      kernel(arguments...);
    });
  }
};

size_t size_of(ScalarType type) {
  switch (type) {
    case ScalarType::kDouble:
      return 8;
    case ScalarType::kFloat:
      return 4;
    default:
      return 2;
  }
}

class Job {
 public:
  explicit Job(File& file) {
    const auto name = file.read_array();
    name_.assign(static_cast<const char*>(const_cast<Array&>(name).data()), name.bytes());
    options_.threads = file.read_int();
    options_.blocks = file.read_int();
    cuda_on_host::order = static_cast<cuda_on_host::Order>(file.read_int());
    params_.num_levels = file.read_int();
    params_.num_images = file.read<int64_t>();
    params_.channels = file.read<int64_t>();
    params_.num_rois = file.read<int64_t>();
    params_.feature_type = static_cast<ScalarType>(file.read_int());
    params_.roi_type = static_cast<ScalarType>(file.read_int());
    params_.map_type = static_cast<ScalarType>(file.read_int());
    params_.map_height = file.read_int();
    params_.map_width = file.read_int();
    SamplingOptions& sampling = params_.options;
    sampling.pooled_height = file.read_int();
    sampling.pooled_width = file.read_int();
    sampling.sampling_ratio = file.read_int();
    sampling.aligned = file.read_int() != 0;
    sampling.map_aligned = file.read_int() != 0;
    params_.rois = read_pointer(file);
    params_.roi_levels = static_cast<const int64_t*>(read_pointer(file));
    params_.prob_maps = read_pointer(file);
    for (int32_t l = 0; l < params_.num_levels; ++l) {
      params_.levels[l] = read_feature_map(file);
      params_.levels[l].data = read_pointer(file);
      gradients_[l] = read_feature_map(file);
      is_asked_[l] = file.read_int() != 0;
    }
    asks_maps_ = file.read_int() != 0;
    asks_rois_ = file.read_int() != 0;
    output_ = read_pooled_map(file);
    grad_ = read_pooled_map(file);
    grad_.data = read_pointer(file);
  }

  const std::string& name() const {
    return name_;
  }

  // Writes the output, the scattered and the gathered gradient of each level asked for, the
  // gradients of the maps and of the boxes if asked for.
  void run(File& results) {
    const HostLauncher launch;
    const size_t feature_size = size_of(params_.feature_type);
    const int64_t pooled_elements = params_.num_rois * params_.channels * cuda::num_bins(params_);
    Array output(pooled_elements * feature_size);
    output_.data = output.data();
    cuda::forward(params_, output_, options_, launch);
    results.write(output);

    const bool is_double = params_.feature_type == ScalarType::kDouble;
    std::vector<Array> scattered = allocate_gradients(is_double ? 8 : 4);
    for (Array& array : scattered) {
      std::memset(array.data(), 0, array.bytes());
    }
    cuda::scatter_feature_gradient(params_, grad_, feature_gradients(scattered), options_, launch);
    std::vector<Array> gathered = allocate_gradients(feature_size);
    Array footprints(params_.num_rois * sizeof(cuda::BoxFootprint));
    cuda::gather_feature_gradient(
        params_, grad_, feature_gradients(gathered),
        static_cast<cuda::BoxFootprint*>(footprints.data()), options_, launch);
    for (int32_t l = 0; l < params_.num_levels; ++l) {
      if (is_asked_[l]) {
        results.write(scattered[l]);
        results.write(gathered[l]);
      }
    }

    const size_t coordinate_size = size_of(cuda::coordinate_type(params_));
    const int64_t map_cells = int64_t(params_.map_height) * params_.map_width;
    Array grad_maps(asks_maps_ ? params_.num_rois * map_cells * coordinate_size : 0);
    std::memset(grad_maps.data(), 0, grad_maps.bytes());
    Array grad_rois(asks_rois_ ? params_.num_rois * 5 * coordinate_size : 0);
    cuda::map_and_box_gradient(
        params_, grad_, asks_maps_ ? grad_maps.data() : nullptr,
        asks_rois_ ? grad_rois.data() : nullptr, options_, launch);
    results.write(grad_maps);
    results.write(grad_rois);
  }

 private:
  std::string name_;
  cuda::LaunchOptions options_;
  Params params_{};
  FeatureMap gradients_[kMaxLevels];
  bool is_asked_[kMaxLevels];
  bool asks_maps_;
  bool asks_rois_;
  PooledMap output_;
  PooledMap grad_;
  std::vector<Array> arrays_;

  // int64: whether there is an array; then the array.
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

  static PooledMap read_pooled_map(File& file) {
    PooledMap map{};
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

  cuda::FeatureGradients feature_gradients(std::vector<Array>& arrays) const {
    cuda::FeatureGradients gradients{};
    for (int32_t l = 0; l < params_.num_levels; ++l) {
      gradients.levels[l] = gradients_[l];
      gradients.levels[l].data = is_asked_[l] ? arrays[l].data() : nullptr;
    }
    return gradients;
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s JOBS RESULTS\n", argv[0]);
    return 2;
  }
  File jobs(argv[1], "rb");
  File results(argv[2], "wb");
  for (int64_t left = jobs.read<int64_t>(); left > 0; --left) {
    Job job(jobs);
    std::fprintf(stderr, "%s\n", job.name().c_str());
    job.run(results);
  }
}
