// The kernels of one instruction set. kernels_<name>.cpp defines VECTOR_BYTES and ACCUMULATORS
// (vectors that stay in registers) and includes this file in a namespace of its own and, on x86-64,
// in a region compiled for the instruction set. Every function has internal linkage, so that the
// linker cannot merge it with a copy compiled for a newer processor.

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
    TapMatrix<accumulate_t<T>> taps, const T* source, int32_t channels, out_t* out,
    int64_t row_stride) {
  using acc_t = accumulate_t<T>;
  constexpr int32_t lanes = kLanes<acc_t>;
  if constexpr (Streamed) {
    constexpr int64_t kVectorBytes = lanes * sizeof(out_t);
    const bool is_aligned = reinterpret_cast<uintptr_t>(out) % kVectorBytes == 0 &&
                            row_stride * int64_t(sizeof(out_t)) % kVectorBytes == 0;
    if (!is_aligned) {
      gather<T, out_t, false>(taps, source, channels, out, row_stride);
      return;
    }
  }
  for_channel_blocks<acc_t>(
      channels,
      [&](int32_t c, auto vectors) ALWAYS_INLINE {
        for (int32_t r = 0; r < taps.rows; ++r) {
          vector_t<acc_t> sum[vectors] = {};
          for (int32_t t = taps.begin[r]; t < taps.begin[r + 1]; ++t) {
            const T* from = source + taps.offset[t] + c;
            const acc_t w = taps.weight[t];
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
        for (int32_t r = 0; r < taps.rows; ++r) {
          vector_t<acc_t> sum = {};
          for (int32_t t = taps.begin[r]; t < taps.begin[r + 1]; ++t) {
            sum += taps.weight[t] * load_partial(source + taps.offset[t] + c, n);
          }
          store_partial(out + r * row_stride + c, sum, n);
        }
      });
}

// Sums the lanes of one vector per tap; one transpose serves `lanes` taps.
template <typename acc_t>
struct DotProducts {
  static constexpr int32_t lanes = kLanes<acc_t>;
  acc_t* to;  // sum of the first tap held
  int32_t held = 0;
  vector_t<acc_t> products_of_tap[lanes];

  INLINE_MEMBER void add(vector_t<acc_t> products) {
    products_of_tap[held++] = products;
    if (held == lanes) {
      store_vector(to, load_vector(to) + sum_of_each<lanes>(products_of_tap));
      to += lanes;
      held = 0;
    }
  }
  INLINE_MEMBER void finish() {
    if (held > 0) {
      for (int32_t i = held; i < lanes; ++i) {
        products_of_tap[i] = vector_t<acc_t>{};
      }
      store_partial(to, load_partial(to, held) + sum_of_each<lanes>(products_of_tap), held);
    }
  }
};

template <typename T>
static void dot(
    TapMatrix<accumulate_t<T>> taps, const T* features, int32_t channels,
    const accumulate_t<T>* bins, int64_t bin_stride, accumulate_t<T>* products) {
  using acc_t = accumulate_t<T>;
  constexpr int32_t lanes = kLanes<acc_t>;
  for_channel_blocks<acc_t>(
      channels,
      [&](int32_t c, auto vectors) ALWAYS_INLINE {
        DotProducts<acc_t> sums{products};
        for (int32_t b = 0; b < taps.rows; ++b) {
          vector_t<acc_t> of_bin[vectors];
          repeat<vectors>([&](int32_t v) ALWAYS_INLINE {
            of_bin[v] = load_vector(bins + b * bin_stride + c + v * lanes);
          });
          for (int32_t t = taps.begin[b]; t < taps.begin[b + 1]; ++t) {
            const T* from = features + taps.offset[t] + c;
            constexpr int32_t chains = vectors < 4 ? vectors : 4;
            vector_t<acc_t> sum[chains] = {};
            repeat<vectors>([&](int32_t v) ALWAYS_INLINE {
              sum[v % chains] += of_bin[v] * load_vector(from + v * lanes);
            });
            for (int32_t v = 1; v < chains; ++v) {
              sum[0] += sum[v];
            }
            sums.add(sum[0]);
          }
        }
        sums.finish();
      },
      [&](int32_t c, int32_t n) ALWAYS_INLINE {
        DotProducts<acc_t> sums{products};
        for (int32_t b = 0; b < taps.rows; ++b) {
          const vector_t<acc_t> of_bin = load_partial(bins + b * bin_stride + c, n);
          for (int32_t t = taps.begin[b]; t < taps.begin[b + 1]; ++t) {
            sums.add(of_bin * load_partial(features + taps.offset[t] + c, n));
          }
        }
        sums.finish();
      });
}

template <typename T>
static void copy_to_buffer(
    const T* source, const int64_t* offset, int32_t rows, int32_t channels, accumulate_t<T>* buffer,
    int64_t stride) {
  using acc_t = accumulate_t<T>;
  constexpr int32_t lanes = kLanes<acc_t>;
  for (int32_t r = 0; r < rows; ++r) {
    const T* from = source + offset[r];
    acc_t* to = buffer + r * stride;
    int32_t c = 0;
    for (; c + lanes <= channels; c += lanes) {
      store_vector(to + c, load_vector(from + c));
    }
    for (; c < channels; ++c) {
      to[c] = load(from[c]);
    }
  }
}

// Whole vectors of channels go through register transposes, the rest element by element.
template <typename T>
static void pack(
    const Planes<const T>& planes, accumulate_t<T>* buffer, int64_t buffer_columns,
    int64_t stride) {
  using acc_t = accumulate_t<T>;
  constexpr int32_t lanes = kLanes<acc_t>;
  int32_t c = 0;
  for (; planes.unit_columns && c + lanes <= planes.channels; c += lanes) {
    acc_t* to = buffer + c;
    for (int32_t row = 0; row < planes.num_rows; ++row) {
      const T* from = planes.data + c * planes.channel_stride + planes.row_offset[row] +
                      planes.column_offset[0];
      for (int32_t column = 0; column < planes.num_columns; column += lanes) {
        const int32_t n = std::min(lanes, planes.num_columns - column);
        if (n <= lanes / 4) {  // a transpose costs more
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
      to += buffer_columns * stride;
    }
  }
  for (; c < planes.channels; ++c) {
    acc_t* to = buffer + c;
    for (int32_t row = 0; row < planes.num_rows; ++row, to += buffer_columns * stride) {
      const T* from = planes.data + c * planes.channel_stride + planes.row_offset[row];
      for (int32_t column = 0; column < planes.num_columns; ++column) {
        to[column * stride] = load(from[planes.column_offset[column]]);
      }
    }
  }
}

template <typename T>
static void unpack(const accumulate_t<T>* buffer, int64_t stride, const Planes<T>& planes) {
  using acc_t = accumulate_t<T>;
  constexpr int32_t lanes = kLanes<acc_t>;
  int32_t c = 0;
  for (; planes.unit_columns && c + lanes <= planes.channels; c += lanes) {
    const acc_t* from = buffer + c;
    for (int32_t row = 0; row < planes.num_rows; ++row) {
      T* to = planes.data + c * planes.channel_stride + planes.row_offset[row] +
              planes.column_offset[0];
      for (int32_t column = 0; column < planes.num_columns; column += lanes) {
        const int32_t n = std::min(lanes, planes.num_columns - column);
        if (n <= lanes / 4) {  // a transpose costs more
          for (int32_t j = column; j < column + n; ++j) {
            for (int32_t i = 0; i < lanes; ++i) {
              store(from[j * stride + i], to + i * planes.channel_stride + j);
            }
          }
          break;
        }
        vector_t<acc_t> m[lanes];
        repeat<lanes>([&](int32_t i) ALWAYS_INLINE {
          m[i] = load_vector(from + (column + i) * stride);  // may read past the last column
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
    const acc_t* from = buffer + c;
    for (int32_t row = 0; row < planes.num_rows; ++row) {
      T* to = planes.data + c * planes.channel_stride + planes.row_offset[row];
      for (int32_t column = 0; column < planes.num_columns; ++column, from += stride) {
        store(*from, &to[planes.column_offset[column]]);
      }
    }
  }
}

// Planes per group: as many as fit in registers. A group loads weights and indices once.
template <int32_t Vectors>
constexpr int32_t kPlanes = ACCUMULATORS / (Vectors < 4 ? 4 : Vectors);

// Calls f(first channel, planes, vectors) for groups of kPlanes planes, then plane by plane.
template <typename acc_t, typename F>
INLINE void for_plane_groups(int32_t vectors, int32_t channels, F f) {
  const auto groups = [&](auto row_vectors) ALWAYS_INLINE {
    constexpr int32_t planes = kPlanes<decltype(row_vectors)::value>;
    int32_t c = 0;
    for (; c + planes <= channels; c += planes) {
      f(c, std::integral_constant<int32_t, planes>{}, row_vectors);
    }
    for (; c < channels; ++c) {
      f(c, std::integral_constant<int32_t, 1>{}, row_vectors);
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
static void look_up(
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
                sum[p] += w * permute<vectors>(pixels[p], box.index + part * lanes);
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

#include "cpu/simd/row_sums.inl"

template <typename T>
static const Kernels<T>& table() {
  using acc_t = accumulate_t<T>;
  const auto look_up_if_possible = [] {
    if constexpr (kCanPermute<acc_t>) {
      return &look_up<T>;
    } else {
      return decltype(Kernels<T>::look_up){};
    }
  };
  static const Kernels<T> kTable = {
      .lanes = kLanes<acc_t>,
      .planar_block = 4 * kLanes<acc_t>,
      .gather = gather<T, T, false>,
      .gather_streamed = gather<T, T, true>,
      .gather_to_buffer = gather<T, acc_t, false>,
      .gather_from_buffer = gather<acc_t, T, false>,
      .gather_between_buffers = gather<acc_t, acc_t, false>,
      .dot = dot<T>,
      .dot_with_buffer = dot<acc_t>,
      .look_up = look_up_if_possible(),
      .sum_row = sum_row<T>,
      .pool_rows = pool_rows<T, T, false>,
      .pool_rows_to_buffer = pool_rows<T, acc_t, false>,
      .pool_buffer_rows = pool_rows<acc_t, acc_t, false>,
      .add_buffer_rows = pool_rows<acc_t, acc_t, true>,
      .look_up_rows = look_up_rows<acc_t, T>,
      .look_up_buffer_rows = look_up_rows<acc_t, acc_t>,
      .add_weighted = add_weighted<acc_t>,
      .add_products = add_products<acc_t>,
      .add_to_two = add_to_two<acc_t>,
      .interpolate = interpolate<acc_t>,
      .separate = separate<acc_t>,
      .interleave = interleave<T>,
      .copy_from_buffer = copy_from_buffer<T>,
      .copy_to_buffer = copy_to_buffer<T>,
      .pack = pack<T>,
      .unpack = unpack<T>,
  };
  return kTable;
}

#undef INLINE
#undef INLINE_MEMBER
#undef ALWAYS_INLINE
