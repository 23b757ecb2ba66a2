// Masked whitening in two kernels: one item is a block of kWhitenBlock consecutive elements, whatever the shape.
//
// The first reads a block for its mean and, from the first-level cache, again for the squares of its deviations; the
// caller joins the moments of blocks in their order, so bits do not depend on threads. The second writes the result: 14
// bytes an element in all for float32. Sums and deviations are in double: what a common offset leaves of float is noise.

template <class T>
static void masked_moments(const WhitenArgs& args, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Scalar = typename L::Scalar;
  const L zero(0.0), one(1.0);
  const T* x = static_cast<const T*>(args.x);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kWhitenBlock, last = least(first + kWhitenBlock, args.num_elements);
    DoubleSum<L> sum, squares;
    L counts = zero;
    for (int64_t i = first; i < last; i += L::kWidth) {
      const int64_t n = least(L::kWidth, last - i);
      const MaskOf<L> mask = load_counts<L>(args.mask + i, n);
      sum.add(load_counted(x + i, n, mask));
      counts += select(mask, one, zero);
    }
    const double count = reduce_add(counts), mean = count > 0 ? sum.total() / count : 0.0;
    // Deviations from the mean rounded to a lane: exact where a common offset makes them small.
    const auto centre = static_cast<Scalar>(mean);
    for (int64_t i = first; i < last; i += L::kWidth) {
      const int64_t n = least(L::kWidth, last - i);
      const MaskOf<L> mask = load_counts<L>(args.mask + i, n);
      squares.add_square(select(mask, load_counted(x + i, n, mask) - L(centre), zero));
    }
    const double rounding = mean - centre, deviations = squares.total() - count * rounding * rounding;
    args.moments[block] = {count, mean, deviations > 0 || deviations != deviations ? deviations : 0.0};
  }
}

template <class T>
static void masked_whiten(const WhitenArgs& args, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Scalar = typename L::Scalar;
  const L zero(0.0);
  const int64_t last = least(end * kWhitenBlock, args.num_elements);
  for (int64_t i = begin * kWhitenBlock; i < last; i += L::kWidth) {
    const int64_t n = least(L::kWidth, last - i);
    const MaskOf<L> mask = load_counts<L>(args.mask + i, n);
    const L x = load_counted(static_cast<const T*>(args.x) + i, n, mask);
    store_first(static_cast<Scalar*>(args.whitened) + i, select(mask, standardized(x, args.mean, args.scale), zero), n);
  }
}
