// The gradients of the probability maps and of the boxes: scratch, passes over the boxes, kernels.
//
// Blocks sum in coordinate_type(params). If several blocks share a box, or the result has another
// type, the sums go to scratch, and sum_shares_kernel adds and converts them. Scratch is bounded:
// if the sums of all boxes do not fit, the boxes are divided among passes.
#pragma once

#include "cuda/launch.h"
#include "cuda/map_and_box_gradient.cuh"

namespace shape_roi_align::cuda {

// A gradient that is not requested is null.
struct MapAndBoxGradients {
  void* prob_maps;  // [K, Mh, Mw] of params.prob_map_type
  void* rois;       // [K, 5] of params.roi_type
};

// Whether map_and_box_gradient is faster with channels innermost in grad.
inline bool prefers_channels_innermost(const Params& params) {
  return reads_channels_in_lanes(params);
}

// Scratch of map_and_box_gradient: at most options.scratch bytes or the size of the requested
// gradients, whichever is larger. Depends only on shapes and types, so results do not depend on the
// GPU. The number of shares does not depend on which gradients are requested.
struct MapAndBoxScratch {
  int64_t shares;     // per box
  int64_t boxes;      // per pass
  int64_t cells;      // per probability map in a pass; all cells unless boxes == 1
  int64_t map_bytes;  // of [shares, boxes, cells]; 0 if the blocks write the gradient directly
  int64_t roi_bytes;  // of [shares, boxes, 5]; likewise

  MapAndBoxScratch(
      const Params& params, bool wants_prob_maps, bool wants_rois, const LaunchOptions& options) {
    const int64_t num_rois = std::max<int64_t>(1, params.num_rois);
    const int64_t all_cells = int64_t(params.prob_map_height) * params.prob_map_width;
    const ScalarType sum_type = coordinate_type(params);
    const int64_t sum_bytes = bytes_of(sum_type);
    const int64_t max_shares = options.scratch / sum_bytes / (all_cells + 5) / num_rois;
    shares = box_grid(params, options, max_shares).shares;
    const auto has_sums = [&](bool is_wanted, ScalarType type) {
      return is_wanted && (shares > 1 || type != sum_type);
    };
    const bool has_map_sums = has_sums(wants_prob_maps, params.prob_map_type);
    const bool has_roi_sums = has_sums(wants_rois, params.roi_type);
    const int64_t of_rois = has_roi_sums ? shares * 5 * sum_bytes : 0;
    const int64_t of_cell = has_map_sums ? shares * sum_bytes : 0;
    const int64_t of_box = of_cell * all_cells + of_rois;

    const int64_t gradients =
        num_rois * ((wants_prob_maps ? all_cells * bytes_of(params.prob_map_type) : 0) +
                    (wants_rois ? 5 * bytes_of(params.roi_type) : 0));
    const int64_t max_bytes = std::max(options.scratch, gradients);
    const int64_t fitting =
        std::clamp<int64_t>(max_bytes / std::max<int64_t>(1, of_box), 1, num_rois);
    boxes = std::min(params.num_rois, ceil_div(num_rois, ceil_div(num_rois, fitting)));
    cells = of_box > max_bytes && of_cell > 0
                ? std::max<int64_t>(1, (max_bytes - of_rois) / of_cell)
                : all_cells;
    map_bytes = boxes * cells * of_cell;
    roi_bytes = boxes * of_rois;
  }

  int64_t bytes() const {
    return map_bytes + roi_bytes;
  }

