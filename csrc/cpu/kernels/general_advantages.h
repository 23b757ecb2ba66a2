// Advantages under any settings: one item is a sequence, read once from the right, a vector of tokens at a time.
//
// What a token needs of itself, rewards with their estimate of the KL included, is made in vectors. Where the recurrence is
// that of advantages.h its scan follows, twice where the returns have a lambda of their own; where episodes end inside a
// sequence, values behind tokens are given or gaps count, the lanes are gone through one by one in three numbers, five times
// as long, so that each of these is a plain branch. Bytes a token: those of advantages.h, and what else is given. Sums as there.

// What the tokens on the left need of those on the right. `started`: a value was read in this sequence.
template <class Scalar>
struct Trace {
  Scalar advantage, for_return, next_value;
  bool started;
};

struct Rates {
  double gamma, lam, value_lam;
};

INSTRUCTRL_LANE Rates rates_of(const GeneralAdvantagesArgs& args, int64_t sequence) {
  if (args.rates == nullptr) return {args.plain.gamma, args.plain.lam, args.value_lam};
  const double* rates = args.rates + 3 * sequence;
  return {rates[0], rates[1], rates[2]};
}

// gamma, and gamma times both lambdas.
template <class Scalar>
struct Discounts {
  Scalar gamma, decay, value_decay;
};

template <class Scalar>
INSTRUCTRL_LANE Discounts<Scalar> discounts_of(const Rates& rates) {
  return {static_cast<Scalar>(rates.gamma), static_cast<Scalar>(rates.gamma * rates.lam),
          static_cast<Scalar>(rates.gamma * rates.value_lam)};
}

// The tokens of a vector, lane by lane.
template <class L>
struct TokenLanes {
  typename L::Scalar rewards[L::kWidth], values[L::kWidth], next_values[L::kWidth];
  typename L::Scalar advantages[L::kWidth], returns[L::kWidth];
  bool valued[L::kWidth];
};

// Where values are read: at counted tokens, and at one behind them where the score is paid there. `counted_behind`: there was
// a counted token further right.
template <class L>
INSTRUCTRL_LANE void find_valued(const GeneralAdvantagesArgs& args, const Span& span, int64_t token, int64_t n,
                                 bool& counted_behind, TokenLanes<L>& lanes) {
  const bool* mask = args.plain.mask + token;
  if (!args.score_behind || counted_behind) {
    for (int64_t i = 0; i < L::kWidth; ++i) lanes.valued[i] = i < n && mask[i];
    return;
  }
  for (int64_t i = L::kWidth - 1; i >= 0; --i) {
    lanes.valued[i] = i < n && (mask[i] || (!counted_behind && token + i > span.begin && mask[i - 1]));
    counted_behind = counted_behind || (i < n && mask[i]);
  }
}

// Tokens from the right; rewards become 0 where no reward is.
template <class L>
INSTRUCTRL_LANE void go_through(const GeneralAdvantagesArgs& args, int64_t token, int64_t n, typename L::Scalar score,
                                const Discounts<typename L::Scalar>& by, TokenLanes<L>& lanes,
                                Trace<typename L::Scalar>& trace) {
  using Scalar = typename L::Scalar;
  for (int64_t i = L::kWidth - 1; i >= 0; --i) {
    lanes.advantages[i] = lanes.returns[i] = 0;
    if (i >= n) continue;
    if (lanes.valued[i]) {
      if (!trace.started) lanes.rewards[i] += score;
      trace.started = true;
      const bool counted = args.plain.mask[token + i];
      const bool done = counted && args.dones != nullptr && args.dones[token + i];
      const Scalar next = args.next_values != nullptr ? lanes.next_values[i] : done ? Scalar(0) : trace.next_value;
      const Scalar delta = residual(lanes.rewards[i], lanes.values[i], next, by.gamma);
      // Nothing crosses the end of an episode, infinity and NaN included.
      trace.advantage = done ? delta : delta + by.decay * trace.advantage;
      trace.for_return = done ? delta : delta + by.value_decay * trace.for_return;
      trace.next_value = lanes.values[i];
      if (counted) lanes.advantages[i] = trace.advantage;
      lanes.returns[i] = trace.for_return + lanes.values[i];
    } else if (args.count_gaps && trace.started) {
      const Scalar delta = by.gamma * trace.next_value;
      trace = {delta + by.decay * trace.advantage, delta + by.value_decay * trace.for_return, 0, true};
    }
  }
}

// The same by vectors: what is scanned of advantages and of returns.
template <class L>
struct Scans {
  Decay<L> decay, value_decay;
  bool one;  // Both are the same.
  Carry<typename L::Scalar> carry, value_carry;
  bool started;
};

