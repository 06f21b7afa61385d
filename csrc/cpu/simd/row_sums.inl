// Rows first, then columns: kernels whose lanes run along a row of bins or samples, for few
// channels. kernels.inl includes this file.

// Lane i: from[index[i]]; 0 if index[i] is negative.
#if VECTOR_BYTES == 64
INLINE FloatVector look_up_anywhere(const float* from, const int32_t* index) {
  const __m512i i = _mm512_loadu_si512(index);
  const __mmask16 some = static_cast<__mmask16>(~_mm512_movepi32_mask(i));
  return (FloatVector)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), some, i, from, sizeof(float));
}
#elif VECTOR_BYTES == 32
INLINE FloatVector look_up_anywhere(const float* from, const int32_t* index) {
  const __m256i i = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
  const __m256i some = _mm256_xor_si256(i, _mm256_set1_epi32(-1));
  return (FloatVector)_mm256_mask_i32gather_ps(
      _mm256_setzero_ps(), from, i, _mm256_castsi256_ps(some), sizeof(float));
}
#else
INLINE FloatVector look_up_anywhere(const float* from, const int32_t* index) {
  float values[kLanes<float>];
  for (int32_t i = 0; i < kLanes<float>; ++i) {
    values[i] = index[i] < 0 ? 0.0f : from[index[i]];
  }
  return load_vector(values);
}
#endif
INLINE DoubleVector look_up_anywhere(const double* from, const int32_t* index) {
  double values[kLanes<double>];
  for (int32_t i = 0; i < kLanes<double>; ++i) {
    values[i] = index[i] < 0 ? 0.0 : from[index[i]];
  }
  return load_vector(values);
}

// Loads the first min(n, lanes) lanes.
template <typename T>
INLINE vector_t<accumulate_t<T>> load_some(const T* from, int32_t n) {
  return n >= kLanes<accumulate_t<T>> ? load_vector(from) : load_partial(from, n);
}
template <typename T, typename V>
INLINE void store_some(T* to, V v, int32_t n) {
  if (n >= kLanes<accumulate_t<T>>) {
    store_vector(to, v);
  } else {
    store_partial(to, v, n);
  }
}

// Result vector v of `columns`, from a window of sources in registers.
template <int32_t Window, bool Complete, typename acc_t>
INLINE vector_t<acc_t> add_taps(
    const LaneTaps<acc_t>& columns, int32_t v, const vector_t<acc_t> (&window)[Window]) {
  constexpr int32_t lanes = kLanes<acc_t>;
  const int64_t first = int64_t(v) * columns.parts * lanes;
  vector_t<acc_t> sum = {};
  for (int32_t part = 0; part < columns.parts; ++part) {
    sum += load_vector(columns.weight + first + part * lanes) *
           permute<Window, Complete>(window, columns.index + first + part * lanes);
  }
  return sum;
}

// Result vector v of `columns`. Window: LaneTaps::window.
template <int32_t Window, bool Complete, typename acc_t>
INLINE vector_t<acc_t> look_up_taps(
    const LaneTaps<acc_t>& columns, int32_t v, const acc_t* source) {
  constexpr int32_t lanes = kLanes<acc_t>;
  const acc_t* from = source + columns.start[v];
  if constexpr (Window > 0) {
    vector_t<acc_t> window[Window];
    repeat<Window>([&](int32_t w) ALWAYS_INLINE { window[w] = load_vector(from + w * lanes); });
    return add_taps<Window, Complete>(columns, v, window);
  } else {
    const int64_t first = int64_t(v) * columns.parts * lanes;
    vector_t<acc_t> sum = {};
    for (int32_t part = 0; part < columns.parts; ++part) {
      sum += load_vector(columns.weight + first + part * lanes) *
             look_up_anywhere(from, columns.index + first + part * lanes);
    }
    return sum;
  }
}

// Calls f(window, whether complete).
template <typename acc_t, typename F>
INLINE void with_window(const LaneTaps<acc_t>& columns, F f) {
  const auto call = [&](auto window) ALWAYS_INLINE {
    if (columns.is_complete) {
      f(window, std::true_type{});
    } else {
      f(window, std::false_type{});
    }
  };
  if constexpr (kCanPermute<acc_t>) {
    switch (columns.window) {
      case 1:
        return call(std::integral_constant<int32_t, 1>{});
      case 2:
        return call(std::integral_constant<int32_t, 2>{});
      case 4:
        return call(std::integral_constant<int32_t, 4>{});
      default:
        break;
    }
  }
  f(std::integral_constant<int32_t, 0>{}, std::false_type{});
}

