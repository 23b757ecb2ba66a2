// Log-probabilities of given tokens and entropies from logits, and their gradient: one item is a row.
//
// The forward reads the logits once: the running maximum changes a few times in a row, and only then are the sums so far
// scaled to the new one. In registers: four sums (eight with the entropy) of a block, which go to double at its end, so
// float never adds up more than a few numbers. The backward reads the logits and writes their gradient, once, from the
// maximum and the logarithm of the sum that the forward left for each row.

// Of the classes seen so far: sum of exp((x - max) / T), and of the same times the distance.
template <class L>
struct RowSums {
  typename L::Scalar max = -__builtin_inf();
  double sum = 0.0, weighted = 0.0;
};

template <class L>
static void raise_max(RowSums<L>& row, typename L::Scalar max, const Exponential<L>& exponential) {
  // Else nothing but -inf has been seen, or NaN.
  if (row.max != -__builtin_inf()) {
    const double nats = (static_cast<double>(row.max) - max) / exponential.temperature;
    const double factor = __builtin_exp(nats);
    // Of nothing, 0: nats may be -inf.
    row.weighted = factor > 0.0 ? factor * (row.weighted + nats / exponential.nats_per_unit * row.sum) : 0.0;
    row.sum *= factor;
  }
  row.max = max;
}

