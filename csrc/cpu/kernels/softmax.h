// exp((x - max) / T) of a row, and where rows are.

// The exponential for differences from a maximum. A distance is (x - max) in units of a power of two near T, so that the
// subtraction is all that rounds, and is no further from 0 than what gives 0: a logit of -inf has probability 0 and a
// finite distance, and 0 times that is 0.
template <class L>
struct Exponential;

constexpr double kLn2 = 0.693147180559945309417;

// The temperature is in the constants: exp(d / t) = 2^n exp(r / t) with r = d - n t ln 2, and the polynomial of r has the
// powers of 1/t in its coefficients. Where a permutation can look up 2^(j / kSteps), n is a multiple of 1 / kSteps and the
// polynomial is shorter. Error: 1.1 * 2^-23 of the result, and 2^-25 of d / t; below 2^-126 the result is between it and 0.
#if INSTRUCTRL_VECTOR_BYTES > 16
constexpr int kSteps = INSTRUCTRL_VECTOR_BYTES / 4;
#else
constexpr int kSteps = 1;
#endif

template <>
struct Exponential<F> {
  static constexpr int kDegree = kSteps > 1 ? 3 : 6;
  F unit, lowest, to_steps, minus_step, minus_step_low, coefficients[kDegree + 1];
  I powers;  // Bits of 2^(j / kSteps) without what the last bits of n add to them.
  double temperature, nats_per_unit;

  INSTRUCTRL_MEMBER explicit Exponential(double temperature) : temperature(temperature) {
    int exponent;
    double t = 2.0 * __builtin_frexp(temperature, &exponent);
    // Powers of a usual temperature are floats as they are, and in units of 1 the largest float is a logit like others.
    const bool usual = exponent > -16 && exponent < 16;
    if (usual) t = temperature;
    nats_per_unit = 1.0 / t;
    unit = F(static_cast<float>(usual ? 1.0 : __builtin_ldexp(1.0, 1 - exponent)));
    lowest = F(static_cast<float>(-127.0 * kLn2 * t));
    to_steps = F(static_cast<float>(kSteps / kLn2 * nats_per_unit));
    const double step = kLn2 / kSteps * t;
    // Without fused multiply-add, n times the step is exact only if the step has few bits.
    const float high = static_cast<float>(kSteps > 1 ? step : __builtin_rint(step * 0x1p15) * 0x1p-15);
    minus_step = F(-high);
    minus_step_low = F(static_cast<float>(high - step));
    // Minimax fits of the relative error.
#if INSTRUCTRL_VECTOR_BYTES == 64
    const double fit[] = {1.0, 1.0, 0.50001648249, 0.1666672225};
#elif INSTRUCTRL_VECTOR_BYTES == 32
    const double fit[] = {1.0, 1.0, 0.50006576509, 0.16666862041};
#else
    const double fit[] = {1.0, 1.0, 0.49999993412, 0.16666520107, 0.04166839422, 0.00836878055, 0.00138144669};
#endif
    double power = 1.0;
    for (int k = 0; k <= kDegree; ++k) {
      coefficients[k] = F(static_cast<float>(fit[k] * power));
      power *= nats_per_unit;
    }
    for (int j = 0; j < F::kWidth; ++j) {
      const float step = static_cast<float>(__builtin_exp2(static_cast<double>(j) / kSteps));
      int32_t bits;
      __builtin_memcpy(&bits, &step, sizeof bits);
      powers.v[j] = bits - j * ((1 << 23) / kSteps);
    }
  }

  // Of a row in which nothing but -inf has been seen the offset is 0: -inf - -inf would be NaN.
  INSTRUCTRL_MEMBER F offset(float max) const {
    const float offset = -max * lane(unit, 0);
    return offset == __builtin_inff() ? F(0.0f) : F(offset);
  }
  INSTRUCTRL_MEMBER F distance(F x, F offset) const { return larger(lowest, fma(x, unit, offset)); }