// row_sums.sum = the weighted sum of the source rows of row r.
template <typename T>
INLINE void sum_rows(
    const RowSumsArguments<accumulate_t<T>>& row_sums, int32_t r, const T* source) {
  using acc_t = accumulate_t<T>;
  constexpr int32_t lanes = kLanes<acc_t>;
  constexpr int32_t kVectors = 4;
  const int32_t begin = row_sums.rows.begin[r];
  const int32_t end = row_sums.rows.begin[r + 1];
  int32_t e = 0;
  for (; e + kVectors * lanes <= row_sums.elements; e += kVectors * lanes) {
    vector_t<acc_t> sum[kVectors] = {};
    for (int32_t t = begin; t < end; ++t) {
      const T* from = source + row_sums.rows.offset[t] + e;
      const acc_t w = row_sums.rows.weight[t];
      repeat<kVectors>([&](int32_t v)
                           ALWAYS_INLINE { sum[v] += w * load_vector(from + v * lanes); });
    }
    repeat<kVectors>([&](int32_t v)
                         ALWAYS_INLINE { store_vector(row_sums.sum + e + v * lanes, sum[v]); });
  }
  for (; e < row_sums.elements; e += lanes) {
    const int32_t n = std::min(lanes, row_sums.elements - e);
    vector_t<acc_t> sum = {};
    if (n == lanes) {
      for (int32_t t = begin; t < end; ++t) {
        sum += row_sums.rows.weight[t] * load_vector(source + row_sums.rows.offset[t] + e);
      }
    } else {
      for (int32_t t = begin; t < end; ++t) {
        sum += row_sums.rows.weight[t] * load_partial(source + row_sums.rows.offset[t] + e, n);
      }
    }
    store_vector(row_sums.sum + e, sum);
  }
  if (row_sums.next_row != 0 && begin < end) {
    const char* next =
        reinterpret_cast<const char*>(source + row_sums.rows.offset[end - 1] + row_sums.next_row);
    constexpr int64_t kLine = 64;
    for (int64_t i = 0; i < row_sums.elements * int64_t(sizeof(T)); i += kLine) {
      __builtin_prefetch(next + i);
    }
  }
}

template <typename T>
static void sum_row(const RowSumsArguments<accumulate_t<T>>& row_sums, const T* source) {
  sum_rows(row_sums, 0, source);
}

// The same sum for rows that fit in registers. n: elements of each vector; the other lanes are 0.
template <int32_t Vectors, typename T>
INLINE void sum_rows_in_registers(
    const TapMatrix<accumulate_t<T>>& rows, int32_t r, const int32_t (&n)[Vectors], const T* source,
    vector_t<accumulate_t<T>> (&sum)[Vectors]) {
  constexpr int32_t lanes = kLanes<accumulate_t<T>>;
  repeat<Vectors>([&](int32_t v) ALWAYS_INLINE { sum[v] = vector_t<accumulate_t<T>>{}; });
  for (int32_t t = rows.begin[r]; t < rows.begin[r + 1]; ++t) {
    const T* from = source + rows.offset[t];
    const accumulate_t<T> w = rows.weight[t];
    repeat<Vectors>([&](int32_t v) ALWAYS_INLINE {
      sum[v] += w * (v < Vectors / 2 ? load_vector(from + v * lanes)
                                     : load_partial(from + v * lanes, n[v]));
    });
  }
}