template <class L>
INSTRUCTRL_LANE Scans<L> scans_of(const Rates& rates, typename L::Scalar bootstrap) {
  const Decay<L> decay = decay_of<L>(rates.gamma, rates.lam);
  const bool one = rates.lam == rates.value_lam;
  return {decay, one ? decay : decay_of<L>(rates.gamma, rates.value_lam), one, {0, bootstrap}, {0, bootstrap}, false};
}

template <class L>
INSTRUCTRL_LANE void scan(L values, MaskOf<L> counted, MaskOf<L> valued, int64_t n, typename L::Scalar score,
                          TokenLanes<L>& lanes, Scans<L>& scans) {
  const L zero(0.0);
  store(lanes.advantages, zero);
  store(lanes.returns, zero);
  if (!any(valued)) return;
  L rewards = load(lanes.rewards);
  if (!scans.started) {
    rewards += select(last_counted<L>(lanes.valued, n) > zero, L(score), zero);
    store(lanes.rewards, rewards);
    scans.started = true;
  }
  const bool all = n == L::kWidth && !any(~valued);
  const auto scanned_by = [&](const Decay<L>& decay, Carry<typename L::Scalar>& carry) {
    return all ? advantages_of_all(rewards, values, decay, carry)
               : advantages_of_some(rewards, values, valued, decay, carry);
  };
  const L advantages = scanned_by(scans.decay, scans.carry);
  const L for_returns = scans.one ? advantages : scanned_by(scans.value_decay, scans.value_carry);
  store(lanes.advantages, select(counted, advantages, zero));
  store(lanes.returns, select(valued, for_returns + values, zero));
}

template <class T>
static void general_advantages(const GeneralAdvantagesArgs& general, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Scalar = typename L::Scalar;
  const L zero(0.0);
  const AdvantagesArgs& args = general.plain;
  const bool shaped = args.rewards == nullptr;
  const bool by_vectors = general.dones == nullptr && general.next_values == nullptr && !general.count_gaps;
  const KlRule kl_rule = {static_cast<KlEstimator>(general.kl_estimator), general.kl_input_clamp, general.kl_output_clamp};
  for (int64_t sequence = begin; sequence < end; ++sequence) {
    const Span span = sequence_span(args, sequence);
    const Rates rates = rates_of(general, sequence);
    const Discounts<Scalar> discounts = discounts_of<Scalar>(rates);
    const auto of_sequence = [&](const void* data) {
      return data == nullptr ? Scalar(0) : static_cast<const Scalar*>(data)[sequence];
    };
    const Scalar score = of_sequence(args.scores);
    Trace<Scalar> trace{0, 0, of_sequence(general.bootstrap), false};
    Scans<L> scans = scans_of<L>(rates, of_sequence(general.bootstrap));
    DoubleSum<L> sum, sum_of_squares, kl;
    Count<L> counts(0);
    bool counted_behind = false;
    const int64_t length = span.end - span.begin, rest = length > 0 ? (length - 1) % L::kWidth + 1 : 0;
    for (int64_t token = span.end - rest, n = rest; token >= span.begin && n > 0; token -= L::kWidth, n = L::kWidth) {
      TokenLanes<L> lanes;
      find_valued<L>(general, span, token, n, counted_behind, lanes);
      const MaskOf<L> mask = load_counts<L>(args.mask + token, n), valued = load_mask<L>(lanes.valued);
      const auto counted = [&](const void* data, MaskOf<L> where) {
        return load_counted(static_cast<const T*>(data) + token, n, where);
      };
      L log_ratio = zero, rewards = zero;
      if (shaped) {
        log_ratio = counted(args.logprobs, mask) - counted(args.ref_logprobs, mask);
        rewards = select(mask, L(args.minus_kl_coef) * kl_of(log_ratio, kl_rule), zero);
      } else {
        rewards = counted(args.rewards, mask);
      }
      store(lanes.rewards, rewards);
      const L values = counted(args.values, valued);
      if (by_vectors) {
        scan<L>(values, mask, valued, n, score, lanes, scans);
      } else {
        store(lanes.values, values);
        store(lanes.next_values, general.next_values != nullptr ? counted(general.next_values, mask) : zero);
        go_through<L>(general, token, n, score, discounts, lanes, trace);
      }
      const L advantages = load(lanes.advantages);
      store_first(static_cast<Scalar*>(args.advantages) + token, advantages, n);
      store_first(static_cast<Scalar*>(args.returns) + token, load(lanes.returns), n);
      if (shaped) store_first(static_cast<Scalar*>(args.shaped_rewards) + token, load(lanes.rewards), n);
      counts += select(mask, Count<L>(1), Count<L>(0));
      sum.add(advantages);
      sum_of_squares.add_square(advantages);
      kl.add(log_ratio);
    }
    args.sums[sequence] = {sum.total(), sum_of_squares.total(), static_cast<double>(total_count<L>(counts)), kl.total()};
  }
}
