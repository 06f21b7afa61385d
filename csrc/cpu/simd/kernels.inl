// The one source of the arithmetic. Included by kernels_<capability>.cpp inside a namespace of its
// own and, on x86-64, inside a region compiled for that instruction set; VECTOR_BYTES and
// ACCUMULATORS are set by the includer. Every function is internal: nothing compiled for a newer
// processor may be picked by the linker for an older one.

#include "cpu/simd/vectors.inl"

// Calls body(first channel, vectors) for blocks of at most ACCUMULATORS vectors, then tail(first
// channel, channels left).
template <typename acc_t, typename Body, typename Tail>
INLINE void for_channel_blocks(int32_t channels, Body body, Tail tail) {
  constexpr int32_t lanes = kLanes<acc_t>;
  int32_t c = 0;
  for (; c + ACCUMULATORS * lanes <= channels; c += ACCUMULATORS * lanes) {
    body(c, std::integral_constant<int32_t, ACCUMULATORS>{});
  }
  if (c + 8 * lanes <= channels) {
    body(c, std::integral_constant<int32_t, 8>{});
    c += 8 * lanes;
  }
  if (c + 4 * lanes <= channels) {
    body(c, std::integral_constant<int32_t, 4>{});
    c += 4 * lanes;
  }
  if (c + 2 * lanes <= channels) {
    body(c, std::integral_constant<int32_t, 2>{});
    c += 2 * lanes;
  }
  if (c + lanes <= channels) {
    body(c, std::integral_constant<int32_t, 1>{});
    c += lanes;
  }
  if (c < channels) {
    tail(c, channels - c);
  }
}

template <typename T, typename out_t, bool Streamed>
static void gather(
    const T* source, const int32_t* row_begin, const int64_t* offset, const accumulate_t<T>* weight,
    int32_t rows, int32_t channels, out_t* out, int64_t row_stride) {
  using acc_t = accumulate_t<T>;
  constexpr int32_t lanes = kLanes<acc_t>;
  if constexpr (Streamed) {
    constexpr int64_t kVectorBytes = lanes * sizeof(out_t);
    const bool is_aligned = reinterpret_cast<uintptr_t>(out) % kVectorBytes == 0 &&
                            row_stride * int64_t(sizeof(out_t)) % kVectorBytes == 0;
    if (!is_aligned) {
      gather<T, out_t, false>(source, row_begin, offset, weight, rows, channels, out, row_stride);
      return;
    }
  }
  for_channel_blocks<acc_t>(
      channels,
      [&](int32_t c, auto vectors) ALWAYS_INLINE {
        for (int32_t r = 0; r < rows; ++r) {
          vector_t<acc_t> sum[vectors] = {};
          for (int32_t t = row_begin[r]; t < row_begin[r + 1]; ++t) {
            const T* from = source + offset[t] + c;
            const acc_t w = weight[t];
            repeat<vectors>([&](int32_t v)
                                ALWAYS_INLINE { sum[v] += w * load_vector(from + v * lanes); });
          }
          repeat<vectors>([&](int32_t v) ALWAYS_INLINE {
            out_t* to = out + r * row_stride + c + v * lanes;
            if constexpr (Streamed) {
              stream_vector(to, sum[v]);
            } else {
              store_vector(to, sum[v]);
            }
          });
        }
      },
      [&](int32_t c, int32_t n) ALWAYS_INLINE {
        for (int32_t r = 0; r < rows; ++r) {
          vector_t<acc_t> sum = {};
          for (int32_t t = row_begin[r]; t < row_begin[r + 1]; ++t) {
            sum += weight[t] * load_partial(source + offset[t] + c, n);
          }
          store_partial(out + r * row_stride + c, sum, n);
        }
      });
}

// Products of many taps are summed over their lanes together.
template <typename acc_t>
struct DotProducts {
  static constexpr int32_t lanes = kLanes<acc_t>;
  acc_t* dot;  // of the first tap held
  int32_t held = 0;
  vector_t<acc_t> of_tap[lanes];

  INLINE_MEMBER void add(vector_t<acc_t> products) {
    of_tap[held++] = products;
    if (held == lanes) {
      store_vector(dot, load_vector(dot) + sum_of_each<lanes>(of_tap));
      dot += lanes;
      held = 0;
    }
  }
  INLINE_MEMBER void finish() {
    if (held > 0) {
      for (int32_t i = held; i < lanes; ++i) {
        of_tap[i] = vector_t<acc_t>{};
      }
      store_partial(dot, load_partial(dot, held) + sum_of_each<lanes>(of_tap), held);
    }
  }
};

