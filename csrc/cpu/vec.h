// Lanes: a vector of floats F with its Mask, integers I of the same width, and one double D with the same interface, so
// that a kernel is written once for every dtype (`Lanes<T>` is what elements of type T are computed in).
//
// GCC's vector extensions, with intrinsics where they cannot say it. Included by isa_table.h inside the namespace of the
// instruction set, so there are no #includes and no `#pragma once` here. Everything is always_inline: vectors are never
// passed by the calling convention, and no copy is left for the linker to merge.

#define INSTRUCTRL_LANE static inline __attribute__((always_inline))
#define INSTRUCTRL_MEMBER inline __attribute__((always_inline))
#define INSTRUCTRL_LAMBDA __attribute__((always_inline))

constexpr int kVectorBytes = INSTRUCTRL_VECTOR_BYTES;
constexpr int kFloatLanes = kVectorBytes / 4;

typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef uint16_t Shorts __attribute__((vector_size(kVectorBytes / 2)));
typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes / 4)));
typedef float HalfFloats __attribute__((vector_size(kVectorBytes / 2)));
typedef double Doubles __attribute__((vector_size(kVectorBytes)));

#if INSTRUCTRL_VECTOR_BYTES == 64
// GCC 12 warns of its own headers where an intrinsic is not given a mask; this one costs nothing.
constexpr __mmask16 kAllLanes = 0xffff;
#endif

struct Mask {
  Ints v;  // -1 or 0.
};
struct I {
  Ints v;
  INSTRUCTRL_MEMBER I() = default;
  INSTRUCTRL_MEMBER I(int32_t x) : v(x - Ints{}) {}
  INSTRUCTRL_MEMBER explicit I(Ints x) : v(x) {}
};
struct F {
  using Scalar = float;
  static constexpr int kWidth = kFloatLanes;
  Floats v;
  INSTRUCTRL_MEMBER F() = default;
  INSTRUCTRL_MEMBER F(float x) : v(x - Floats{}) {}
  INSTRUCTRL_MEMBER explicit F(Floats x) : v(x) {}
};
struct DMask {
  bool v;
};
struct D {
  using Scalar = double;
  static constexpr int kWidth = 1;
  double v;
  INSTRUCTRL_MEMBER D() = default;
  INSTRUCTRL_MEMBER D(double x) : v(x) {}
};

template <class T>
struct LanesOf {
  using Type = F;
};
template <>
struct LanesOf<double> {
  using Type = D;
};
template <class T>
using Lanes = typename LanesOf<T>::Type;

// Arithmetic and comparisons. A number on either side becomes a lane of it.

#define INSTRUCTRL_LANE_OPERATORS(L, M)                              \
  INSTRUCTRL_LANE L operator+(L a, L b) { return L(a.v + b.v); }     \
  INSTRUCTRL_LANE L operator-(L a, L b) { return L(a.v - b.v); }     \
  INSTRUCTRL_LANE L operator*(L a, L b) { return L(a.v * b.v); }     \
  INSTRUCTRL_LANE L operator-(L a) { return L(-a.v); }               \
  INSTRUCTRL_LANE L& operator+=(L& a, L b) { return a = a + b; }     \
  INSTRUCTRL_LANE L& operator-=(L& a, L b) { return a = a - b; }     \
  INSTRUCTRL_LANE L& operator*=(L& a, L b) { return a = a * b; }     \
  INSTRUCTRL_LANE M operator<(L a, L b) { return M{a.v < b.v}; }     \
  INSTRUCTRL_LANE M operator<=(L a, L b) { return M{a.v <= b.v}; }   \
  INSTRUCTRL_LANE M operator>(L a, L b) { return M{a.v > b.v}; }     \
  INSTRUCTRL_LANE M operator>=(L a, L b) { return M{a.v >= b.v}; }   \
  INSTRUCTRL_LANE M operator==(L a, L b) { return M{a.v == b.v}; }   \
  INSTRUCTRL_LANE M operator!=(L a, L b) { return M{a.v != b.v}; }
