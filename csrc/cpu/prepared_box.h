// A box made ready for the inner loops: its taps, and how its pixels are reached.
//
// Where channels are innermost, pixels are read in place ("native"). Else the box's footprint is
// transposed, a block of channels at a time, into a tile that stays in cache: converting the whole
// map would move every pixel, this moves those under boxes.
#pragma once

#include "boxes.h"

namespace shape_roi_align::cpu {

inline bool is_channels_innermost(const FeatureMap& map, int64_t channels) {
  return map.channel_stride == 1 || channels == 1;
}

// Rows and columns of a tensor's last two dimensions, as planes to pack or unpack.
struct PlaneGrid {
  std::vector<int64_t> row_offset;
  std::vector<int64_t> column_offset;
  bool unit_columns = false;

  template <typename T>
  Planes<T> planes(T* data, int64_t channel_stride, int32_t channels) const {
    return {
        data,
        channel_stride,
        channels,
        row_offset.data(),
        static_cast<int32_t>(row_offset.size()),
        column_offset.data(),
        static_cast<int32_t>(column_offset.size()),
        unit_columns};
  }
};

// The rows and columns of a feature map that a box touches, as planes to pack or unpack, and where
// each slot lies in the packed tile. Columns are packed without gaps where that costs less than
// twice the cells: whole vectors then move at once.
struct Footprint : PlaneGrid {
  std::vector<int64_t> packed_row;     // per row slot: first tile row
  std::vector<int64_t> packed_column;  // per column slot: tile row relative to it

  void build(
      const FeatureMap& map, const std::vector<int32_t>& rows,
      const std::vector<int32_t>& columns) {
    const int64_t span = columns.back() - columns.front() + 1;
    unit_columns = map.column_stride == 1 && span < 2 * static_cast<int64_t>(columns.size());
    column_offset.clear();
    packed_column.clear();
    if (unit_columns) {
      for (int64_t j = 0; j < span; ++j) {
        column_offset.push_back(columns.front() + j);
      }
      for (const int32_t column : columns) {
        packed_column.push_back(column - columns.front());
      }
    } else {
      for (const int32_t column : columns) {
        packed_column.push_back(static_cast<int64_t>(column_offset.size()));
        column_offset.push_back(column * map.column_stride);
      }
    }
    row_offset.clear();
    packed_row.clear();
    for (const int32_t row : rows) {
      packed_row.push_back(static_cast<int64_t>(row_offset.size() * column_offset.size()));
      row_offset.push_back(row * map.row_stride);
    }
  }

  int64_t num_pixels() const {
    return static_cast<int64_t>(row_offset.size() * column_offset.size());
  }
};

// The bins of a pooled tensor as rows and columns: one row of all bins where they lie side by side.
struct BinGrid : PlaneGrid {
  BinGrid(const PooledMap& pooled, const SamplingOptions& options) {
    const bool flat = pooled.column_stride == 1 && pooled.row_stride == options.pooled_width;
    const int32_t rows = flat ? 1 : options.pooled_height;
    const int32_t columns =
        flat ? options.pooled_height * options.pooled_width : options.pooled_width;
    for (int32_t row = 0; row < rows; ++row) {
      row_offset.push_back(row * pooled.row_stride);
    }
    for (int32_t column = 0; column < columns; ++column) {
      column_offset.push_back(column * pooled.column_stride);
    }
    unit_columns = pooled.column_stride == 1;
  }
};

// How many channels to move at a time: a tile that stays in the second-level cache, at least one
// vector.
inline int32_t channel_block(
    int64_t tile_rows, int32_t lanes, int32_t wanted, int64_t channels, int64_t element_size) {
  constexpr int64_t kTileBytes = 512 << 10;
  const int64_t fitting =
      kTileBytes / std::max<int64_t>(tile_rows * element_size, 1) / lanes * lanes;
  const int64_t whole = (channels + lanes - 1) / lanes * lanes;
  return static_cast<int32_t>(
      std::min<int64_t>(whole, std::clamp<int64_t>(fitting, lanes, wanted)));
}

template <typename T, typename coord_t>
class PreparedBox {
 public:
  using acc_t = accumulate_t<T>;

