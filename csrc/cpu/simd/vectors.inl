// Vectors of VECTOR_BYTES for kernels.inl: loads that convert, stores that round, transposes.

typedef float FloatVector __attribute__((vector_size(VECTOR_BYTES)));
typedef double DoubleVector __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t BitsVector __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t StorageVector __attribute__((vector_size(VECTOR_BYTES / 2)));

template <typename acc_t>
struct VectorOf {
  typedef FloatVector type;
};
template <>
struct VectorOf<double> {
  typedef DoubleVector type;
};
template <typename acc_t>
using vector_t = typename VectorOf<acc_t>::type;

template <typename acc_t>
constexpr int32_t kLanes = VECTOR_BYTES / sizeof(acc_t);

#define ALWAYS_INLINE __attribute__((always_inline))
#define INLINE static inline ALWAYS_INLINE
#define INLINE_MEMBER inline ALWAYS_INLINE

// Calls body(0), ..., body(N - 1), unrolled.
template <typename Body, int32_t... I>
INLINE void repeat_each(Body body, std::integer_sequence<int32_t, I...>) {
  (body(I), ...);
}
template <int32_t N, typename Body>
INLINE void repeat(Body body) {
  repeat_each(body, std::make_integer_sequence<int32_t, N>{});
}

INLINE FloatVector load_vector(const float* from) {
  FloatVector v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}
INLINE DoubleVector load_vector(const double* from) {
  DoubleVector v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}
INLINE FloatVector load_vector(const BFloat16* from) {
  StorageVector half;
  __builtin_memcpy(&half, from, sizeof(half));
  return (FloatVector)(__builtin_convertvector(half, BitsVector) << 16);
}
INLINE void store_vector(float* to, FloatVector v) {
  __builtin_memcpy(to, &v, sizeof(v));
}
INLINE void store_vector(double* to, DoubleVector v) {
  __builtin_memcpy(to, &v, sizeof(v));
}
INLINE void store_vector(BFloat16* to, FloatVector v) {
  const BitsVector bits = (BitsVector)v;
  const BitsVector rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const BitsVector is_nan = (BitsVector)((bits & 0x7fffffffu) > 0x7f800000u);
  const StorageVector half =
      __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0u), StorageVector);
  __builtin_memcpy(to, &half, sizeof(half));
}

