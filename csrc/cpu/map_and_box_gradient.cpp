// Gradients of the probability maps and of the boxes. Both are sums over channels and follow from
// the same products <pixel, gradient of a bin>, one per tap. The channels are therefore read once;
// the remaining work is scalar and independent of the number of channels. One thread owns a box.
#include "cpu/box_gradient_writer.h"
#include "cpu/jobs.h"
#include "cpu/layout/pooled_gradient.h"
#include "cpu/parallel.h"
#include "cpu/row_sum_map_and_box_gradient.h"
#include "cpu/schedule.h"
#include "cpu/taps/prob_map_rows.h"

namespace shape_roi_align::cpu {
namespace {

template <typename T, typename coord_t>
class MapAndBoxGradient {
 public:
  using acc_t = accumulate_t<T>;

  MapAndBoxGradient(
      const Params& params, const PooledTensor& grad, void* grad_prob_maps, void* grad_rois,
      BoxSpan<coord_t> boxes)
      : params_(params),
        boxes_(boxes),
        pooled_(grad, params.options),
        writer_(params, grad_prob_maps, grad_rois),
        by_rows_(params, grad, writer_) {}

  void compute(const WorkItem& item) {
    with_reader<T, coord_t>(item.reader, [&]<typename Reader>() {
      if constexpr (requires { &Reader::dot; }) {
        compute(item, Reader(params_, item, boxes_, memory_.template of<Reader>()));
      } else if constexpr (requires { Reader::kExcludesOthers; }) {
        by_rows_.compute(boxes_[item.begin]);
      }
    });
  }

 private:
  // The products of a box, and the axes and taps that define their order.
  struct Products {
    const BoxAxes<coord_t>& axes;
    const BoxTaps<acc_t>& taps;
    const acc_t* of_taps;
  };

  const Params& params_;
  const BoxSpan<coord_t> boxes_;
  const PooledGradient<T> pooled_;
  const BoxGradientWriter writer_;
  RowSumMapAndBoxGradient<T, coord_t> by_rows_;
  ReaderMemory<T, coord_t> memory_;
  std::vector<std::vector<acc_t>> products_;  // of each box of an item, one per tap
  std::vector<coord_t> converted_prob_map_;
  std::vector<coord_t> prob_map_row_;
  std::vector<coord_t> prob_map_gradient_;      // [prob_map_height, prob_map_width]
  std::vector<coord_t> prob_map_row_gradient_;  // [prob_map_width]: of one sample row
  std::vector<coord_t> bin_row_products_;       // products, [touched rows][entries of x]
  std::vector<coord_t> sample_row_products_;    // products interpolated along y, [entries of x]
  std::vector<coord_t> slope_of_sample_row_;    // derivatives of the products along y
  AxisGradient<coord_t> along_y_;
  AxisGradient<coord_t> along_x_;

  template <typename Reader>
  void compute(const WorkItem& item, Reader reader) {
    if (products_.size() < reader.num_boxes()) {
      products_.resize(reader.num_boxes());
    }
    for (size_t i = 0; i < reader.num_boxes(); ++i) {
      products_[i].assign(reader.taps(i).weight.size(), acc_t(0));
    }
    reader.dot(pooled_, products_);
    for (size_t i = 0; i < reader.num_boxes(); ++i) {
      differentiate(boxes_[item.begin + i], {reader.axes(i), reader.taps(i), products_[i].data()});
    }
  }

  void differentiate(const Box<coord_t>& box, const Products& products) {
    const AxisTaps<coord_t>& y = products.axes.y;
    const coord_t* prob_map = prob_map_of_box(params_, box.index, converted_prob_map_);
    const bool wants_prob_map = writer_.wants_prob_maps();
    const int64_t cells = int64_t(params_.prob_map_height) * params_.prob_map_width;
    prob_map_gradient_.assign(wants_prob_map ? cells : 0, coord_t(0));
    prob_map_row_gradient_.assign(wants_prob_map ? params_.prob_map_width : 0, coord_t(0));
    along_y_ = along_x_ = {};
    const ProbMapRows<coord_t> prob_map_rows(
        prob_map, params_.prob_map_width, products.axes.x, prob_map_row_);
    for (int32_t ph = 0; ph < y.num_bins(); ++ph) {
      take_bin_row(products, ph);
      for (int32_t iy = y.sample_begin[ph]; iy < y.sample_begin[ph + 1]; ++iy) {
        const AxisSample<coord_t>& sample = y.samples[iy];
        take_sample_row(products, sample, y.bin_span[ph].begin);
        if (wants_prob_map) {
          add_to_prob_map(products.axes, sample.prob_map);
        }
        if (writer_.wants_rois() && prob_map_rows.exist()) {
          const ProbMapRow<coord_t> row = prob_map_rows.between(sample.prob_map);
          add_to_box(products.axes, sample, [&](const AxisSample<coord_t>& x) {
            return row.at(x.prob_map);
          });
        } else if (writer_.wants_rois()) {
          add_to_box(products.axes, sample, [](const AxisSample<coord_t>&) { return coord_t(1); });
        }
      }
    }
    if (wants_prob_map) {
      writer_.write_prob_map(box.index, prob_map_gradient_);
    }
    if (writer_.wants_rois()) {
      writer_.write_box(box, along_y_, along_x_);
    }
  }