INSTRUCTRL_LANE_OPERATORS(F, Mask)
INSTRUCTRL_LANE_OPERATORS(D, DMask)
INSTRUCTRL_LANE_OPERATORS(I, Mask)
#undef INSTRUCTRL_LANE_OPERATORS

INSTRUCTRL_LANE F operator/(F a, F b) { return F(a.v / b.v); }
INSTRUCTRL_LANE D operator/(D a, D b) { return D(a.v / b.v); }
INSTRUCTRL_LANE I operator&(I a, I b) { return I(a.v & b.v); }
INSTRUCTRL_LANE I operator|(I a, I b) { return I(a.v | b.v); }
INSTRUCTRL_LANE I operator<<(I a, int bits) { return I(a.v << bits); }
INSTRUCTRL_LANE I operator>>(I a, int bits) { return I(a.v >> bits); }  // Keeps the sign.

INSTRUCTRL_LANE Mask operator&(Mask a, Mask b) { return Mask{a.v & b.v}; }
INSTRUCTRL_LANE Mask operator|(Mask a, Mask b) { return Mask{a.v | b.v}; }
INSTRUCTRL_LANE Mask operator~(Mask a) { return Mask{~a.v}; }
INSTRUCTRL_LANE DMask operator&(DMask a, DMask b) { return DMask{a.v && b.v}; }
INSTRUCTRL_LANE DMask operator|(DMask a, DMask b) { return DMask{a.v || b.v}; }
INSTRUCTRL_LANE DMask operator~(DMask a) { return DMask{!a.v}; }

INSTRUCTRL_LANE F select(Mask condition, F a, F b) { return F(condition.v ? a.v : b.v); }
INSTRUCTRL_LANE I select(Mask condition, I a, I b) { return I(condition.v ? a.v : b.v); }
INSTRUCTRL_LANE D select(DMask condition, D a, D b) { return condition.v ? a : b; }

INSTRUCTRL_LANE I bits_of(F a) { return I((Ints)a.v); }
INSTRUCTRL_LANE F from_bits(I a) { return F((Floats)a.v); }
INSTRUCTRL_LANE I truncated(F a) { return I(__builtin_convertvector(a.v, Ints)); }
INSTRUCTRL_LANE F to_float(I a) { return F(__builtin_convertvector(a.v, Floats)); }
INSTRUCTRL_LANE F abs(F a) { return from_bits(bits_of(a) & 0x7fffffff); }
INSTRUCTRL_LANE D abs(D a) { return __builtin_fabs(a.v); }

// b where one of the two is NaN: one instruction on x86.
INSTRUCTRL_LANE F larger(F a, F b) {
#if INSTRUCTRL_VECTOR_BYTES == 64
  return F((Floats)_mm512_maskz_max_ps(kAllLanes, (__m512)a.v, (__m512)b.v));
#elif INSTRUCTRL_VECTOR_BYTES == 32
  return F((Floats)_mm256_max_ps((__m256)a.v, (__m256)b.v));
#else
  return select(a > b, a, b);
#endif
}
INSTRUCTRL_LANE F smaller(F a, F b) {
#if INSTRUCTRL_VECTOR_BYTES == 64
  return F((Floats)_mm512_maskz_min_ps(kAllLanes, (__m512)a.v, (__m512)b.v));
#elif INSTRUCTRL_VECTOR_BYTES == 32
  return F((Floats)_mm256_min_ps((__m256)a.v, (__m256)b.v));
#else
  return select(a < b, a, b);
#endif
}
INSTRUCTRL_LANE D larger(D a, D b) { return a.v > b.v ? a : b; }
INSTRUCTRL_LANE D smaller(D a, D b) { return a.v < b.v ? a : b; }

// NaN where one of the two is, as torch.maximum has it.
INSTRUCTRL_LANE F maximum(F a, F b) { return select(a != a, a, larger(a, b)); }
INSTRUCTRL_LANE F minimum(F a, F b) { return select(a != a, a, smaller(a, b)); }
INSTRUCTRL_LANE D maximum(D a, D b) { return a.v > b.v || a.v != a.v ? a : b; }
INSTRUCTRL_LANE D minimum(D a, D b) { return a.v < b.v || a.v != a.v ? a : b; }