#if VECTOR_BYTES == 64
INLINE FloatVector load_vector(const Half* from) {
  return (FloatVector)_mm512_maskz_cvtph_ps(
      0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
INLINE void store_vector(Half* to, FloatVector v) {
  _mm256_storeu_si256(
      reinterpret_cast<__m256i*>(to),
      _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif VECTOR_BYTES == 32
INLINE FloatVector load_vector(const Half* from) {
  return (FloatVector)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
INLINE void store_vector(Half* to, FloatVector v) {
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#else
INLINE FloatVector load_vector(const Half* from) {
  float values[kLanes<float>];
  for (int32_t i = 0; i < kLanes<float>; ++i) {
    values[i] = load(from[i]);
  }
  return load_vector(values);
}
INLINE void store_vector(Half* to, FloatVector v) {
  for (int32_t i = 0; i < kLanes<float>; ++i) {
    store(v[i], to + i);
  }
}
#endif

// A store that bypasses the caches. `to` is aligned to the size of the store.
INLINE void stream_vector(float* to, FloatVector v) {
#if VECTOR_BYTES == 64
  _mm512_stream_ps(to, (__m512)v);
#elif VECTOR_BYTES == 32
  _mm256_stream_ps(to, (__m256)v);
#else
  store_vector(to, v);
#endif
}
INLINE void stream_vector(double* to, DoubleVector v) {
#if VECTOR_BYTES == 64
  _mm512_stream_pd(to, (__m512d)v);
#elif VECTOR_BYTES == 32
  _mm256_stream_pd(to, (__m256d)v);
#else
  store_vector(to, v);
#endif
}
template <typename half_t>
INLINE void stream_vector(half_t* to, FloatVector v) {
#if VECTOR_BYTES == 64
  alignas(32) half_t values[16];
  store_vector(values, v);
  _mm256_stream_si256(
      reinterpret_cast<__m256i*>(to), _mm256_load_si256(reinterpret_cast<const __m256i*>(values)));
#elif VECTOR_BYTES == 32
  alignas(16) half_t values[8];
  store_vector(values, v);
  _mm_stream_si128(
      reinterpret_cast<__m128i*>(to), _mm_load_si128(reinterpret_cast<const __m128i*>(values)));
#else
  store_vector(to, v);
#endif
}

// The first n lanes; the others are 0.
template <typename T>
INLINE auto load_partial(const T* from, int32_t n) {
  T values[kLanes<accumulate_t<T>>] = {};
  for (int32_t i = 0; i < n; ++i) {
    values[i] = from[i];
  }
  return load_vector(values);
}
template <typename T>
INLINE void store_partial(T* to, vector_t<accumulate_t<T>> v, int32_t n) {
  T values[kLanes<accumulate_t<T>>];
  store_vector(values, v);
  for (int32_t i = 0; i < n; ++i) {
    to[i] = values[i];
  }
}
#if VECTOR_BYTES == 64
INLINE FloatVector load_partial(const float* from, int32_t n) {
  return (FloatVector)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), from);
}
INLINE DoubleVector load_partial(const double* from, int32_t n) {
  return (DoubleVector)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1u), from);
}
INLINE FloatVector load_partial(const BFloat16* from, int32_t n) {
  const __m256i half = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1u), from);
  return (FloatVector)_mm512_slli_epi32(_mm512_maskz_cvtepu16_epi32(0xffff, half), 16);
}
INLINE FloatVector load_partial(const Half* from, int32_t n) {
  const __m256i half = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1u), from);
  return (FloatVector)_mm512_maskz_cvtph_ps(0xffff, half);
}
INLINE void store_partial(float* to, FloatVector v, int32_t n) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << n) - 1u), (__m512)v);
}
INLINE void store_partial(double* to, DoubleVector v, int32_t n) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << n) - 1u), (__m512d)v);
}
#elif VECTOR_BYTES == 32
// A mask with all bits of the first n lanes set.
INLINE __m256i first_lanes(int32_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE FloatVector load_partial(const float* from, int32_t n) {
  return (FloatVector)_mm256_maskload_ps(from, first_lanes(n));
}
INLINE void store_partial(float* to, FloatVector v, int32_t n) {
  _mm256_maskstore_ps(to, first_lanes(n), (__m256)v);
}
#endif

// Lane i: element index[i] of the concatenated vectors. If not Complete, indices may be negative
// and give 0.
#if VECTOR_BYTES == 64
template <int32_t Vectors, bool Complete = false>
INLINE FloatVector permute(const FloatVector (&v)[Vectors], const int32_t* index) {
  const __m512i i = _mm512_loadu_si512(index);
  const __mmask16 some =
      Complete ? __mmask16(0xffff) : static_cast<__mmask16>(~_mm512_movepi32_mask(i));
  if constexpr (Vectors == 1) {
    return (FloatVector)_mm512_maskz_permutexvar_ps(some, i, (__m512)v[0]);
  } else {
    const __m512 low = _mm512_maskz_permutex2var_ps(some, (__m512)v[0], i, (__m512)v[1]);
    if constexpr (Vectors == 2) {
      return (FloatVector)low;
    } else {
      const __m512 high = _mm512_permutex2var_ps((__m512)v[2], i, (__m512)v[3]);
      const __mmask16 is_high = _mm512_mask_test_epi32_mask(some, i, _mm512_set1_epi32(32));
      return (FloatVector)_mm512_mask_blend_ps(is_high, low, high);
    }
  }
}
template <int32_t Vectors, bool Complete = false>
INLINE DoubleVector permute(const DoubleVector (&v)[Vectors], const int32_t* index) {
  const __m512i i = _mm512_maskz_cvtepi32_epi64(
      0xff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)));
  const __mmask8 some = Complete ? __mmask8(0xff) : static_cast<__mmask8>(~_mm512_movepi64_mask(i));
  if constexpr (Vectors == 1) {
    return (DoubleVector)_mm512_maskz_permutexvar_pd(some, i, (__m512d)v[0]);
  } else {
    const __m512d low = _mm512_maskz_permutex2var_pd(some, (__m512d)v[0], i, (__m512d)v[1]);
    if constexpr (Vectors == 2) {
      return (DoubleVector)low;
    } else {
      const __m512d high = _mm512_permutex2var_pd((__m512d)v[2], i, (__m512d)v[3]);
      const __mmask8 is_high = _mm512_mask_test_epi64_mask(some, i, _mm512_set1_epi64(16));
      return (DoubleVector)_mm512_mask_blend_pd(is_high, low, high);
    }
  }
}
template <typename acc_t>
constexpr bool kCanPermute = true;
#elif VECTOR_BYTES == 32
template <int32_t Vectors>
INLINE __m256 permute_any(const FloatVector* v, __m256i i) {
  if constexpr (Vectors == 1) {
    return _mm256_permutevar8x32_ps((__m256)v[0], i);
  } else {
    // Shifts the bit that selects the upper half into the sign bit.
    const __m256i is_high = _mm256_slli_epi32(i, Vectors == 2 ? 28 : 27);
    return _mm256_blendv_ps(
        permute_any<Vectors / 2>(v, i), permute_any<Vectors / 2>(v + Vectors / 2, i),
        _mm256_castsi256_ps(is_high));
  }
}
template <int32_t Vectors, bool Complete = false>
INLINE FloatVector permute(const FloatVector (&v)[Vectors], const int32_t* index) {
  const __m256i i = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
  if constexpr (Complete) {
    return (FloatVector)permute_any<Vectors>(v, i);
  }
  const __m256 is_none = _mm256_castsi256_ps(_mm256_srai_epi32(i, 31));
  return (FloatVector)_mm256_andnot_ps(is_none, permute_any<Vectors>(v, i));
}
template <typename acc_t>
constexpr bool kCanPermute = sizeof(acc_t) == sizeof(float);
#else
// Declared only: Clang looks up the name even if kCanPermute discards the call.
template <int32_t Vectors, bool Complete = false, typename V>
V permute(const V (&v)[Vectors], const int32_t* index);
template <typename acc_t>
constexpr bool kCanPermute = false;
#endif