  INSTRUCTRL_MEMBER F operator()(F distance) const {
    // Adding it leaves an integer in the last bits.
    const F magic = 0x1.8p23f;
    const F shifted = fma(distance, to_steps, magic);
    F r = fma(shifted - magic, minus_step, distance);
    if (kSteps == 1) r = fma(shifted - magic, minus_step_low, r);
    F p = coefficients[kDegree];
    for (int k = kDegree - 1; k >= 0; --k) p = fma(p, r, coefficients[k]);
#if INSTRUCTRL_VECTOR_BYTES == 64
    const I scale((Ints)_mm512_maskz_permutexvar_epi32(kAllLanes, (__m512i)shifted.v, (__m512i)powers.v));
    return p * from_bits(scale + (bits_of(shifted) << 19));
#elif INSTRUCTRL_VECTOR_BYTES == 32
    const I scale((Ints)_mm256_permutevar8x32_epi32((__m256i)powers.v, (__m256i)shifted.v));
    return p * from_bits(scale + (bits_of(shifted) << 20));
#else
    return p * from_bits((bits_of(shifted) << 23) + I(0x3f800000));
#endif
  }
};

template <>
struct Exponential<D> {
  double temperature, lowest, nats_per_unit;

  INSTRUCTRL_MEMBER explicit Exponential(double temperature)
      : temperature(temperature), lowest(-746.0 * temperature), nats_per_unit(1.0 / temperature) {}

  INSTRUCTRL_MEMBER D offset(double max) const { return max == -__builtin_inf() ? 0.0 : -max; }
  INSTRUCTRL_MEMBER D distance(D x, D offset) const { return larger(lowest, x + offset); }
  INSTRUCTRL_MEMBER D operator()(D distance) const { return exp(D(distance.v / temperature)); }
};

template <class T>
INSTRUCTRL_LANE const T* row_of(const LogitRows& rows, int64_t n) {
  return static_cast<const T*>(rows.data) + (n / rows.inner) * rows.outer_stride + (n % rows.inner) * rows.inner_stride;
}

template <class T>
INSTRUCTRL_LANE typename Lanes<T>::Scalar element(const T* x) {
  return lane(load_partial(x, 1), 0);
}

// The first n lanes, n > 0; -inf behind them.
template <class T>
INSTRUCTRL_LANE Lanes<T> load_classes(const T* x, int64_t n) {
  using L = Lanes<T>;
  return n >= L::kWidth ? load(x) : load_partial(x, n, L(-__builtin_inff()));
}

// How far ahead memory is asked for: what the hardware does by itself reaches half of the read bandwidth.
constexpr int64_t kPrefetchBytes = 4096;

template <class T>
INSTRUCTRL_LANE void prefetch_pair(const T* x) {
  for (int64_t byte = 0; byte < 2 * Lanes<T>::kWidth * static_cast<int64_t>(sizeof(T)); byte += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(x) + kPrefetchBytes + byte);
  }
}

// The largest of n classes that is not NaN, and not below `max`.
template <class T>
INSTRUCTRL_LANE typename Lanes<T>::Scalar largest_class(const T* x, int64_t n, typename Lanes<T>::Scalar max) {
  using L = Lanes<T>;
  const L seen(max);
  L a = seen, b = seen, c = seen, d = seen;
  int64_t i = 0;
  for (; i + 4 * L::kWidth <= n; i += 4 * L::kWidth) {
    const Pair<L> first = load_pair(x + i), second = load_pair(x + i + 2 * L::kWidth);
    a = larger(first.a, a);
    b = larger(first.b, b);
    c = larger(second.a, c);
    d = larger(second.b, d);
  }
  for (; i < n; i += L::kWidth) a = larger(load_classes(x + i, n - i), a);
  const L all = larger(larger(a, b), larger(c, d));
  return any(all > seen) ? reduce_max(all) : max;
}