template <typename T, typename out_t, bool Add>
static void pool_rows(
    const RowSumsArguments<accumulate_t<T>>& arguments, const T* source, int64_t plane_stride,
    out_t* out, int64_t out_plane_stride, int64_t out_row_stride, int32_t results) {
  using acc_t = accumulate_t<T>;
  constexpr int32_t lanes = kLanes<acc_t>;
  const RowSumsArguments<acc_t> row_sums = arguments;  // a copy: stores cannot alias it
  const LaneTaps<acc_t>& columns = row_sums.columns;
  // Calls of_row(row, source of its plane, output of the row).
  const auto for_each_row = [&](auto of_row) ALWAYS_INLINE {
    for (int32_t plane = 0; plane < row_sums.planes; ++plane) {
      for (int32_t r = 0; r < row_sums.rows.rows; ++r) {
        if (Add && row_sums.rows.begin[r] == row_sums.rows.begin[r + 1]) {
          continue;
        }
        of_row(
            r, source + plane * plane_stride, out + plane * out_plane_stride + r * out_row_stride);
      }
    }
  };
  // look_up(v): result vector v.
  const auto write = [&](out_t* to, auto look_up) ALWAYS_INLINE {
    for (int32_t v = 0; v < columns.vectors; ++v, to += lanes) {
      const vector_t<acc_t> sum = look_up(v);
      const int32_t n = results - v * lanes;
      if constexpr (Add) {
        store_some(to, load_some(to, n) + sum, n);
      } else {
        store_some(to, sum, n);
      }
    }
  };
  with_window(columns, [&](auto window, auto complete) ALWAYS_INLINE {
    if constexpr (window > 0) {
      if (row_sums.elements <= window * lanes) {
        int32_t n[window];
        repeat<window>([&](int32_t v) ALWAYS_INLINE {
          n[v] = std::clamp(row_sums.elements - v * lanes, 0, lanes);
        });
        for_each_row([&](int32_t r, const T* from, out_t* to) ALWAYS_INLINE {
          vector_t<acc_t> sum[window];
          sum_rows_in_registers(row_sums.rows, r, n, from, sum);
          write(to, [&](int32_t v) ALWAYS_INLINE {
            return add_taps<window, complete>(columns, v, sum);
          });
        });
        return;
      }
    }
    for_each_row([&](int32_t r, const T* from, out_t* to) ALWAYS_INLINE {
      sum_rows(row_sums, r, from);
      write(to, [&](int32_t v) ALWAYS_INLINE {
        return look_up_taps<window, complete>(columns, v, row_sums.sum);
      });
    });
  });
}

template <typename acc_t, typename out_t>
static void look_up_rows(
    const LaneTaps<acc_t>& of_columns, const acc_t* source, int32_t planes, int64_t source_stride,
    out_t* to, int64_t plane_stride, int32_t results) {
  constexpr int32_t lanes = kLanes<acc_t>;
  const LaneTaps<acc_t> columns = of_columns;  // a copy: stores cannot alias it
  with_window(columns, [&](auto window, auto complete) ALWAYS_INLINE {
    for (int32_t plane = 0; plane < planes; ++plane) {
      for (int32_t v = 0; v < columns.vectors; ++v) {
        store_some(
            to + plane * plane_stride + v * lanes,
            look_up_taps<window, complete>(columns, v, source + plane * source_stride),
            results - v * lanes);
      }
    }
  });
}

template <typename acc_t>
static void add_weighted(const acc_t* a, const acc_t* b, int32_t planes, int32_t n, acc_t* to) {
  for (int32_t plane = 0; plane < planes; ++plane, b += n, to += n) {
    for (int32_t i = 0; i < n; i += kLanes<acc_t>) {
      store_vector(to + i, load_vector(to + i) + load_vector(a + i) * load_vector(b + i));
    }
  }
}

template <typename acc_t>
static void add_products(const acc_t* a, const acc_t* b, int32_t planes, int32_t n, acc_t* to) {
  for (int32_t i = 0; i < n; i += kLanes<acc_t>) {
    vector_t<acc_t> sum = load_vector(to + i);
    for (int32_t plane = 0; plane < planes; ++plane) {
      sum += load_vector(a + int64_t(plane) * n + i) * load_vector(b + int64_t(plane) * n + i);
    }
    store_vector(to + i, sum);
  }
}

template <typename acc_t>
static void add_to_two(
    const acc_t* from, int32_t n, acc_t low_weight, acc_t* low, acc_t high_weight, acc_t* high) {
  for (int32_t i = 0; i < n; i += kLanes<acc_t>) {
    const vector_t<acc_t> v = load_vector(from + i);
    store_vector(low + i, load_vector(low + i) + low_weight * v);
    store_vector(high + i, load_vector(high + i) + high_weight * v);
  }
}