// Lane i: a[i] or b[i], whichever is not 0; at least one must be 0.
template <typename V>
INLINE V either(V a, V b) {
  return (V)((BitsVector)a | (BitsVector)b);
}

// Swaps the off-diagonal Block x Block quarters of each 2 Block x 2 Block square.
template <int32_t Block, typename V, int32_t... I>
INLINE void exchange_blocks(V& low, V& high, std::integer_sequence<int32_t, I...>) {
  constexpr int32_t lanes = sizeof...(I);
  const V a = low;
  const V b = high;
  low = __builtin_shufflevector(a, b, ((I & Block) == 0 ? I : I - Block + lanes)...);
  high = __builtin_shufflevector(a, b, ((I & Block) == 0 ? I + Block : I + lanes)...);
}

template <int32_t Block, int32_t Lanes, typename V>
INLINE void transpose(V (&m)[Lanes]) {
  repeat<Lanes>([&](int32_t i) ALWAYS_INLINE {
    if ((i & Block) == 0) {
      exchange_blocks<Block>(m[i], m[i + Block], std::make_integer_sequence<int32_t, Lanes>{});
    }
  });
  if constexpr (Block > 1) {
    transpose<Block / 2>(m);
  }
}

// Lane i: the sum over the lanes of m[i].
template <int32_t Vectors, int32_t Lanes, typename V>
INLINE V sum_of_each(V (&m)[Lanes]) {
  if constexpr (Vectors == 1) {
    return m[0];
  } else {
    constexpr int32_t half = Vectors / 2;
    repeat<half>([&](int32_t i) ALWAYS_INLINE {
      exchange_blocks<half>(m[i], m[i + half], std::make_integer_sequence<int32_t, Lanes>{});
      m[i] += m[i + half];
    });
    return sum_of_each<half>(m);
  }
}