template <class T, bool with_entropy>
INSTRUCTRL_LANE void add_block(const T* x, int64_t n, const Exponential<Lanes<T>>& exponential, RowSums<Lanes<T>>& row) {
  using L = Lanes<T>;
  const auto max = largest_class(x, n, row.max);
  if (max > row.max) raise_max(row, max, exponential);
  const L offset = exponential.offset(row.max);
  L sums[4] = {0.0f, 0.0f, 0.0f, 0.0f}, weighted[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  int64_t i = 0;
  for (; i + 4 * L::kWidth <= n; i += 4 * L::kWidth) {
#pragma GCC unroll 2
    for (int j = 0; j < 4; j += 2) {
      prefetch_pair(x + i + j * L::kWidth);
      const Pair<L> logits = load_pair(x + i + j * L::kWidth);
      const L a = exponential.distance(logits.a, offset), b = exponential.distance(logits.b, offset);
      const L p = exponential(a), q = exponential(b);
      sums[j] += p;
      sums[j + 1] += q;
      if (with_entropy) {
        weighted[j] = fma(p, a, weighted[j]);
        weighted[j + 1] = fma(q, b, weighted[j + 1]);
      }
    }
  }
  for (; i < n; i += L::kWidth) {
    const L distance = exponential.distance(load_classes(x + i, n - i), offset);
    const L p = exponential(distance);
    sums[0] += p;
    if (with_entropy) weighted[0] = fma(p, distance, weighted[0]);
  }
  row.sum += reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
  if (with_entropy) row.weighted += reduce_add((weighted[0] + weighted[1]) + (weighted[2] + weighted[3]));
}

// A block of a mapped row; not inlined, so that what it is made of is there once for all dtypes.
template <class Scalar, bool with_entropy>
static __attribute__((noinline)) void add_mapped_block(const Scalar* classes, int64_t n,
                                                       const Exponential<Lanes<Scalar>>& exponential,
                                                       RowSums<Lanes<Scalar>>& row) {
  add_block<Scalar, with_entropy>(classes, n, exponential, row);
}

template <class T, bool with_entropy>
static RowSums<Lanes<T>> sums_of_row(const T* x, int64_t num_classes, const LogitMap& map, const bool* allowed,
                                     const Exponential<Lanes<T>>& exponential) {
  using Scalar = typename Lanes<T>::Scalar;
  RowSums<Lanes<T>> row;
  if (is_plain(map)) {
    for (int64_t k = 0; k < num_classes; k += kBlockClasses) {
      add_block<T, with_entropy>(x + k, least(kBlockClasses, num_classes - k), exponential, row);
    }
    return row;
  }
  Scalar classes[kBlockClasses];
  for (int64_t k = 0; k < num_classes; k += kBlockClasses) {
    const int64_t n = least(kBlockClasses, num_classes - k);
    map_classes<T, false>(x + k, allowed == nullptr ? nullptr : allowed + k, n, map.tanh_slope, classes, nullptr);
    add_mapped_block<Scalar, with_entropy>(classes, n, exponential, row);
  }
  return row;
}

template <class T, bool with_entropy>
static void logprob_rows(const LogprobsArgs& args, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Scalar = typename L::Scalar;
  const Exponential<L> exponential(args.temperature);
  const int64_t num_classes = args.logits.num_classes;
  Scalar* logprobs = static_cast<Scalar*>(args.logprobs);
  Scalar* entropy = static_cast<Scalar*>(args.entropy);
  Scalar* normalizers = static_cast<Scalar*>(args.normalizers);
  for (int64_t n = begin; n < end; ++n) {
    const bool counted = args.mask == nullptr || args.mask[n];
    const int64_t token = counted ? args.tokens[n] : 0;
    if (!counted || token < 0 || token >= num_classes) {
      logprobs[n] = counted ? __builtin_nan("") : 0.0;
      if (with_entropy) entropy[n] = counted ? __builtin_nan("") : 0.0;
      normalizers[2 * n] = normalizers[2 * n + 1] = 0.0;
      continue;
    }
    const T* x = row_of<T>(args.logits, n);
    const bool* allowed = allowed_in_row(args.map, n);
    const RowSums<L> row = sums_of_row<T, with_entropy>(x, num_classes, args.map, allowed, exponential);
    const double log_sum = __builtin_log(row.sum);
    const double chosen = mapped_class(x, token, args.map, allowed).value;
    const double distance = (chosen - row.max) / args.temperature;
    logprobs[n] = distance - log_sum;
    if (with_entropy) entropy[n] = log_sum - row.weighted / row.sum * exponential.nats_per_unit;
    normalizers[2 * n] = row.max;
    normalizers[2 * n + 1] = log_sum;
  }
}

template <class T>
static void token_logprobs(const LogprobsArgs& args, int64_t begin, int64_t end) {
  if (args.entropy != nullptr) return logprob_rows<T, true>(args, begin, end);
  logprob_rows<T, false>(args, begin, end);
}

// How far `to` is from the next address that can be streamed to, in elements.
template <class T>
INSTRUCTRL_LANE int64_t misaligned_elements(const T* to) {
  return static_cast<int64_t>((-reinterpret_cast<uint64_t>(to) & (kVectorBytes - 1)) / sizeof(T));
}

// to[i] = function(x[i]), over x where that is the same memory.
template <class T, bool streaming, class Function>
INSTRUCTRL_LANE void map_row(const T* x, T* to, int64_t n, Function function) {
  using L = Lanes<T>;
  int64_t i = 0;
  // Less than two vectors: the head is up to kVectorBytes of elements, whatever their size.
  const int64_t head = streaming ? least(misaligned_elements(to), n) : 0;
  for (; i < head; i += L::kWidth) store_partial(to + i, function(load_classes(x + i, head - i)), least(L::kWidth, head - i));
  for (i = head; i + 2 * L::kWidth <= n; i += 2 * L::kWidth) {
    prefetch_pair(x + i);
    const Pair<L> logits = load_pair(x + i);
    const Pair<L> results = {function(logits.a), function(logits.b)};
    if (streaming) {
      stream_pair(to + i, results);
    } else {
      store_pair(to + i, results);
    }
  }
  for (; i < n; i += L::kWidth) store_partial(to + i, function(load_classes(x + i, n - i)), least(L::kWidth, n - i));
}

// Of one row, per nat of the result: d loss / d logprob and d loss / d entropy over T, and what the forward left.
struct RowGradient {
  double by_logprob, by_entropy, max, log_sum, entropy;
};

template <class Scalar>
INSTRUCTRL_LANE double at(const void* numbers, int64_t n) {
  return numbers == nullptr ? 0.0 : static_cast<double>(static_cast<const Scalar*>(numbers)[n]);
}

// by_logprob * ([k is token] - p) - by_entropy * p * (log p + H), over what maps the logits. Of all classes but the
// token's in lanes: p is inverse_sum times an exponential, and log p its distance from the maximum minus log_sum.
template <class L>
struct GradientTerms {
  L factor, slope, offset;

  INSTRUCTRL_MEMBER GradientTerms(const RowGradient& row, const Exponential<L>& exponential) {
    using Scalar = typename L::Scalar;
    const double inverse_sum = __builtin_exp(-row.log_sum);
    const double constant = -inverse_sum * (row.by_logprob + row.by_entropy * (row.entropy - row.log_sum));
    factor = L(static_cast<Scalar>(constant));
    slope = L(static_cast<Scalar>(-inverse_sum * row.by_entropy * exponential.nats_per_unit));
    offset = exponential.offset(static_cast<Scalar>(row.max));
  }
};

// The token's own, from 1 - p = -expm1(log p) in double, which loses nothing where p is nearly 1.
template <class L>
INSTRUCTRL_LANE double own_gradient(double logit, const RowGradient& row, const Exponential<L>& exponential) {
  const double log_p = (logit - row.max) / exponential.temperature - row.log_sum;
  const double p = __builtin_exp(log_p);
  const double own = row.by_logprob * -__builtin_expm1(log_p);
  return p > 0.0 ? own - row.by_entropy * p * (log_p + row.entropy) : own;
}

template <class T, bool streaming>
static void gradient_row(const T* x, T* to, int64_t num_classes, int64_t token, const RowGradient& row,
                         const Exponential<Lanes<T>>& exponential) {
  using L = Lanes<T>;
  using Scalar = typename L::Scalar;
  // Before the row may be written over.
  const double own = own_gradient(element(x + token), row, exponential);
  const GradientTerms<L> terms(row, exponential);
  const L factor = terms.factor, slope = terms.slope, offset = terms.offset;
  if (row.by_entropy == 0.0) {
    map_row<T, streaming>(x, to, num_classes, [&](L logits) INSTRUCTRL_LAMBDA {
      return exponential(exponential.distance(logits, offset)) * factor;
    });
  } else {
    map_row<T, streaming>(x, to, num_classes, [&](L logits) INSTRUCTRL_LAMBDA {
      const L distance = exponential.distance(logits, offset);
      return exponential(distance) * fma(slope, distance, factor);
    });
  }
  store_partial(to + token, L(static_cast<Scalar>(own)), 1);
}

// The same for a row that is not read as it is: by the chain rule, a block at a time.
template <class T>
static void mapped_gradient_row(const T* x, T* to, int64_t num_classes, int64_t token, const RowGradient& row,
                                const LogitMap& map, const bool* allowed, const Exponential<Lanes<T>>& exponential) {
  using L = Lanes<T>;
  using Scalar = typename L::Scalar;
  const auto chosen = mapped_class(x, token, map, allowed);
  // A class of slope 0 has no gradient, whatever its logit.
  const double own = chosen.slope == 0 ? 0.0 : own_gradient(chosen.value, row, exponential) * chosen.slope;
  const GradientTerms<L> terms(row, exponential);
  Scalar classes[kBlockClasses], slopes[kBlockClasses];
  for (int64_t k = 0; k < num_classes; k += kBlockClasses) {
    const int64_t n = least(kBlockClasses, num_classes - k);
    map_classes<T, true>(x + k, allowed == nullptr ? nullptr : allowed + k, n, map.tanh_slope, classes, slopes);
    for (int64_t i = 0; i < n; i += L::kWidth) {
      const L distance = exponential.distance(load(classes + i), terms.offset);
      const L gradient = exponential(distance) * fma(terms.slope, distance, terms.factor) * load(slopes + i);
      store_partial(to + k + i, gradient, least(L::kWidth, n - i));
    }
  }
  store_partial(to + token, L(static_cast<Scalar>(own)), 1);
}

template <class T, bool streaming>
static void gradient_rows(const LogprobsBackwardArgs& args, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Scalar = typename L::Scalar;
  const Exponential<L> exponential(args.temperature);
  const int64_t num_classes = args.logits.num_classes;
  const Scalar* normalizers = static_cast<const Scalar*>(args.normalizers);
  for (int64_t n = begin; n < end; ++n) {
    const T* x = row_of<T>(args.logits, n);
    T* to = args.gradient == nullptr ? const_cast<T*>(x) : static_cast<T*>(args.gradient) + n * num_classes;
    const bool counted = args.mask == nullptr || args.mask[n];
    const int64_t token = counted ? args.tokens[n] : 0;
    if (!counted || token < 0 || token >= num_classes) {
      for (int64_t k = 0; k < num_classes; ++k) to[k] = T{};
      continue;
    }
    const RowGradient row = {at<Scalar>(args.grad_logprobs, n) / args.temperature,
                             at<Scalar>(args.grad_entropy, n) / args.temperature, normalizers[2 * n],
                             normalizers[2 * n + 1], at<Scalar>(args.entropy, n)};
    if (is_plain(args.map)) {
      gradient_row<T, streaming>(x, to, num_classes, token, row, exponential);
    } else {
      mapped_gradient_row<T>(x, to, num_classes, token, row, args.map, allowed_in_row(args.map, n), exponential);
    }
  }
  if (streaming) streaming_done();
}

template <class T>
static void token_logprobs_backward(const LogprobsBackwardArgs& args, int64_t begin, int64_t end) {
  if (args.streaming) return gradient_rows<T, true>(args, begin, end);
  gradient_rows<T, false>(args, begin, end);
}
