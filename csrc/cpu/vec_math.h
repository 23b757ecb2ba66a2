// Elementary functions of lanes, to about one unit in the last place. Included by isa_table.h behind vec.h.
//
// Polynomials are minimax fits of the relative error on the reduced range.

// 2^n for -126 <= n <= 127; the exponent 128 gives infinity and -127 gives 0.
INSTRUCTRL_LANE F power_of_two(I n) { return from_bits((n + 127) << 23); }

// The nearest integer of |x| < 2^22, as a float and as an integer.
struct Rounded {
  F value;
  I integer;
};
INSTRUCTRL_LANE Rounded rounded(F x) {
  const F magic = 0x1.8p23f;  // Integers are one unit apart here.
  const F shifted = x + magic;
  return {shifted - magic, bits_of(shifted) - bits_of(magic)};
}

constexpr float kLog2E = 0x1.715476p+0f;
constexpr float kLn2High = 0x1.62e4p-1f;  // 16 bits: n times it is exact.
constexpr float kLn2Low = 0x1.7f7d1cp-20f;

// x - n ln 2.
INSTRUCTRL_LANE F remainder_ln2(F x, F n) { return fma(n, -kLn2Low, fma(n, -kLn2High, x)); }

// Subnormal results are rounded once; 0 at -inf, inf above 88.72, NaN at NaN.
INSTRUCTRL_LANE F exp(F x) {
  x = smaller(F(89.0f), larger(F(-104.0f), x));
  const Rounded n = rounded(x * kLog2E);
  // What the remainder and 1 + r lose in rounding is added to the small part: 97 of 100 results are the nearest float, as
  // almost all of PyTorch's are, so that a ratio at a clip bound falls on the same side.
  const F whole = fma(n.value, -kLn2High, x);
  const F r = fma(n.value, -kLn2Low, whole);
  const F lost = fma(n.value, -kLn2Low, whole - r);
  F q = 1.38144669e-3f;
  q = fma(q, r, 8.36878055e-3f);
  q = fma(q, r, 4.16683942e-2f);
  q = fma(q, r, 1.66665201e-1f);
  q = fma(q, r, 4.99999934e-1f);
  const F one_and_r = r + 1.0f;
  const F p = one_and_r + fma(q * r, r, (1.0f - one_and_r) + r + lost);
#if INSTRUCTRL_VECTOR_BYTES == 64
  return F((Floats)_mm512_maskz_scalef_ps(0xffff, (__m512)p.v, (__m512)n.value.v));
#else
  // In two steps, because 2^-150 and 2^128 are no floats.
  const I half = n.integer >> 1;
  return p * power_of_two(half) * power_of_two(n.integer - half);
#endif
}

INSTRUCTRL_LANE F expm1(F x) {
  const F clamped = smaller(F(89.0f), larger(F(-18.0f), x));
  const Rounded n = rounded(clamped * kLog2E);
  const F r = remainder_ln2(clamped, n.value);
  F q = 1.98458854e-4f;
  q = fma(q, r, 1.39407202e-3f);
  q = fma(q, r, 8.33338957e-3f);
  q = fma(q, r, 4.16663598e-2f);
  q = fma(q, r, 1.66666664e-1f);
  q = fma(q, r, 0.5f);
  const F p = fma(q * r, r, r);
  // (2^n - 1) + 2^n p, halved, because 2^128 is no float.
  const F half_scale = power_of_two(n.integer - 1);
  return 2.0f * fma(half_scale, p, half_scale - 0.5f);
}

// -inf at 0, NaN below.
INSTRUCTRL_LANE F log(F x) {
  const Mask subnormal = x < F(0x1p-126f);
  const F scaled = select(subnormal, x * F(0x1p23f), x);
  // The mantissa between sqrt(1/2) and sqrt(2), and its exponent.
  const I shifted = bits_of(scaled) - I(0x3f3504f3);
  const F exponent = to_float((shifted >> 23) - select(subnormal, I(23), I(0)));
  const F f = from_bits((shifted & 0x007fffff) + I(0x3f3504f3)) - 1.0f;
  F q = -7.63449731e-2f;
  q = fma(q, f, 1.27615823e-1f);
  q = fma(q, f, -1.31601846e-1f);
  q = fma(q, f, 1.42017575e-1f);
  q = fma(q, f, -1.66233571e-1f);
  q = fma(q, f, 2.00012269e-1f);
  q = fma(q, f, -2.50008210e-1f);
  q = fma(q, f, 3.33333317e-1f);
  const F square = f * f;
  const F tail = fma(q * f, square, fma(F(-0.5f), square, exponent * kLn2Low));
  const F result = fma(exponent, kLn2High, f + tail);
  const F special = select(x == F(0.0f), F(-__builtin_inff()), select(x < F(0.0f), F(__builtin_nanf("")), x));
  return select((x > F(0.0f)) & (x < F(__builtin_inff())), result, special);
}

INSTRUCTRL_LANE F log1p(F x) {
  const F sum = 1.0f + x;
  const F lost = x - (sum - 1.0f);
  const F result = log(sum);
  return select((x > F(-1.0f)) & (x < F(__builtin_inff())), result + lost / sum, result);
}

INSTRUCTRL_LANE D exp(D x) { return __builtin_exp(x.v); }
INSTRUCTRL_LANE D expm1(D x) { return __builtin_expm1(x.v); }
INSTRUCTRL_LANE D log(D x) { return __builtin_log(x.v); }
INSTRUCTRL_LANE D log1p(D x) { return __builtin_log1p(x.v); }
