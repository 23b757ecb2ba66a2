// Sums over many lanes in double. A kernel may add up a few vectors in float first: `DoubleSum::add` widens what it gets.
// Lanes are added up in a fixed order.

INSTRUCTRL_LANE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class L>
using MaskOf = decltype(L() < L());

INSTRUCTRL_LANE Doubles low_half(F a) {
  HalfFloats halves[2];
  __builtin_memcpy(halves, &a, sizeof halves);
  return __builtin_convertvector(halves[0], Doubles);
}
INSTRUCTRL_LANE Doubles high_half(F a) {
  HalfFloats halves[2];
  __builtin_memcpy(halves, &a, sizeof halves);
  return __builtin_convertvector(halves[1], Doubles);
}
INSTRUCTRL_LANE F from_halves(Doubles low, Doubles high) {
  const HalfFloats halves[2] = {__builtin_convertvector(low, HalfFloats), __builtin_convertvector(high, HalfFloats)};
  F a;
  __builtin_memcpy(&a, halves, sizeof a);
  return a;
}

// (a - mean) * scale in double, rounded once.
INSTRUCTRL_LANE F standardized(F a, double mean, double scale) {
  return from_halves((low_half(a) - mean) * scale, (high_half(a) - mean) * scale);
}
INSTRUCTRL_LANE D standardized(D a, double mean, double scale) { return (a - mean) * scale; }

template <class L>
struct DoubleSum {
  Doubles lanes = {};
  INSTRUCTRL_MEMBER void add(F a) { lanes += low_half(a) + high_half(a); }
  // (a - shift)^2 of the lanes where `counted` is 1, nothing where it is 0.
  INSTRUCTRL_MEMBER void add_squares(F a, double shift, F counted) {
    const Doubles low = (low_half(a) - shift) * low_half(counted), high = (high_half(a) - shift) * high_half(counted);
    lanes += low * low + high * high;
  }
  INSTRUCTRL_MEMBER void add_squares(F a) {
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
  INSTRUCTRL_MEMBER void add_squares(D a, double shift, D counted) {
    const D deviation = (a - D(shift)) * counted;
    add(deviation * deviation);
  }
  INSTRUCTRL_MEMBER void add_squares(D a) { add(a * a); }
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