template <typename T>
static void dot_taps(
    const T* features, const int32_t* bin_begin, const int64_t* offset, int32_t bins,
    int32_t channels, const accumulate_t<T>* tile, int64_t bin_stride, accumulate_t<T>* dot) {
  using acc_t = accumulate_t<T>;
  constexpr int32_t lanes = kLanes<acc_t>;
  for_channel_blocks<acc_t>(
      channels,
      [&](int32_t c, auto vectors) ALWAYS_INLINE {
        DotProducts<acc_t> products{dot};
        for (int32_t b = 0; b < bins; ++b) {
          vector_t<acc_t> of_bin[vectors];
          repeat<vectors>([&](int32_t v) ALWAYS_INLINE {
            of_bin[v] = load_vector(tile + b * bin_stride + c + v * lanes);
          });
          for (int32_t t = bin_begin[b]; t < bin_begin[b + 1]; ++t) {
            const T* from = features + offset[t] + c;
            constexpr int32_t chains = vectors < 4 ? vectors : 4;
            vector_t<acc_t> sum[chains] = {};
            repeat<vectors>([&](int32_t v) ALWAYS_INLINE {
              sum[v % chains] += of_bin[v] * load_vector(from + v * lanes);
            });
            for (int32_t v = 1; v < chains; ++v) {
              sum[0] += sum[v];
            }
            products.add(sum[0]);
          }
        }
        products.finish();
      },
      [&](int32_t c, int32_t n) ALWAYS_INLINE {
        DotProducts<acc_t> products{dot};
        for (int32_t b = 0; b < bins; ++b) {
          const vector_t<acc_t> of_bin = load_partial(tile + b * bin_stride + c, n);
          for (int32_t t = bin_begin[b]; t < bin_begin[b + 1]; ++t) {
            products.add(of_bin * load_partial(features + offset[t] + c, n));
          }
        }
        products.finish();
      });
}

// Whole vectors of channels go through register transposes, the rest element by element.
template <typename T>
static void pack(
    const Planes<const T>& planes, accumulate_t<T>* tile, int64_t tile_columns, int64_t stride) {
  using acc_t = accumulate_t<T>;
  constexpr int32_t lanes = kLanes<acc_t>;
  int32_t c = 0;
  for (; planes.unit_columns && c + lanes <= planes.channels; c += lanes) {
    acc_t* to = tile + c;
    for (int32_t row = 0; row < planes.num_rows; ++row) {
      const T* from = planes.data + c * planes.channel_stride + planes.row_offset[row] +
                      planes.column_offset[0];
      for (int32_t column = 0; column < planes.num_columns; column += lanes) {
        const int32_t n = std::min(lanes, planes.num_columns - column);
        if (n <= lanes / 4) {  // not worth a transpose
          for (int32_t j = column; j < column + n; ++j) {
            for (int32_t i = 0; i < lanes; ++i) {
              to[j * stride + i] = load(from[i * planes.channel_stride + j]);
            }
          }
          break;
        }
        vector_t<acc_t> m[lanes];
        if (n == lanes) {
          repeat<lanes>([&](int32_t i) ALWAYS_INLINE {
            m[i] = load_vector(from + i * planes.channel_stride + column);
          });
        } else {
          repeat<lanes>([&](int32_t i) ALWAYS_INLINE {
            m[i] = load_partial(from + i * planes.channel_stride + column, n);
          });
        }
        transpose<lanes / 2>(m);
        repeat<lanes>([&](int32_t i)
                          ALWAYS_INLINE { store_vector(to + (column + i) * stride, m[i]); });
      }
      to += tile_columns * stride;
    }
  }
  for (; c < planes.channels; ++c) {
    acc_t* to = tile + c;
    for (int32_t row = 0; row < planes.num_rows; ++row, to += tile_columns * stride) {
      const T* from = planes.data + c * planes.channel_stride + planes.row_offset[row];
      for (int32_t column = 0; column < planes.num_columns; ++column) {
        to[column * stride] = load(from[planes.column_offset[column]]);
      }
    }
  }
}

