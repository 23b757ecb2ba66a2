// Sampling from given uniform numbers: one item is a row.
//
// The logits are read once: sum of exp((x - m) / T) of each block, with the block's own maximum m. Then the sums are
// brought to the maximum of the row, and the block in which the cumulative sum exceeds u times the total is read again, a
// vector and at last a class at a time. Cumulative sums are in double, and a class whose exponential is 0 in the
// arithmetic of the row is never chosen.

// The first class of a block whose cumulative sum exceeds the target; the last one that is possible where rounding has
// the block end below it.
template <class T>
INSTRUCTRL_LANE int64_t class_in_block(const T* x, int64_t n, double cumulative, double target, Lanes<T> offset,
                                       const Exponential<Lanes<T>>& exponential) {
  using L = Lanes<T>;
  int64_t last_possible = 0;
  for (int64_t i = 0; i < n; i += L::kWidth) {
    const L p = exponential(exponential.distance(load_classes(x + i, n - i), offset));
    if (!any(p > L(0.0f))) continue;
    const double sum = reduce_add(p);
    const bool ends_here = cumulative + sum > target;
    double within = cumulative;
    for (int j = 0; j < L::kWidth; ++j) {
      if (!(lane(p, j) > 0)) continue;
      last_possible = i + j;
      within += lane(p, j);
      if (ends_here && within > target) return last_possible;
    }
    cumulative += sum;
  }
  return last_possible;
}

// Turns sums relative to the blocks' maxima into sums relative to the row's, and adds them up.
template <class L>
INSTRUCTRL_LANE double total_of_blocks(const typename L::Scalar* maxima, double* sums, int64_t num_blocks, L offset,
                                       const Exponential<L>& exponential) {
  double total = 0.0;
  for (int64_t i = 0; i < num_blocks; i += L::kWidth) {
    const L weights = exponential(exponential.distance(load_classes(maxima + i, num_blocks - i), offset));
    for (int64_t j = 0; j < least(L::kWidth, num_blocks - i); ++j) total += sums[i + j] *= lane(weights, j);
  }
  return total;
}

template <class T>
static void sample_tokens(const SamplingArgs& args, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Scalar = typename L::Scalar;
  const Exponential<L> exponential(args.temperature);
  const int64_t num_classes = args.logits.num_classes;
  const int64_t num_blocks = (num_classes + kBlockClasses - 1) / kBlockClasses;
  Scalar* maxima = static_cast<Scalar*>(args.block_maxima);
  double* sums = args.block_sums;
  for (int64_t n = begin; n < end; ++n) {
    const T* x = row_of<T>(args.logits, n);
    const bool* allowed = allowed_in_row(args.map, n);
    Scalar max = -__builtin_inf();
    for (int64_t b = 0; b < num_blocks; ++b) {
      const int64_t first = b * kBlockClasses;
      const bool* possible = allowed == nullptr ? nullptr : allowed + first;
      const RowSums<L> block =
          sums_of_row<T, false>(x + first, least(kBlockClasses, num_classes - first), args.map, possible, exponential);
      maxima[b] = block.max;
      sums[b] = block.sum;
      max = block.max > max ? block.max : max;
    }
    const L offset = exponential.offset(max);
    const double target = args.uniforms[n] * total_of_blocks<L>(maxima, sums, num_blocks, offset, exponential);
    // A number below 1 times the total rounds to less than the total, so a block is found, but for rows of NaN.
    args.tokens[n] = 0;
    double cumulative = 0.0;
    for (int64_t b = 0; b < num_blocks; ++b) {
      if (cumulative + sums[b] > target) {
        const int64_t first = b * kBlockClasses;
        const int64_t size = least(kBlockClasses, num_classes - first);
        if (is_plain(args.map)) {
          args.tokens[n] = first + class_in_block<T>(x + first, size, cumulative, target, offset, exponential);
        } else {
          Scalar classes[kBlockClasses];
          map_classes<T, false>(x + first, allowed == nullptr ? nullptr : allowed + first, size, args.map.tanh_slope, classes,
                         nullptr);
          args.tokens[n] = first + class_in_block<Scalar>(classes, size, cumulative, target, offset, exponential);
        }
        break;
      }
      cumulative += sums[b];
    }
  }
}