  // max_shares: 0 counts as 1.
  static BoxGrid box_grid(const Params& params, const LaunchOptions& options, int64_t max_shares) {
    BoxGrid grid =
        make_box_grid(params, std::max<int64_t>(1, params.channels), options, max_shares);
    grid.slabs = 1;
    return grid;
  }
};

template <typename T>
T* advance(T* data, int64_t bytes) {
  using byte_t = std::conditional_t<std::is_const_v<T>, const char, char>;
  return data == nullptr ? nullptr : reinterpret_cast<T*>(reinterpret_cast<byte_t*>(data) + bytes);
}

// The arguments of a call on boxes [first, first + count) only.
inline Params params_of_boxes(const Params& params, int64_t first, int64_t count) {
  const int64_t cells = int64_t(params.prob_map_height) * params.prob_map_width;
  Params some = params;
  some.num_rois = count;
  some.rois = advance(params.rois, 5 * first * bytes_of(params.roi_type));
  some.roi_levels = advance(params.roi_levels, first * sizeof(int64_t));
  some.prob_maps = advance(params.prob_maps, first * cells * bytes_of(params.prob_map_type));
  return some;
}

// gradients: every element is written. scratch: sized by MapAndBoxScratch, uninitialised.
template <typename Launcher>
void map_and_box_gradient(
    const Params& params, const PooledTensor& grad, const MapAndBoxGradients& gradients,
    void* scratch, const LaunchOptions& options, Launcher launch) {
  if (params.num_rois == 0) {
    return;
  }
  const MapAndBoxScratch plan(
      params, gradients.prob_maps != nullptr, gradients.rois != nullptr, options);
  const int64_t all_cells = int64_t(params.prob_map_height) * params.prob_map_width;
  const bool channels_in_lanes = reads_channels_in_lanes(params) && grad.channel_stride == 1;
  BoxGrid grid = MapAndBoxScratch::box_grid(params, options, plan.shares);

  // Processes boxes [box, box + boxes) and cells [cell, cell + cells) of their maps.
  const auto launch_pass = [&](int64_t box, int64_t boxes, int64_t cell, int64_t cells) {
    const Params some = params_of_boxes(params, box, boxes);
    PooledTensor some_grad = grad;
    some_grad.data = advance(grad.data, box * grad.box_stride * bytes_of(params.feature_type));
    grid.num_rois = boxes;
    SharesOfGradient maps{};
    maps.type = params.prob_map_type;
    maps.gradient =
        advance(gradients.prob_maps, (box * all_cells + cell) * bytes_of(params.prob_map_type));
    maps.size = boxes * cells;
    maps.sums = plan.map_bytes > 0 ? scratch : maps.gradient;
    SharesOfGradient rois{};
    rois.type = params.roi_type;
    rois.gradient =
        cell > 0 ? nullptr : advance(gradients.rois, 5 * box * bytes_of(params.roi_type));
    rois.size = 5 * boxes;
    rois.sums = plan.roi_bytes > 0 && cell == 0 ? advance(scratch, plan.map_bytes) : rois.gradient;
    dispatch(params, [&](auto feature, auto coordinate) {
      using feature_t = decltype(feature);
      using coord_t = decltype(coordinate);
      const ShareGradients<coord_t> sums{
          static_cast<coord_t*>(maps.sums), static_cast<coord_t*>(rois.sums), cell, cells};
      const auto run = [&](auto width) {
        launch(
            map_and_box_gradient_kernel<feature_t, coord_t, width>,
            std::min(grid.size(), options.blocks), options.threads, some, some_grad, grid, sums);
      };
      if (channels_in_lanes) {
        dispatch_width<feature_t, coord_t>(is_vectorizable<feature_t>(params, grad), run);
      } else {
        run(std::integral_constant<int32_t, 0>{});
      }
      maps.size = maps.sums == maps.gradient ? 0 : maps.size;
      rois.size = rois.sums == rois.gradient ? 0 : rois.size;
      if (maps.size + rois.size > 0) {
        launch(
            sum_shares_kernel<coord_t>,
            std::min(ceil_div(maps.size + rois.size, options.threads), options.blocks),
            options.threads, maps, rois, grid.shares);
      }
    });
  };
  for (int64_t box = 0; box < params.num_rois; box += plan.boxes) {
    const int64_t boxes = std::min(plan.boxes, params.num_rois - box);
    for (int64_t cell = 0; cell == 0 || cell < all_cells;
         cell += std::max<int64_t>(1, plan.cells)) {
      launch_pass(box, boxes, cell, std::min(plan.cells, all_cells - cell));
    }
  }
}

}  // namespace shape_roi_align::cuda
