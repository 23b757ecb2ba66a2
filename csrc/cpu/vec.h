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
