// PPO's losses: one item is a block of kPpoBlockTokens consecutive tokens, whatever the shape.
//
// Reads every input once and writes the gradients: 33 bytes a token for the whole objective in float32. The derivatives
// are those of the sum, so no count is needed beforehand. In registers: nine sums, which go to double every
// kVectorsPerFlush vectors, so that float never adds up more than a few numbers; with the constants of the exponential
// they fill the registers of AVX-512. A block's sums go to memory and the caller adds blocks up in their order, so bits do
// not depend on threads. A block is a few microseconds of work, enough to hide what it costs to hand it out.

constexpr int kVectorsPerFlush = 16;

// What a block adds up: in lanes of float, then in double.
template <class Sum>
struct PpoTotals {
  Sum policy_loss, value_loss, kl, num_tokens, num_policy_clipped, approx_kl, ratio, num_value_clipped, squared_error;
};

template <class L>
INSTRUCTRL_LANE void flush(const PpoTotals<L>& from, PpoTotals<DoubleSum<L>>& to) {
  to.policy_loss.add(from.policy_loss);
  to.value_loss.add(from.value_loss);
  to.kl.add(from.kl);
  to.num_tokens.add(from.num_tokens);
  to.num_policy_clipped.add(from.num_policy_clipped);
  to.approx_kl.add(from.approx_kl);
  to.ratio.add(from.ratio);
  to.num_value_clipped.add(from.num_value_clipped);
  to.squared_error.add(from.squared_error);
}

template <class L>
INSTRUCTRL_LANE void store_totals(const PpoTotals<DoubleSum<L>>& totals, L ratio_max, PpoSums& sums) {
  sums.policy_loss = totals.policy_loss.total();
  sums.value_loss = totals.value_loss.total();
  sums.kl = totals.kl.total();
  sums.num_tokens = totals.num_tokens.total();
  sums.num_policy_clipped = totals.num_policy_clipped.total();
  sums.approx_kl = totals.approx_kl.total();
  sums.ratio = totals.ratio.total();
  sums.num_value_clipped = totals.num_value_clipped.total();
  sums.squared_error = totals.squared_error.total();
  // The largest lane ignores NaN, which the sum has seen: ratios are finite or NaN.
  sums.ratio_max = sums.ratio != sums.ratio ? sums.ratio : reduce_max(ratio_max);
}

template <class L>
struct PpoSettings {
  L low, high, range, vf_coef, kl_coef;
  bool kl_in_loss;
};

// One vector of tokens, of which the first n exist.
template <class T, bool kPolicy, bool kValue, bool kReference>
INSTRUCTRL_LANE void ppo_lanes(const PpoArgs& args, const PpoSettings<Lanes<T>>& settings, int64_t token, int64_t n,
                               PpoTotals<Lanes<T>>& sums, Lanes<T>& ratio_max) {
  using L = Lanes<T>;
  using Scalar = typename L::Scalar;
  const L zero(0.0);
  const MaskOf<L> mask = load_counts<L>(args.mask + token, n);
  L grad_logprob = zero, grad_value = zero;
  // Padding comes in runs.
  if (any(mask)) {
    const auto counted = [&](const void* data) { return load_counted(static_cast<const T*>(data) + token, n, mask); };
    sums.num_tokens += select(mask, L(1.0), zero);
    if constexpr (kPolicy) {
      const L logprob = counted(args.logprobs);
      const PolicyTerm<L> term =
          policy_term(logprob, counted(args.old_logprobs), counted(args.advantages), settings.low, settings.high);
      const L ratio = select(mask, term.ratio, zero);
      sums.policy_loss += term.loss;
      sums.num_policy_clipped += term.clipped;
      sums.approx_kl += term.approx_kl;
      sums.ratio += ratio;
      ratio_max = larger(ratio, ratio_max);
      grad_logprob = term.derivative;
      if constexpr (kReference) {
        const LossTerm<L> kl = reference_kl_term(logprob, counted(args.ref_logprobs));
        sums.kl += kl.loss;
        if (settings.kl_in_loss) grad_logprob += settings.kl_coef * kl.derivative;
      }
    }
    if constexpr (kValue) {
      const ValueTerm<L> term =
          value_term(counted(args.values), counted(args.old_values), counted(args.returns), settings.range);
      sums.value_loss += term.loss;
      sums.num_value_clipped += term.clipped;
      sums.squared_error += term.squared_error;
      grad_value = settings.vf_coef * term.derivative;
    }
  }
  if constexpr (kPolicy) store_first(static_cast<Scalar*>(args.grad_logprobs) + token, grad_logprob, n);
  if constexpr (kValue) store_first(static_cast<Scalar*>(args.grad_values) + token, grad_value, n);
}

template <class T, bool kPolicy, bool kValue, bool kReference>
static void ppo_blocks(const PpoArgs& args, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  constexpr int64_t kFlush = int64_t{kVectorsPerFlush} * L::kWidth;
  const PpoSettings<L> settings{args.low, args.high, args.range, args.vf_coef, args.kl_coef, args.kl_coef != 0.0};
  const L zero(0.0);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t block_end = least((block + 1) * kPpoBlockTokens, args.num_tokens);
    PpoTotals<DoubleSum<L>> totals;
    L ratio_max = zero;
    for (int64_t start = block * kPpoBlockTokens; start < block_end; start += kFlush) {
      PpoTotals<L> sums{zero, zero, zero, zero, zero, zero, zero, zero, zero};
      const int64_t stop = least(start + kFlush, block_end);
      int64_t token = start;
      for (; token + L::kWidth <= stop; token += L::kWidth) {
        ppo_lanes<T, kPolicy, kValue, kReference>(args, settings, token, L::kWidth, sums, ratio_max);
      }
      if (token < stop) ppo_lanes<T, kPolicy, kValue, kReference>(args, settings, token, stop - token, sums, ratio_max);
      flush(sums, totals);
    }
    store_totals(totals, ratio_max, args.blocks[block]);
  }
}

template <class T>
static void clipped_policy_loss(const PpoArgs& args, int64_t begin, int64_t end) {
  ppo_blocks<T, true, false, false>(args, begin, end);
}

template <class T>
static void clipped_value_loss(const PpoArgs& args, int64_t begin, int64_t end) {
  ppo_blocks<T, false, true, false>(args, begin, end);
}

template <class T>
static void ppo_loss(const PpoArgs& args, int64_t begin, int64_t end) {
  if (args.ref_logprobs != nullptr) {
    ppo_blocks<T, true, true, true>(args, begin, end);
  } else {
    ppo_blocks<T, true, true, false>(args, begin, end);
  }
}
