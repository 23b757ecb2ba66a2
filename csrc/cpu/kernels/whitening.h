// Masked whitening in two kernels: one item is a block of kWhitenBlock consecutive elements, whatever the shape.
//
// The first reads a block for its mean and, from the first-level cache, again for the squares of its deviations; the
// caller joins the moments of blocks in their order, so bits do not depend on threads. The second writes the result: 14
// bytes an element in all for float32. Sums and deviations are in double: what a common offset leaves of float is noise.

template <class T>
static void masked_moments(const WhitenArgs& args, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  const L zero(0.0), one(1.0);
  const T* x = static_cast<const T*>(args.x);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kWhitenBlock, last = least(first + kWhitenBlock, args.num_elements);
    DoubleSum<L> sum, count, deviations;
    for (int64_t i = first; i < last; i += L::kWidth) {
      const int64_t n = least(L::kWidth, last - i);
      const MaskOf<L> mask = load_counts<L>(args.mask + i, n);
      sum.add(load_counted(x + i, n, mask));
      count.add(select(mask, one, zero));
    }
    const double total = sum.total(), num_counted = count.total();
    const double mean = num_counted > 0 ? total / num_counted : 0.0;
    for (int64_t i = first; i < last; i += L::kWidth) {
      const int64_t n = least(L::kWidth, last - i);
      const MaskOf<L> mask = load_counts<L>(args.mask + i, n);
      deviations.add_squares(load_counted(x + i, n, mask), mean, select(mask, one, zero));
    }
    args.moments[block] = {num_counted, mean, deviations.total()};
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
