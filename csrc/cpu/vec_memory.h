// Lanes from and to memory. Elements are read and written as they are there (`raw`), and widened or rounded in registers;
// `_partial` touches the first n elements only, 0 <= n <= width. Included by isa_table.h behind vec.h.

template <class Raw, class T>
INSTRUCTRL_LANE Raw load_raw(const T* from) {
  static_assert(sizeof(Raw) == sizeof(T) * kFloatLanes, "one element a lane");
  Raw raw;
  __builtin_memcpy(&raw, from, sizeof raw);
  return raw;
}

// The lanes behind n are 0.
template <class Raw, class T>
INSTRUCTRL_LANE Raw load_raw_partial(const T* from, int64_t n) {
#if INSTRUCTRL_VECTOR_BYTES == 64
  const auto keep = static_cast<__mmask16>((1u << n) - 1);
  if constexpr (sizeof(T) == 4) return (Raw)_mm512_maskz_loadu_epi32(keep, from);
  if constexpr (sizeof(T) == 2) return (Raw)_mm256_maskz_loadu_epi16(keep, from);
  if constexpr (sizeof(T) == 1) return (Raw)_mm_maskz_loadu_epi8(keep, from);
#else
  Raw raw = {};
  T elements[kFloatLanes];
  __builtin_memcpy(elements, &raw, sizeof raw);
  for (int64_t i = 0; i < n; ++i) elements[i] = from[i];
  __builtin_memcpy(&raw, elements, sizeof raw);
  return raw;
#endif
}

template <class Raw, class T>
INSTRUCTRL_LANE void store_raw_partial(T* to, Raw raw, int64_t n) {
#if INSTRUCTRL_VECTOR_BYTES == 64
  const auto keep = static_cast<__mmask16>((1u << n) - 1);
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_epi32(to, keep, (__m512i)raw);
  if constexpr (sizeof(T) == 2) _mm256_mask_storeu_epi16(to, keep, (__m256i)raw);
#else
  T elements[kFloatLanes];
  __builtin_memcpy(elements, &raw, sizeof raw);
  for (int64_t i = 0; i < n; ++i) to[i] = elements[i];
#endif
}

// Intrinsics, because GCC 12 widens one element at a time.
INSTRUCTRL_LANE Words widened_words(Shorts raw) {
#if INSTRUCTRL_VECTOR_BYTES == 64
  return (Words)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)raw);  // GCC warns about the form without a mask.
#elif INSTRUCTRL_VECTOR_BYTES == 32
  return (Words)_mm256_cvtepu16_epi32((__m128i)raw);
#else
  return __builtin_convertvector(raw, Words);
#endif
}
INSTRUCTRL_LANE Words widened_words(Bytes raw) {
#if INSTRUCTRL_VECTOR_BYTES == 64
  return (Words)_mm512_maskz_cvtepu8_epi32(0xffff, (__m128i)raw);
#elif INSTRUCTRL_VECTOR_BYTES == 32
  uint64_t bytes;
  __builtin_memcpy(&bytes, &raw, sizeof bytes);
  return (Words)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(bytes)));
#else
  return __builtin_convertvector(raw, Words);
#endif
}

INSTRUCTRL_LANE F widened(Shorts raw, BFloat16) { return from_bits(I((Ints)(widened_words(raw) << 16))); }

INSTRUCTRL_LANE F widened(Shorts raw, Half) {
#if INSTRUCTRL_VECTOR_BYTES == 64
  return F((Floats)_mm512_maskz_cvtph_ps(kAllLanes, (__m256i)raw));
#elif INSTRUCTRL_VECTOR_BYTES == 32
  return F((Floats)_mm256_cvtph_ps((__m128i)raw));
#else
  const I wide((Ints)widened_words(raw));
  const I magnitude = (wide & 0x7fff) << 13;
  const F scaled = from_bits(magnitude) * F(0x1p112f);  // From exponents biased by 15 to those by 127, subnormals too.
  const I special = magnitude | 0x7f800000;
  return from_bits(select(magnitude >= I(0x0f800000), special, bits_of(scaled)) | ((wide & 0x8000) << 16));
#endif
}

// The upper half of the bits is the bfloat16: to nearest, ties to even.
INSTRUCTRL_LANE I rounded_to_bfloat16(F a) {
  const I bits = bits_of(a);
  return select(a != a, I(0x7fc00000), bits + 0x7fff + ((bits >> 16) & 1));
}

INSTRUCTRL_LANE Shorts narrowed(F a, BFloat16) {
  return __builtin_convertvector((Words)rounded_to_bfloat16(a).v >> 16, Shorts);
}