  void take_bin_row(const Products& products, int32_t ph) {
    const AxisTaps<coord_t>& x = products.axes.x;
    const Range<int32_t> rows = products.axes.y.bin_span[ph];
    const int64_t entries = x.num_entries();
    bin_row_products_.resize((rows.end - rows.begin) * entries);
    for (int32_t pw = 0; pw < x.num_bins(); ++pw) {
      const acc_t* from = products.of_taps + products.taps.bin_begin[ph * x.num_bins() + pw];
      for (int32_t row = 0; row < rows.end - rows.begin; ++row) {
        for (int32_t entry = x.entry_begin[pw]; entry < x.entry_begin[pw + 1]; ++entry) {
          bin_row_products_[row * entries + entry] = static_cast<coord_t>(*from++);
        }
      }
    }
  }

  // first_row: index of the bin row's first touched row.
  void take_sample_row(const Products& products, const AxisSample<coord_t>& y, int32_t first_row) {
    const int64_t entries = products.axes.x.num_entries();
    const coord_t* low = bin_row_products_.data() + (y.low_index - first_row) * entries;
    const coord_t* high = bin_row_products_.data() + (y.high_index - first_row) * entries;
    sample_row_products_.resize(entries);
    slope_of_sample_row_.resize(entries);
    for (int64_t entry = 0; entry < entries; ++entry) {
      sample_row_products_[entry] =
          y.pixels.low_weight * low[entry] + y.pixels.high_weight * high[entry];
      slope_of_sample_row_[entry] = y.pixels.slope * (high[entry] - low[entry]);
    }
  }

  static coord_t interpolate(const AxisSample<coord_t>& x, const std::vector<coord_t>& entries) {
    return x.pixels.low_weight * entries[x.low_entry] +
           x.pixels.high_weight * entries[x.high_entry];
  }

  // y: interpolation of the sample row in the probability map.
  void add_to_prob_map(const BoxAxes<coord_t>& axes, const Interpolation<coord_t>& y) {
    for (const AxisSample<coord_t>& x : axes.x.samples) {
      const coord_t gradient = axes.share * interpolate(x, sample_row_products_);
      prob_map_row_gradient_[x.prob_map.low] += gradient * x.prob_map.low_weight;
      prob_map_row_gradient_[x.prob_map.high] += gradient * x.prob_map.high_weight;
    }
    coord_t* low = prob_map_gradient_.data() + int64_t(y.low) * params_.prob_map_width;
    coord_t* high = prob_map_gradient_.data() + int64_t(y.high) * params_.prob_map_width;
    for (int32_t cell = 0; cell < params_.prob_map_width; ++cell) {
      low[cell] += y.low_weight * prob_map_row_gradient_[cell];
      high[cell] += y.high_weight * prob_map_row_gradient_[cell];
      prob_map_row_gradient_[cell] = 0;
    }
  }

  // p(x): value of the probability map at a sample of the sample row y.
  template <typename P>
  void add_to_box(const BoxAxes<coord_t>& axes, const AxisSample<coord_t>& y, P p) {
    for (const AxisSample<coord_t>& x : axes.x.samples) {
      const coord_t weight = p(x) * axes.share;
      const coord_t slope = sample_row_products_[x.high_entry] - sample_row_products_[x.low_entry];
      along_y_.add(weight * interpolate(x, slope_of_sample_row_), y.uv);
      along_x_.add(weight * x.pixels.slope * slope, x.uv);
    }
  }
};

}  // namespace

void map_and_box_gradient(
    const Params& params, SortedBoxes sorted, const PooledTensor& grad, void* grad_prob_maps,
    void* grad_rois) {
  if (params.channels == 0) {
    return;
  }
  dispatch(params, [&](auto feature, auto coordinate) {
    using T = decltype(feature);
    using coord_t = decltype(coordinate);
    using Worker = MapAndBoxGradient<T, coord_t>;
    std::vector<Box<coord_t>>& boxes = std::get<Boxes<coord_t>>(sorted).sampled;
    const Job job{params, false, {}};
    const std::vector<WorkItem> items = schedule<T, coord_t>(job, boxes);
    parallel_dynamic(
        static_cast<int64_t>(items.size()),
        [&] { return Worker(params, grad, grad_prob_maps, grad_rois, boxes); },
        [&](Worker& worker, int64_t i) { worker.compute(items[i]); });
  });
}

}  // namespace shape_roi_align::cpu
