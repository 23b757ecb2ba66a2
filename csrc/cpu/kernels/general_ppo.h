// PPO's losses under any settings: one item is a block of kPpoBlockTokens consecutive tokens, as in kernels/ppo.h.
//
// One instantiation for each dtype: what is asked for and which formulas are taken are branches on numbers that are the
// same for all tokens. They cost little beside the exponentials, and the losses as they were published, which have kernels
// of their own, pay nothing for them.

// What a block adds up, beside the sums that the published losses have.
template <class Sum>
struct GeneralPpoTotals {
  PpoTotals<Sum> common;
  Sum kl_loss, num_dual_clipped;
};

template <class L>
struct GeneralPpo {
  PpoOptions<L> options;
  L range, vf_coef, kl_coef;
  bool kl_in_loss;
};

// The arrays of one call from a token on, of which the first n are read, and only those that count.
template <class T>
struct PpoReader {
  using L = Lanes<T>;
  int64_t token, n;
  MaskOf<L> mask;
  INSTRUCTRL_MEMBER L counted(const void* data) const {
    return load_counted(static_cast<const T*>(data) + token, n, mask);
  }
  // What is in the dtype of the outputs.
  INSTRUCTRL_MEMBER L wide(const void* data) const {
    return load_counted(static_cast<const typename L::Scalar*>(data) + token, n, mask);
  }
};

// Adds the policy loss and the KL of a vector of tokens to `loss`; returns the derivative by their log-probabilities.
template <class T>
INSTRUCTRL_LANE Lanes<T> general_policy(const PpoArgs& args, const GeneralPpo<Lanes<T>>& ppo, const PpoReader<T>& read,
                                        Lanes<T> weight, Lanes<T>& loss, GeneralPpoTotals<Lanes<T>>& sums,
                                        Lanes<T>& ratio_max) {
  using L = Lanes<T>;
  const L zero(0.0), half(0.5);
  L derivative = zero;
  const L logprob = read.counted(args.logprobs);
  const L log_ratio = args.old_logprobs == nullptr ? zero : logprob - read.counted(args.old_logprobs);
  const Ratio<L> of_token = ratio_of(log_ratio, ppo.options.log_ratio_clamp);
  if (args.advantages != nullptr) {
    Ratio<L> ratio = of_token;
    if (args.log_ratios != nullptr) ratio = ratio_of(read.wide(args.log_ratios), ppo.options.log_ratio_clamp);
    const SurrogateTerm<L> term = surrogate_term(logprob, ratio, read.counted(args.advantages), ppo.options);
    const L counted_ratio = select(read.mask, ratio.value, zero);
    loss = weighted(term.loss, weight);
    derivative = weighted(term.derivative, weight);
    sums.common.policy_loss += loss;
    sums.common.num_policy_clipped += term.clipped;
    sums.num_dual_clipped += term.dual_clipped;
    sums.common.approx_kl += half * (log_ratio * log_ratio);
    sums.common.ratio += counted_ratio;
    ratio_max = larger(counted_ratio, ratio_max);
  }
  if (args.ref_logprobs != nullptr) {
    const LossTerm<L> term = kl_term(logprob - read.counted(args.ref_logprobs), of_token, ppo.options);
    const L kl_loss = weighted(term.loss, weight);
    sums.common.kl += term.loss;
    sums.kl_loss += kl_loss;
    if (ppo.kl_in_loss) {
      loss += ppo.kl_coef * kl_loss;
      derivative += ppo.kl_coef * weighted(term.derivative, weight);
    }
  }
  return derivative;
}

// One vector of tokens, of which the first n exist.
template <class T>
INSTRUCTRL_LANE void general_ppo_lanes(const PpoArgs& args, const GeneralPpo<Lanes<T>>& ppo, int64_t token, int64_t n,
                                       GeneralPpoTotals<Lanes<T>>& sums, Lanes<T>& ratio_max) {
  using L = Lanes<T>;
  using Scalar = typename L::Scalar;
  const L zero(0.0);
  const PpoReader<T> read{token, n, load_counts<L>(args.mask + token, n)};
  L grad_logprob = zero, grad_value = zero, loss = zero;
  // Padding comes in runs.
  if (any(read.mask)) {
    const L counts = select(read.mask, L(1.0), zero);
    // 0 where the mask is False: what is there has no part in anything that is weighted.
    const L weight = args.weights == nullptr ? counts : read.wide(args.weights);
    sums.common.num_tokens += counts;
    if (args.logprobs != nullptr) grad_logprob = general_policy<T>(args, ppo, read, weight, loss, sums, ratio_max);
    if (args.values != nullptr) {
      const ValueTerm<L> term = value_term(read.counted(args.values), read.counted(args.old_values),
                                           read.counted(args.returns), ppo.range);
      const L value_loss = weighted(term.loss, weight);
      sums.common.value_loss += value_loss;
      sums.common.num_value_clipped += term.clipped;
      sums.common.squared_error += term.squared_error;
      loss += ppo.vf_coef * value_loss;
      grad_value = ppo.vf_coef * weighted(term.derivative, weight);
    }
  }
  if (args.grad_logprobs != nullptr) store_first(static_cast<Scalar*>(args.grad_logprobs) + token, grad_logprob, n);
  if (args.grad_values != nullptr) store_first(static_cast<Scalar*>(args.grad_values) + token, grad_value, n);
  if (args.token_losses != nullptr) store_first(static_cast<Scalar*>(args.token_losses) + token, loss, n);
}

template <class T>
static void general_ppo_loss(const PpoArgs& args, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  constexpr int64_t kFlush = int64_t{kVectorsPerFlush} * L::kWidth;
  const GeneralPpo<L> ppo{ppo_options<L>(args.settings), args.range, args.vf_coef, args.kl_coef, args.kl_coef != 0.0};
  const L zero(0.0);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t block_end = least((block + 1) * kPpoBlockTokens, args.num_tokens);
    GeneralPpoTotals<DoubleSum<L>> totals;
    L ratio_max = zero;
    for (int64_t start = block * kPpoBlockTokens; start < block_end; start += kFlush) {
      GeneralPpoTotals<L> sums{{zero, zero, zero, zero, zero, zero, zero, zero, zero}, zero, zero};
      const int64_t stop = least(start + kFlush, block_end);
      for (int64_t token = start; token < stop; token += L::kWidth) {
        general_ppo_lanes<T>(args, ppo, token, least(L::kWidth, stop - token), sums, ratio_max);
      }
      flush(sums.common, totals.common);
      totals.kl_loss.add(sums.kl_loss);
      totals.num_dual_clipped.add(sums.num_dual_clipped);
    }
    PpoSums& sums = args.blocks[block];
    store_totals(totals.common, ratio_max, sums);
    sums.kl_loss = totals.kl_loss.total();
    sums.num_dual_clipped = totals.num_dual_clipped.total();
  }
}
