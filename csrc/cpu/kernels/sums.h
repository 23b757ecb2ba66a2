// Sums over many lanes in double. A kernel may add up a few vectors in float first: `DoubleSum::add` widens what it gets.
// Lanes are added up in a fixed order.

INSTRUCTRL_LANE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class L>
using MaskOf = decltype(L() < L());

// Intrinsics, because GCC 12 widens and narrows in pieces; with a mask, because it warns about the forms without.
INSTRUCTRL_LANE Doubles widened_half(HalfFloats half) {
#if INSTRUCTRL_VECTOR_BYTES == 64
  return (Doubles)_mm512_maskz_cvtps_pd(0xff, (__m256)half);
#elif INSTRUCTRL_VECTOR_BYTES == 32
  return (Doubles)_mm256_cvtps_pd((__m128)half);
#else
  return __builtin_convertvector(half, Doubles);
#endif
}
INSTRUCTRL_LANE HalfFloats narrowed_half(Doubles half) {
#if INSTRUCTRL_VECTOR_BYTES == 64
  return (HalfFloats)_mm512_maskz_cvtpd_ps(0xff, (__m512d)half);
#elif INSTRUCTRL_VECTOR_BYTES == 32
  return (HalfFloats)_mm256_cvtpd_ps((__m256d)half);
#else
  return __builtin_convertvector(half, HalfFloats);
#endif
}

struct Halves {
  HalfFloats low, high;
};
INSTRUCTRL_LANE Doubles low_half(F a) {
  Halves halves;
  __builtin_memcpy(&halves, &a, sizeof a);
  return widened_half(halves.low);
}
INSTRUCTRL_LANE Doubles high_half(F a) {
  Halves halves;
  __builtin_memcpy(&halves, &a, sizeof a);
  return widened_half(halves.high);
}
INSTRUCTRL_LANE F from_halves(Doubles low, Doubles high) {
#if INSTRUCTRL_VECTOR_BYTES == 64
  const __m512 whole = _mm512_castps256_ps512((__m256)narrowed_half(low));
  return F((Floats)_mm512_maskz_insertf32x8(0xffff, whole, (__m256)narrowed_half(high), 1));
#elif INSTRUCTRL_VECTOR_BYTES == 32
  return F((Floats)_mm256_set_m128((__m128)narrowed_half(high), (__m128)narrowed_half(low)));
#else
  const Halves halves{narrowed_half(low), narrowed_half(high)};
  F a;
  __builtin_memcpy(&a, &halves, sizeof a);
  return a;
#endif
}

// (a - mean) * scale in double, rounded once.
INSTRUCTRL_LANE F standardized(F a, double mean, double scale) {
  return from_halves((low_half(a) - mean) * scale, (high_half(a) - mean) * scale);
}
INSTRUCTRL_LANE D standardized(D a, double mean, double scale) { return (a - mean) * scale; }

// Counts in lanes. int32 is enough for the pairs of a prompt and for the tokens of a sequence, which fit in memory.
template <class L>
struct CountOf {
  using Type = I;
};
template <>
struct CountOf<D> {
  using Type = D;
};
template <class L>
using Count = typename CountOf<L>::Type;

INSTRUCTRL_LANE int64_t count_lane(I a, int i) { return a.v[i]; }
INSTRUCTRL_LANE int64_t count_lane(D a, int) { return static_cast<int64_t>(a.v); }

template <class L>
INSTRUCTRL_LANE int64_t total_count(Count<L> counts) {
  int64_t total = 0;
  for (int i = 0; i < L::kWidth; ++i) total += count_lane(counts, i);
  return total;
}

template <class L>
struct DoubleSum {
  Doubles lanes = {};
  INSTRUCTRL_MEMBER void add(F a) { lanes += low_half(a) + high_half(a); }
  INSTRUCTRL_MEMBER void add_square(F a) {
    const Doubles low = low_half(a), high = high_half(a);
    lanes += low * low + high * high;
  }
  INSTRUCTRL_MEMBER double total() const {
    double sum = 0.0;
    for (int i = 0; i < kFloatLanes / 2; ++i) sum += lanes[i];
    return sum;
  }
};

// Compensated: the sum itself must be better than the doubles that it adds up.
template <>
struct DoubleSum<D> {
  double sum = 0.0, lost = 0.0;
  INSTRUCTRL_MEMBER void add(D a) {
    const double next = sum + a.v, taken = next - sum;
    lost += (sum - (next - taken)) + (a.v - taken);
    sum = next;
  }
  INSTRUCTRL_MEMBER void add_square(D a) { add(a * a); }
  // What an infinite sum has lost is NaN.
  INSTRUCTRL_MEMBER double total() const { return lost - lost == 0.0 ? sum + lost : sum; }
};

// n elements from `from`, the first of a whole vector or all that is left; 0 where the mask is False: what does not count enters
// no arithmetic.
template <class T>
INSTRUCTRL_LANE Lanes<T> load_counted(const T* from, int64_t n, MaskOf<Lanes<T>> mask) {
  using L = Lanes<T>;
  return select(mask, n == L::kWidth ? load(from) : load_partial(from, n), L(0.0));
}

template <class L>
INSTRUCTRL_LANE MaskOf<L> load_counts(const bool* from, int64_t n) {
  return n == L::kWidth ? load_mask<L>(from) : load_mask_partial<L>(from, n);
}

template <class L>
INSTRUCTRL_LANE void store_first(typename L::Scalar* to, L a, int64_t n) {
  if (n == L::kWidth) {
    store(to, a);
  } else {
    store_partial(to, a, n);
  }
}
