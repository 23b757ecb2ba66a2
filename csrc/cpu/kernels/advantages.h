// Generalised advantages, and the rewards in front of them: one item is a sequence, read once from the right; 17 bytes a
// token in float32, 25 with the rewards.
//
// A vector of counted tokens is scanned in registers, in log2(width) steps with the powers of gamma * lam as constants.
// What comes from its right is added last, so that neighbouring vectors wait for one multiplication, not for a chain of
// them: one long sequence is as fast as many. A vector that counts nothing is skipped; in one that counts some of its tokens
// (the end of a response, a gap) the powers become lanes and are scanned too. Sums are kept in double, one set for each
// sequence, and the caller adds them up in the order of sequences, so bits do not depend on threads.

// a moved n lanes to the left, `fill` behind it.
#if INSTRUCTRL_VECTOR_BYTES == 64
#define INSTRUCTRL_LANES_FROM(n) \
  n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7, n + 8, n + 9, n + 10, n + 11, n + 12, n + 13, n + 14, n + 15
#elif INSTRUCTRL_VECTOR_BYTES == 32
#define INSTRUCTRL_LANES_FROM(n) n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7
#else
#define INSTRUCTRL_LANES_FROM(n) n, n + 1, n + 2, n + 3
#endif
template <int n>
INSTRUCTRL_LANE F moved_left(F a, F fill) {
#if defined(__clang__)
  return F(__builtin_shufflevector(a.v, fill.v, INSTRUCTRL_LANES_FROM(n)));
#else
  return F(__builtin_shuffle(a.v, fill.v, Ints{INSTRUCTRL_LANES_FROM(n)}));
#endif
}
template <int n>
INSTRUCTRL_LANE D moved_left(D, D fill) {
  return fill;
}
#undef INSTRUCTRL_LANES_FROM

template <class L>
struct Decay {
  using Scalar = typename L::Scalar;
  Scalar gamma;
  L steps[5];     // Of 1, 2, 4 ... tokens.
  L from_behind;  // From the first token behind the vector.
};

template <class L>
INSTRUCTRL_LANE Decay<L> decay_of(double gamma, double lam) {
  Decay<L> decay;
  typename L::Scalar powers[L::kWidth];
  double power = 1.0;
  for (int n = 1, step = 0; n <= L::kWidth; ++n) {
    power *= gamma * lam;
    powers[L::kWidth - n] = static_cast<typename L::Scalar>(power);
    if ((n & (n - 1)) == 0) decay.steps[step++] = L(powers[L::kWidth - n]);
  }
  decay.gamma = static_cast<typename L::Scalar>(gamma);
  decay.from_behind = load(powers);
  return decay;
}

// What the tokens on the left need of those on the right.
template <class Scalar>
struct Carry {
  Scalar advantage, value;
};

// x[t] = delta[t] + decay * x[t + 1] within a vector.
template <int n, int step, class L>
INSTRUCTRL_LANE L scanned(L x, const Decay<L>& decay) {
  if constexpr (n < L::kWidth) {
    return scanned<2 * n, step + 1>(fma(decay.steps[step], moved_left<n>(x, L(0.0)), x), decay);
  } else {
    return x;
  }
}

template <class L>
INSTRUCTRL_LANE L advantages_of_all(L rewards, L values, const Decay<L>& decay, Carry<typename L::Scalar>& carry) {
  const L deltas = residual(rewards, values, moved_left<1>(values, L(carry.value)), L(decay.gamma));
  const L advantages = fma(decay.from_behind, L(carry.advantage), scanned<1, 0>(deltas, decay));
  carry = {lane(advantages, 0), lane(values, 0)};
  return advantages;
}

// The first counted value at or behind each token; `counted` is 1 or 0, `behind` the value behind the vector.
template <int n, class L>
INSTRUCTRL_LANE L nearest_counted(L values, L counted, L behind) {
  if constexpr (n < L::kWidth) {
    const L nearest = select(counted > L(0.0), values, moved_left<n>(values, behind));
    return nearest_counted<2 * n>(nearest, larger(counted, moved_left<n>(counted, L(1.0))), behind);
  } else {
    return values;
  }
}

template <int n, class L>
INSTRUCTRL_LANE Affine<L> scanned(Affine<L> x) {
  if constexpr (n < L::kWidth) {
    return scanned<2 * n>(composed(x, Affine<L>{moved_left<n>(x.factor, L(1.0)), moved_left<n>(x.term, L(0.0))}));
  } else {
    return x;
  }
}