INSTRUCTRL_LANE Shorts narrowed(F a, Half) {
#if INSTRUCTRL_VECTOR_BYTES == 64
  return (Shorts)_mm512_maskz_cvtps_ph(kAllLanes, (__m512)a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif INSTRUCTRL_VECTOR_BYTES == 32
  return (Shorts)_mm256_cvtps_ph((__m256)a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const I magnitude = bits_of(abs(a));
  const I sign = (bits_of(a) >> 16) & 0x8000;
  // Adding 0.5 leaves the bits of a subnormal, rounded, at the end of the sum.
  const I subnormal = bits_of(from_bits(magnitude) + F(0.5f)) - I(0x3f000000);
  const I normal = (magnitude - I(112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const I special = select(magnitude > I(0x7f800000), I(0x7e00), I(0x7c00));
  const I finite = select(magnitude < I(0x38800000), subnormal, normal);
  const I rounded = select(magnitude >= I(0x47800000), special, finite);
  return __builtin_convertvector((Words)(rounded | sign).v, Shorts);
#endif
}

INSTRUCTRL_LANE F load(const float* from) { return F(load_raw<Floats>(from)); }
INSTRUCTRL_LANE F load(const BFloat16* from) { return widened(load_raw<Shorts>(from), BFloat16{}); }
INSTRUCTRL_LANE F load(const Half* from) { return widened(load_raw<Shorts>(from), Half{}); }
INSTRUCTRL_LANE D load(const double* from) { return *from; }

INSTRUCTRL_LANE F load_partial(const float* from, int64_t n, F rest = 0.0f) {
  return select(first_lanes(n), F(load_raw_partial<Floats>(from, n)), rest);
}
template <class T>
INSTRUCTRL_LANE F load_partial(const T* from, int64_t n, F rest = 0.0f) {
  return select(first_lanes(n), widened(load_raw_partial<Shorts>(from, n), T{}), rest);
}
INSTRUCTRL_LANE D load_partial(const double* from, int64_t n, D rest = 0.0) { return n > 0 ? D(*from) : rest; }

INSTRUCTRL_LANE void store(float* to, F a) { __builtin_memcpy(to, &a, sizeof a); }
template <class T>
INSTRUCTRL_LANE void store(T* to, F a) {
  const Shorts raw = narrowed(a, T{});
  __builtin_memcpy(to, &raw, sizeof raw);
}
INSTRUCTRL_LANE void store(double* to, D a) { *to = a.v; }

INSTRUCTRL_LANE void store_partial(float* to, F a, int64_t n) { store_raw_partial(to, a.v, n); }
template <class T>
INSTRUCTRL_LANE void store_partial(T* to, F a, int64_t n) {
  store_raw_partial(to, narrowed(a, T{}), n);
}
INSTRUCTRL_LANE void store_partial(double* to, D a, int64_t n) {
  if (n > 0) *to = a.v;
}

// Masks of bool elements; the lanes behind n are false.
template <class L>
INSTRUCTRL_LANE auto load_mask(const bool* from) {
  if constexpr (L::kWidth == 1) {
    return DMask{*from};
  } else {
    return Mask{-(Ints)widened_words(load_raw<Bytes>(from))};
  }
}
template <class L>
INSTRUCTRL_LANE auto load_mask_partial(const bool* from, int64_t n) {
  if constexpr (L::kWidth == 1) {
    return DMask{n > 0 && *from};
  } else {
    return Mask{-(Ints)widened_words(load_raw_partial<Bytes>(from, n))};
  }
}

// Two vectors of elements that lie side by side, in an order that is the type's own: for bfloat16 the even and the odd
// elements, which takes half of the work of widening and narrowing.
template <class L>
struct Pair {
  L a, b;
};
template <class T>
INSTRUCTRL_LANE Pair<Lanes<T>> load_pair(const T* from) {
  return {load(from), load(from + Lanes<T>::kWidth)};
}
INSTRUCTRL_LANE Pair<F> load_pair(const BFloat16* from) {
  Ints words;
  __builtin_memcpy(&words, from, sizeof words);
  return {from_bits(I(words << 16)), from_bits(I(words & -0x10000))};
}

INSTRUCTRL_LANE Ints packed(Pair<F> pair) {
  return (Ints)((Words)rounded_to_bfloat16(pair.a).v >> 16) | (rounded_to_bfloat16(pair.b).v & -0x10000);
}
template <class T, class L>
INSTRUCTRL_LANE void store_pair(T* to, Pair<L> pair) {
  store(to, pair.a);
  store(to + L::kWidth, pair.b);
}
INSTRUCTRL_LANE void store_pair(BFloat16* to, Pair<F> pair) {
  const Ints words = packed(pair);
  __builtin_memcpy(to, &words, sizeof words);
}

// Writes around the cache; `to` is a multiple of kVectorBytes. `streaming_done` makes it visible to other threads.
INSTRUCTRL_LANE void stream_vector(void* to, Ints a) {
#if INSTRUCTRL_VECTOR_BYTES == 64
  _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)a);
#elif INSTRUCTRL_VECTOR_BYTES == 32
  _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)a);
#else
  __builtin_memcpy(to, &a, sizeof a);
#endif
}
INSTRUCTRL_LANE void stream_pair(float* to, Pair<F> pair) {
  stream_vector(to, (Ints)pair.a.v);
  stream_vector(to + kFloatLanes, (Ints)pair.b.v);
}
INSTRUCTRL_LANE void stream_pair(BFloat16* to, Pair<F> pair) { stream_vector(to, packed(pair)); }
INSTRUCTRL_LANE void stream_pair(Half* to, Pair<F> pair) {
  const Shorts halves[2] = {narrowed(pair.a, Half{}), narrowed(pair.b, Half{})};
  Ints words;
  __builtin_memcpy(&words, halves, sizeof words);
  stream_vector(to, words);
}
INSTRUCTRL_LANE void stream_pair(double* to, Pair<D> pair) { store_pair(to, pair); }

INSTRUCTRL_LANE void streaming_done() {
#if INSTRUCTRL_VECTOR_BYTES > 16
  _mm_sfence();
#endif
}