  BoxTaps<coord_t, acc_t> taps;
  Footprint footprint;
  bool is_native = false;
  int32_t block = 0;  // channels of a packed tile

  // False: the box reads no pixel.
  bool prepare(const Params& params, const Box<coord_t>& box) {
    if (!box.is_sampled || params.channels == 0) {
      return false;
    }
    const FeatureMap& map = params.levels[box.level];
    build_axes(params, box, taps);
    if (taps.num_pixels() == 0) {
      return false;
    }
    map_ = &map;
    features_ = static_cast<const T*>(map.data) + box.geometry.batch * map.image_stride;
    is_native = is_channels_innermost(map, params.channels);
    footprint.build(map, taps.y.cells, taps.x.cells);
    if (is_native) {
      row_.assign(footprint.row_offset.begin(), footprint.row_offset.end());
      column_.clear();
      for (const int32_t column : taps.x.cells) {
        column_.push_back(column * map.column_stride);
      }
    } else {
      block = channel_block(
          footprint.num_pixels(), kernels_.lanes, kernels_.planar_block, params.channels,
          sizeof(acc_t));
      scale(footprint.packed_row, row_);
      scale(footprint.packed_column, column_);
    }
    taps.build_taps(
        map_of_box(params, box.index, converted_map_), params.map_width, row_.data(),
        column_.data());
    return true;
  }

  // The address that taps' offsets are relative to, for channels from c on.
  const T* native_features(int64_t c) const {
    return features_ + c * map_->channel_stride;
  }

  const acc_t* pack_features(int64_t c, int32_t channels) {
    packed_.resize(size_t(footprint.num_pixels() + kernels_.lanes) * block);
    kernels_.pack(
        footprint.planes(native_features(c), map_->channel_stride, channels), packed_.data(),
        block);
    return packed_.data();
  }

 private:
  const Kernels<T>& kernels_ = kernels<T>();
  const FeatureMap* map_ = nullptr;
  const T* features_ = nullptr;
  std::vector<coord_t> converted_map_;
  std::vector<int64_t> row_;
  std::vector<int64_t> column_;
  std::vector<acc_t> packed_;

  void scale(const std::vector<int64_t>& from, std::vector<int64_t>& to) const {
    to.resize(from.size());
    std::transform(
        from.begin(), from.end(), to.begin(), [this](int64_t value) { return value * block; });
  }
};

// The pooled gradient of one box as a tile [bins, channels] in the accumulate type.
template <typename T>
class BinTile {
 public:
  using acc_t = accumulate_t<T>;

  BinTile(const PooledMap& pooled, const SamplingOptions& options)
      : pooled_(pooled),
        grid_(pooled, options),
        bins_(options.pooled_height * options.pooled_width) {
    for (int32_t bin = 0; bin < bins_; ++bin) {
      bin_begin_.push_back(bin);
      bin_offset_.push_back(
          bin / options.pooled_width * pooled.row_stride +
          bin % options.pooled_width * pooled.column_stride);
    }
    bin_begin_.push_back(bins_);
    ones_.assign(bins_, acc_t(1));
  }

  // Channels [c, c + channels) of box k, `stride` elements from bin to bin.
  const acc_t* load(int64_t k, int64_t c, int32_t channels, int32_t stride) {
    tile_.resize(size_t(bins_ + kernels_.lanes) * stride);
    const T* from =
        static_cast<const T*>(pooled_.data) + k * pooled_.box_stride + c * pooled_.channel_stride;
    if (pooled_.channel_stride == 1) {
      kernels_.gather_bins_to_tile(
          from, bin_begin_.data(), bin_offset_.data(), ones_.data(), bins_, channels, tile_.data(),
          stride);
    } else {
      kernels_.pack(grid_.planes(from, pooled_.channel_stride, channels), tile_.data(), stride);
    }
    return tile_.data();
  }

 private:
  const Kernels<T>& kernels_ = kernels<T>();
  const PooledMap& pooled_;
  BinGrid grid_;
  int32_t bins_;
  std::vector<int32_t> bin_begin_;
  std::vector<int64_t> bin_offset_;
  std::vector<acc_t> ones_;
  std::vector<acc_t> tile_;
};

}  // namespace shape_roi_align::cpu