// The same where some tokens count; the others hand on what is behind them.
template <class L>
INSTRUCTRL_LANE L advantages_of_some(L rewards, L values, MaskOf<L> mask, const Decay<L>& decay,
                                     Carry<typename L::Scalar>& carry) {
  const L zero(0.0), one(1.0), behind(carry.value);
  const L nearest = nearest_counted<1>(values, select(mask, one, zero), behind);
  const L deltas = residual(rewards, values, moved_left<1>(nearest, behind), L(decay.gamma));
  const Affine<L> scan = scanned<1>(Affine<L>{select(mask, decay.steps[0], one), select(mask, deltas, zero)});
  const L running = fma(scan.factor, L(carry.advantage), scan.term);
  carry = {lane(running, 0), lane(nearest, 0)};
  return select(mask, running, zero);
}

// 1 at the last counted token of a vector, else 0.
template <class L>
INSTRUCTRL_LANE L last_counted(const bool* mask, int64_t n) {
  typename L::Scalar is_last[L::kWidth] = {};
  int64_t t = n - 1;
  while (!mask[t]) --t;
  is_last[t] = 1;
  return load(is_last);
}

struct Span {
  int64_t begin, end;
};

// Offsets that are none stay within the tensor.
INSTRUCTRL_LANE Span sequence_span(const AdvantagesArgs& args, int64_t sequence) {
  if (args.offsets == nullptr) return {sequence * args.length, (sequence + 1) * args.length};
  const auto within = [&](int64_t offset) { return offset < 0 ? 0 : least(offset, args.length); };
  return {within(args.offsets[sequence]), within(args.offsets[sequence + 1])};
}

// kShaped: rewards are made of log-probabilities and the score, written out, and sums are taken.
template <class T, bool kShaped>
static void advantages_of_sequences(const AdvantagesArgs& args, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Scalar = typename L::Scalar;
  const L zero(0.0);
  const Decay<L> decay = decay_of<L>(args.gamma, args.lam);
  for (int64_t sequence = begin; sequence < end; ++sequence) {
    const Span span = sequence_span(args, sequence);
    Carry<Scalar> carry{0, 0};
    DoubleSum<L> sum, sum_of_squares, kl;
    Count<L> counts(0);
    bool score_pending = true;
    // Whole vectors from the left, so that they are aligned where rows are; what is left over is at the right end.
    const int64_t length = span.end - span.begin, rest = length > 0 ? (length - 1) % L::kWidth + 1 : 0;
    for (int64_t token = span.end - rest, n = rest; token >= span.begin && n > 0; token -= L::kWidth, n = L::kWidth) {
      const bool* from_mask = args.mask + token;
      const MaskOf<L> mask = load_counts<L>(from_mask, n);
      L advantages = zero, returns = zero, rewards = zero;
      if (any(mask)) {
        const auto counted = [&](const void* data) { return load_counted(static_cast<const T*>(data) + token, n, mask); };
        const L values = counted(args.values);
        if constexpr (kShaped) {
          const L log_ratio = counted(args.logprobs) - counted(args.ref_logprobs);
          rewards = L(args.minus_kl_coef) * log_ratio;
          if (score_pending) {
            score_pending = false;
            const Scalar score = static_cast<const Scalar*>(args.scores)[sequence];
            rewards += select(last_counted<L>(from_mask, n) > zero, L(score), zero);
          }
          kl.add(log_ratio);
        } else {
          rewards = counted(args.rewards);
        }
        const bool all_count = n == L::kWidth && !any(~mask);
        advantages = all_count ? advantages_of_all(rewards, values, decay, carry)
                               : advantages_of_some(rewards, values, mask, decay, carry);
        returns = select(mask, advantages + values, zero);
        if constexpr (kShaped) {
          counts += select(mask, Count<L>(1), Count<L>(0));
          sum.add(advantages);
          sum_of_squares.add_square(advantages);
        }
      }
      store_first(static_cast<Scalar*>(args.advantages) + token, advantages, n);
      store_first(static_cast<Scalar*>(args.returns) + token, returns, n);
      if constexpr (kShaped) store_first(static_cast<Scalar*>(args.shaped_rewards) + token, rewards, n);
    }
    if constexpr (kShaped) {
      args.sums[sequence] = {sum.total(), sum_of_squares.total(), static_cast<double>(total_count<L>(counts)), kl.total()};
    }
  }
}

template <class T>
static void generalized_advantages(const AdvantagesArgs& args, int64_t begin, int64_t end) {
  advantages_of_sequences<T, false>(args, begin, end);
}

template <class T>
static void ppo_advantages(const AdvantagesArgs& args, int64_t begin, int64_t end) {
  advantages_of_sequences<T, true>(args, begin, end);
}