// a * b + c, rounded once where the machine can; formulas whose bits matter do not use it.
INSTRUCTRL_LANE F fma(F a, F b, F c) {
#if INSTRUCTRL_VECTOR_BYTES == 64
  return F((Floats)_mm512_fmadd_ps((__m512)a.v, (__m512)b.v, (__m512)c.v));
#elif INSTRUCTRL_VECTOR_BYTES == 32
  return F((Floats)_mm256_fmadd_ps((__m256)a.v, (__m256)b.v, (__m256)c.v));
#else
  return a * b + c;
#endif
}
INSTRUCTRL_LANE D fma(D a, D b, D c) { return a * b + c; }

// Reductions, in a fixed order. Sums of floats come out in double.

INSTRUCTRL_LANE bool any(Mask a) {
#if INSTRUCTRL_VECTOR_BYTES == 64
  return _mm512_movepi32_mask((__m512i)a.v) != 0;
#elif INSTRUCTRL_VECTOR_BYTES == 32
  return _mm256_movemask_ps((__m256)a.v) != 0;
#else
  uint64_t halves[2];
  __builtin_memcpy(halves, &a, sizeof halves);
  return (halves[0] | halves[1]) != 0;
#endif
}
INSTRUCTRL_LANE bool any(DMask a) { return a.v; }

INSTRUCTRL_LANE double reduce_add(F a) {
  HalfFloats halves[2];
  __builtin_memcpy(halves, &a, sizeof halves);
  Doubles pairs = __builtin_convertvector(halves[0], Doubles) + __builtin_convertvector(halves[1], Doubles);
  double sum = 0.0;
  for (int i = 0; i < kFloatLanes / 2; ++i) sum += pairs[i];
  return sum;
}
INSTRUCTRL_LANE double reduce_add(D a) { return a.v; }

// The largest lane that is not NaN, -inf where all are.
INSTRUCTRL_LANE float reduce_max(F a) {
  float largest = -__builtin_inff();
  for (int i = 0; i < kFloatLanes; ++i) largest = a.v[i] > largest ? a.v[i] : largest;
  return largest;
}
INSTRUCTRL_LANE double reduce_max(D a) { return a.v != a.v ? -__builtin_inf() : a.v; }

INSTRUCTRL_LANE float lane(F a, int i) { return a.v[i]; }
INSTRUCTRL_LANE double lane(D a, int) { return a.v; }

// The first n lanes.
INSTRUCTRL_LANE Mask first_lanes(int64_t n) {
  Ints index;
  for (int i = 0; i < kFloatLanes; ++i) index[i] = i;
  return I(index) < I(static_cast<int32_t>(n));
}

// Memory. Elements are read and written as they are in memory (`raw`), and widened or rounded in registers; `_partial`
// touches the first n elements only, 0 <= n <= width.

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

INSTRUCTRL_LANE F widened(Shorts raw, BFloat16) { return from_bits(I((Ints)(__builtin_convertvector(raw, Words) << 16))); }

INSTRUCTRL_LANE F widened(Shorts raw, Half) {
#if INSTRUCTRL_VECTOR_BYTES == 64
  return F((Floats)_mm512_maskz_cvtph_ps(kAllLanes, (__m256i)raw));
#elif INSTRUCTRL_VECTOR_BYTES == 32
  return F((Floats)_mm256_cvtph_ps((__m128i)raw));
#else
  const I wide((Ints)__builtin_convertvector(raw, Words));
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
    return Mask{-(Ints)__builtin_convertvector(load_raw<Bytes>(from), Words)};
  }
}
template <class L>
INSTRUCTRL_LANE auto load_mask_partial(const bool* from, int64_t n) {
  if constexpr (L::kWidth == 1) {
    return DMask{n > 0 && *from};
  } else {
    return Mask{-(Ints)__builtin_convertvector(load_raw_partial<Bytes>(from, n), Words)};
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
