// What is logged of rows of logits beside log-probabilities, from the normalizers that those left: one item is a row, which
// is read once.

template <class L>
struct StatisticsSums {
  DoubleSum<L> z, squares;
  double num_possible = 0.0;
  bool larger = false;  // Whether a possible class has a larger logit than the token.
};

// x: the logits. z: the same, mapped.
template <class T, class Z>
INSTRUCTRL_LANE void add_statistics(const T* x, const Z* z, int64_t n, typename Lanes<T>::Scalar chosen, Lanes<T> offset,
                                    const Exponential<Lanes<T>>& exponential, StatisticsSums<Lanes<T>>& sums) {
  using L = Lanes<T>;
  const L lowest(-__builtin_inff()), zero(0.0f), one(1.0f);
  L count = zero;
  for (int64_t i = 0; i < n; i += L::kWidth) {
    const L logits = load_classes(x + i, n - i), mapped = load_classes(z + i, n - i);
    const auto possible = mapped != lowest;
    const L p = exponential(exponential.distance(mapped, offset));
    sums.z.add(select(possible, mapped, zero));
    sums.squares.add_square(select(possible, p, zero));
    count += select(possible, one, zero);
    sums.larger |= any(possible & (logits > L(chosen)));
  }
  sums.num_possible += reduce_add(count);
}

template <class T>
static void row_statistics(const RowStatisticsArgs& args, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Scalar = typename L::Scalar;
  const Exponential<L> exponential(args.temperature);
  const int64_t num_classes = args.logits.num_classes;
  const Scalar* normalizers = static_cast<const Scalar*>(args.normalizers);
  for (int64_t n = begin; n < end; ++n) {
    Scalar* statistics = static_cast<Scalar*>(args.statistics) + 3 * n;
    const bool counted = args.mask == nullptr || args.mask[n];
    const int64_t token = counted ? args.tokens[n] : 0;
    if (!counted || token < 0 || token >= num_classes) {
      for (int i = 0; i < 3; ++i) statistics[i] = counted ? __builtin_nan("") : 0.0;
      continue;
    }
    const T* x = row_of<T>(args.logits, n);
    const bool* allowed = allowed_in_row(args.map, n);
    const Scalar chosen = element(x + token);
    const L offset = exponential.offset(normalizers[2 * n]);
    StatisticsSums<L> sums;
    for (int64_t k = 0; k < num_classes; k += kBlockClasses) {
      const int64_t size = least(kBlockClasses, num_classes - k);
      if (is_plain(args.map)) {
        add_statistics<T, T>(x + k, x + k, size, chosen, offset, exponential, sums);
      } else {
        Scalar classes[kBlockClasses];
        map_classes<T, false>(x + k, allowed == nullptr ? nullptr : allowed + k, size, args.map.tanh_slope, classes, nullptr);
        add_statistics<T, Scalar>(x + k, classes, size, chosen, offset, exponential, sums);
      }
    }
    const bool possible = mapped_class(x, token, args.map, allowed).value != -__builtin_inff();
    statistics[0] = sums.z.total() / sums.num_possible;
    statistics[1] = sums.squares.total() * __builtin_exp(-2.0 * normalizers[2 * n + 1]);
    statistics[2] = possible && !sums.larger ? 1.0 : 0.0;
  }
}