template <typename acc_t>
static void interpolate(
    const acc_t* low, acc_t low_weight, const acc_t* high, acc_t high_weight, int32_t n,
    acc_t* to) {
  for (int32_t i = 0; i < n; i += kLanes<acc_t>) {
    store_vector(to + i, low_weight * load_vector(low + i) + high_weight * load_vector(high + i));
  }
}

// Indices for permutes that separate interleaved channels: they extract one vector of one channel
// from `channels` vectors.
template <int32_t Lanes>
struct Separation {
  static constexpr int32_t kWindow = 4;  // vectors
  static constexpr int32_t kMaxChannels = 2 * kWindow;
  // Indices into the first kWindow vectors, and into the remaining ones; -1: in the other part.
  int32_t index[kMaxChannels + 1][kMaxChannels][2][Lanes] = {};

  constexpr Separation() {
    for (int32_t channels = 1; channels <= kMaxChannels; ++channels) {
      for (int32_t c = 0; c < channels; ++c) {
        for (int32_t i = 0; i < Lanes; ++i) {
          const int32_t at = i * channels + c;
          const bool is_first = at < kWindow * Lanes;
          index[channels][c][0][i] = is_first ? at : -1;
          index[channels][c][1][i] = is_first ? -1 : at - kWindow * Lanes;
        }
      }
    }
  }
};

template <typename acc_t>
static void separate(const acc_t* from, int32_t channels, int32_t n, acc_t* to, int64_t stride) {
  constexpr int32_t lanes = kLanes<acc_t>;
  using Table = Separation<lanes>;
  if (!kCanPermute<acc_t> || channels > Table::kMaxChannels) {
    for (int32_t c = 0; c < channels; ++c) {
      for (int32_t i = 0; i < n; ++i) {
        to[c * stride + i] = from[i * channels + c];
      }
    }
    return;
  }
  if constexpr (kCanPermute<acc_t>) {
    static constexpr Table kTable;
    const auto separate_by = [&](auto windows) ALWAYS_INLINE {
      for (int32_t i = 0; i < n; i += lanes, from += lanes * channels, to += lanes) {
        vector_t<acc_t> window[windows][Table::kWindow];
        repeat<windows * Table::kWindow>([&](int32_t v) ALWAYS_INLINE {
          window[v / Table::kWindow][v % Table::kWindow] = load_vector(from + v * lanes);
        });
        for (int32_t c = 0; c < channels; ++c) {
          vector_t<acc_t> part[windows];
          repeat<windows>([&](int32_t w) ALWAYS_INLINE {
            part[w] = permute<Table::kWindow>(window[w], kTable.index[channels][c][w]);
          });
          store_vector(
              to + c * stride, windows == 1 ? part[0] : either(part[0], part[windows - 1]));
        }
      }
    };
    if (channels <= Table::kWindow) {
      separate_by(std::integral_constant<int32_t, 1>{});
    } else {
      separate_by(std::integral_constant<int32_t, 2>{});
    }
  }
}

template <int32_t Channels, typename T>
INLINE void interleave_some(
    const accumulate_t<T>* from, int32_t channels, int64_t stride, int32_t n, T* to) {
  const int32_t count = Channels > 0 ? Channels : channels;
  for (int32_t i = 0; i < n; ++i) {
    for (int32_t c = 0; c < count; ++c) {
      store(from[c * stride + i], to + i * count + c);
    }
  }
}

template <typename T>
static void interleave(
    const accumulate_t<T>* from, int32_t channels, int64_t stride, int32_t n, T* to) {
  switch (channels) {
    case 2:
      return interleave_some<2>(from, channels, stride, n, to);
    case 3:
      return interleave_some<3>(from, channels, stride, n, to);
    case 4:
      return interleave_some<4>(from, channels, stride, n, to);
    default:
      return interleave_some<0>(from, channels, stride, n, to);
  }
}

template <typename T>
static void copy_from_buffer(const accumulate_t<T>* from, int32_t n, T* to) {
  constexpr int32_t lanes = kLanes<accumulate_t<T>>;
  int32_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    store_vector(to + i, load_vector(from + i));
  }
  if (i < n) {
    store_partial(to + i, load_partial(from + i, n - i), n - i);
  }
}
