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
    RowSums<L> row;
    for (int64_t k = 0; k < num_classes; k += kBlockClasses) {
      add_block<T, with_entropy>(x + k, least(kBlockClasses, num_classes - k), exponential, row);
    }
    const double log_sum = __builtin_log(row.sum);
    const double distance = (static_cast<double>(element(x + token)) - row.max) / args.temperature;
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

// by_logprob * ([k is token] - p) - by_entropy * p * (log p + H). Of all classes but the token's in lanes; the token's
// own from 1 - p = -expm1(log p) in double, which loses nothing where p is nearly 1.
template <class T, bool streaming>
static void gradient_row(const T* x, T* to, int64_t num_classes, int64_t token, const RowGradient& row,
                         const Exponential<Lanes<T>>& exponential) {
  using L = Lanes<T>;
  using Scalar = typename L::Scalar;
  const double inverse_sum = __builtin_exp(-row.log_sum);
  const double log_p = (static_cast<double>(element(x + token)) - row.max) / exponential.temperature - row.log_sum;
  const double p = __builtin_exp(log_p);
  double own = row.by_logprob * -__builtin_expm1(log_p);
  if (p > 0.0) own -= row.by_entropy * p * (log_p + row.entropy);
  // Of p itself, and of p times its distance from the maximum: log p is that distance minus log_sum.
  const double constant = -inverse_sum * (row.by_logprob + row.by_entropy * (row.entropy - row.log_sum));
  const L factor(static_cast<Scalar>(constant));
  const L slope(static_cast<Scalar>(-inverse_sum * row.by_entropy * exponential.nats_per_unit));
  const L offset = exponential.offset(static_cast<Scalar>(row.max));
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
    gradient_row<T, streaming>(x, to, num_classes, token, row, exponential);
  }
  if (streaming) streaming_done();
}

template <class T>
static void token_logprobs_backward(const LogprobsBackwardArgs& args, int64_t begin, int64_t end) {
  if (args.streaming) return gradient_rows<T, true>(args, begin, end);
  gradient_rows<T, false>(args, begin, end);
}