template <typename T>
static void unpack(const accumulate_t<T>* tile, int64_t stride, const Planes<T>& planes) {
  using acc_t = accumulate_t<T>;
  constexpr int32_t lanes = kLanes<acc_t>;
  int32_t c = 0;
  for (; planes.unit_columns && c + lanes <= planes.channels; c += lanes) {
    const acc_t* from = tile + c;
    for (int32_t row = 0; row < planes.num_rows; ++row) {
      T* to = planes.data + c * planes.channel_stride + planes.row_offset[row] +
              planes.column_offset[0];
      for (int32_t column = 0; column < planes.num_columns; column += lanes) {
        const int32_t n = std::min(lanes, planes.num_columns - column);
        if (n <= lanes / 4) {  // not worth a transpose
          for (int32_t j = column; j < column + n; ++j) {
            for (int32_t i = 0; i < lanes; ++i) {
              store(from[j * stride + i], to + i * planes.channel_stride + j);
            }
          }
          break;
        }
        vector_t<acc_t> m[lanes];
        repeat<lanes>([&](int32_t i) ALWAYS_INLINE {
          m[i] = load_vector(from + (column + i) * stride);  // past the last column: read, not used
        });
        transpose<lanes / 2>(m);
        T* first = to + column;
        if (n == lanes) {
          repeat<lanes>([&](int32_t i) ALWAYS_INLINE {
            store_vector(first + i * planes.channel_stride, m[i]);
          });
        } else {
          repeat<lanes>([&](int32_t i) ALWAYS_INLINE {
            store_partial(first + i * planes.channel_stride, m[i], n);
          });
        }
      }
      from += planes.num_columns * stride;
    }
  }
  for (; c < planes.channels; ++c) {
    const acc_t* from = tile + c;
    for (int32_t row = 0; row < planes.num_rows; ++row) {
      T* to = planes.data + c * planes.channel_stride + planes.row_offset[row];
      for (int32_t column = 0; column < planes.num_columns; ++column, from += stride) {
        store(*from, &to[planes.column_offset[column]]);
      }
    }
  }
}

// As many planes at a time as registers hold: they share the lookups' weights and indices.
template <int32_t Vectors>
constexpr int32_t kPlanes = ACCUMULATORS / (Vectors < 4 ? 4 : Vectors);

// f(first channel, planes, vectors), in groups of kPlanes, then one by one.
template <typename acc_t, typename F>
INLINE void for_plane_groups(int32_t vectors, int32_t channels, F f) {
  const auto groups = [&](auto of_row) ALWAYS_INLINE {
    constexpr int32_t planes = kPlanes<decltype(of_row)::value>;
    int32_t c = 0;
    for (; c + planes <= channels; c += planes) {
      f(c, std::integral_constant<int32_t, planes>{}, of_row);
    }
    for (; c < channels; ++c) {
      f(c, std::integral_constant<int32_t, 1>{}, of_row);
    }
  };
  if (vectors == 1) {
    groups(std::integral_constant<int32_t, 1>{});
  } else if (vectors == 2) {
    groups(std::integral_constant<int32_t, 2>{});
  } else {
    groups(std::integral_constant<int32_t, 4>{});
  }
}

template <typename T>
static void pool_planes(
    const Lookups<accumulate_t<T>>& box, const T* features, int64_t channel_stride,
    int32_t channels, T* out, int64_t out_channel_stride, int64_t out_row_stride) {
  using acc_t = accumulate_t<T>;
  constexpr int32_t lanes = kLanes<acc_t>;
  const int64_t step_size = int64_t(box.parts) * lanes;
  for_plane_groups<acc_t>(
      box.vectors, channels, [&](int32_t c, auto planes, auto vectors) ALWAYS_INLINE {
        const T* first = features + c * channel_stride;
        for (int32_t ph = 0; ph < box.bin_rows; ++ph) {
          vector_t<acc_t> sum[planes] = {};
          for (int32_t step = box.step_begin[ph]; step < box.step_begin[ph + 1]; ++step) {
            const T* row = first + box.row_offset[step];
            const acc_t* weight = box.weight + step * step_size;
            vector_t<acc_t> pixels[planes][vectors];
            repeat<planes>([&](int32_t p) ALWAYS_INLINE {
              repeat<vectors>([&](int32_t v) ALWAYS_INLINE {
                pixels[p][v] = load_vector(row + p * channel_stride + box.starts[v]);
              });
            });
            for (int32_t part = 0; part < box.parts; ++part) {
              const vector_t<acc_t> w = load_vector(weight + part * lanes);
              repeat<planes>([&](int32_t p) ALWAYS_INLINE {
                sum[p] += w * look_up<vectors>(pixels[p], box.index + part * lanes);
              });
            }
          }
          repeat<planes>([&](int32_t p) ALWAYS_INLINE {
            store_partial(
                out + (c + p) * out_channel_stride + ph * out_row_stride, sum[p], box.bin_columns);
          });
        }
      });
}

template <typename T>
static const Kernels<T>& table() {
  using acc_t = accumulate_t<T>;
  const auto look_up_pixels = [] {
    if constexpr (kHasLookups<acc_t>) {
      return &pool_planes<T>;
    } else {
      return decltype(Kernels<T>::pool_planes){};
    }
  };
  static const Kernels<T> kTable = {
      kLanes<acc_t>,
      4 * kLanes<acc_t>,
      gather<T, T, false>,
      gather<T, T, true>,
      gather<T, acc_t, false>,
      gather<acc_t, T, false>,
      gather<acc_t, acc_t, false>,
      dot_taps<T>,
      dot_taps<acc_t>,
      look_up_pixels(),
      pack<T>,
      unpack<T>,
  };
  return kTable;
}

#undef INLINE
#undef INLINE_MEMBER
#undef ALWAYS_INLINE
