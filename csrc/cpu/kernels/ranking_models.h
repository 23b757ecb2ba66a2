// Paired comparisons with margins, weights, label smoothing and ties, and the Plackett-Luce loss: as in ranking.h, one
// item is kRankingGroup prompts, one prompt a lane. Included by isa_table.h behind ranking.h.
//
// Margins and weights are read where they are, an element a lane: whoever gives one number for all pairs, or one a
// prompt, gives no matrix. A pair is evaluated from both sides, because its margins may differ.

// One number a lane, of the first n lanes.
template <class L>
INSTRUCTRL_LANE L load_strided(const typename L::Scalar* from, int64_t stride, int64_t n) {
  if (stride == 0) return L(*from);
  typename L::Scalar numbers[L::kWidth] = {};
  for (int64_t i = 0; i < n; ++i) numbers[i] = from[i * stride];
  return load(numbers);
}

// The numbers of the pair (i, j) of n prompts from `prompt` on.
template <class L>
INSTRUCTRL_LANE L load_pair_numbers(const PairNumbers& numbers, int64_t prompt, int64_t i, int64_t j, int64_t n) {
  const auto* from = static_cast<const typename L::Scalar*>(numbers.data);
  from += prompt * numbers.prompt_stride + i * numbers.winner_stride + j * numbers.loser_stride;
  return load_strided<L>(from, numbers.prompt_stride, n);
}

template <class L>
struct ComparisonLanes {
  L loss;
  Count<L> num_pairs, num_correct, num_ties;
};

// The n prompts of one vector from `prompt` on; layouts as in `rank_lanes`.
template <class T>
INSTRUCTRL_LANE ComparisonLanes<Lanes<T>> compare_lanes(const ComparisonArgs& args, int64_t prompt, int64_t n,
                                                        const T* scores, const uint8_t* preferred, const uint8_t* tied,
                                                        typename Lanes<T>::Scalar* gradient) {
  using L = Lanes<T>;
  using Scalar = typename L::Scalar;
  const int64_t num_responses = args.ranking.num_responses;
  const auto number = [](double x) { return L(static_cast<Scalar>(x)); };
  const L zero(0.0), one(1.0), margin = number(args.terms.margin), smoothing = number(args.terms.label_smoothing);
  const L davidson = number(args.terms.davidson), tie_weight = number(args.terms.tie_weight);
  const L half_constant = number(0.5 * args.terms.tie_constant);
  const Count<L> uncounted(0), counted(1);
  const auto flag = [&](const uint8_t* matrix, int64_t i, int64_t j) {
    return load_mask<L>(reinterpret_cast<const bool*>(matrix + (i * num_responses + j) * kRankingGroup));
  };
  ComparisonLanes<L> sums{zero, uncounted, uncounted, uncounted};
  for (int64_t k = 0; k < num_responses; ++k) store(gradient + k * kRankingGroup, zero);
  for (int64_t i = 0; i < num_responses; ++i) {
    const L score = load(scores + i * kRankingGroup);
    L derivative = load(gradient + i * kRankingGroup);
    for (int64_t j = 0; j < num_responses; ++j) {
      const auto won = flag(preferred, i, j);
      auto tie = won & ~won;
      if (args.tied != nullptr) tie = flag(tied, i, j) | flag(tied, j, i);
      const auto either = won | tie;
      if (i == j || !any(either)) continue;
      const L difference = select(either, score - load(scores + j * kRankingGroup), zero);
      L x = difference - margin, weight = one;
      if (args.margins.data != nullptr) {
        x -= select(either, load_pair_numbers<L>(args.margins, prompt, i, j, n), zero);
      }
      if (args.weights.data != nullptr) weight = load_pair_numbers<L>(args.weights, prompt, i, j, n);
      const auto term = comparison_term(x, davidson);
      const L strength = select(won, weight, select(tie, tie_weight * weight, zero));
      sums.loss += strength * (term.loss + smoothing * x) - select(tie, half_constant * weight, zero);
      const L change = strength * (term.derivative + smoothing);
      derivative += change;
      store(gradient + j * kRankingGroup, load(gradient + j * kRankingGroup) - change);
      sums.num_pairs += select(won, counted, uncounted);
      sums.num_correct += select(won & (difference > zero), counted, uncounted);
      if (i < j) sums.num_ties += select(tie, counted, uncounted);
    }
    store(gradient + i * kRankingGroup, derivative);
  }
  return sums;
}

template <class T>
static void paired_comparison_loss(const ComparisonArgs& args, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Scalar = typename L::Scalar;
  const RankingArgs& ranking = args.ranking;
  const int64_t num_responses = ranking.num_responses, num_flags = num_responses * num_responses;
  auto* gradient = static_cast<Scalar*>(ranking.scratch);
  auto* scores = reinterpret_cast<T*>(gradient + num_responses * kRankingGroup);
  auto* preferred = reinterpret_cast<uint8_t*>(scores + num_responses * kRankingGroup);
  uint8_t* tied = preferred + num_flags * kRankingGroup;
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * kRankingGroup, num_prompts = least(kRankingGroup, ranking.num_prompts - first);
    transpose_bytes(ranking.preferred + first * num_flags, num_prompts, num_flags, preferred);
    if (args.tied != nullptr) transpose_bytes(args.tied + first * num_flags, num_prompts, num_flags, tied);
    load_scores(ranking, first, num_prompts, scores);
    for (int64_t p = 0; p < num_prompts; p += L::kWidth) {
      const int64_t n = least(L::kWidth, num_prompts - p);
      const ComparisonLanes<L> sums =
          compare_lanes<T>(args, first + p, n, scores + p, preferred + p, tied + p, gradient + p);
      store_first(static_cast<Scalar*>(ranking.loss_sum) + first + p, sums.loss, n);
      for (int i = 0; i < n; ++i) {
        ranking.num_pairs[first + p + i] = count_lane(sums.num_pairs, i);
        ranking.num_correct[first + p + i] = count_lane(sums.num_correct, i);
        args.num_ties[first + p + i] = count_lane(sums.num_ties, i);
      }
    }
    store_gradient(ranking, first, num_prompts, gradient);
  }
}

// Which responses each was chosen from: `available[(i * K + j) * kRankingGroup + prompt]` where both are there and j
// does not rank above i.
static void load_choices(const int64_t* ranks, int64_t num_prompts, int64_t num_responses, uint8_t* available) {
  for (int64_t i = 0; i < num_responses; ++i) {
    for (int64_t j = 0; j < num_responses; ++j) {
      uint8_t* to = available + (i * num_responses + j) * kRankingGroup;
      for (int64_t p = 0; p < kRankingGroup; ++p) {
        const int64_t* from = ranks + p * num_responses;
        to[p] = p < num_prompts && from[i] >= 0 && from[j] >= from[i];
      }
    }
  }
}

// A choice's loss is log(sum over the available of exp(score - own)). Exponentials are of differences to the largest of
// them; where the chosen is the largest, what the others add up to goes into log1p.
template <class T>
INSTRUCTRL_LANE RankingLanes<Lanes<T>> choose_lanes(int64_t num_responses, const T* scores, const uint8_t* available,
                                                    typename Lanes<T>::Scalar* gradient,
                                                    typename Lanes<T>::Scalar* exponentials) {
  using L = Lanes<T>;
  const L zero(0.0), one(1.0), lowest(-__builtin_inff());
  const Count<L> uncounted(0), counted(1);
  const auto flag = [&](int64_t i, int64_t j) {
    return load_mask<L>(reinterpret_cast<const bool*>(available + (i * num_responses + j) * kRankingGroup));
  };
  RankingLanes<L> sums{zero, uncounted, uncounted};
  for (int64_t k = 0; k < num_responses; ++k) store(gradient + k * kRankingGroup, zero);
  for (int64_t i = 0; i < num_responses; ++i) {
    const auto present = flag(i, i);
    if (!any(present)) continue;
    const L score = select(present, load(scores + i * kRankingGroup), zero);
    auto choice = present & ~present;
    L best_other = lowest;
    for (int64_t j = 0; j < num_responses; ++j) {
      if (j == i) continue;
      choice = choice | flag(i, j);
      best_other = larger(best_other, select(flag(i, j), load(scores + j * kRankingGroup), lowest));
    }
    const L top = select(present, larger(best_other, score), zero), own = exp(score - top);
    L others = zero;
    for (int64_t j = 0; j < num_responses; ++j) {
      if (j == i) continue;
      const L exponential = select(flag(i, j), exp(load(scores + j * kRankingGroup) - top), zero);
      store(exponentials + j * kRankingGroup, exponential);
      others += exponential;
    }
    const L share = one / (own + others);
    const L rest = select(score == top, others, (own + others) - one);
    sums.loss += select(choice, (top - score) + log1p(rest), zero);
    for (int64_t j = 0; j < num_responses; ++j) {
      const L change = j == i ? -(others * share) : load(exponentials + j * kRankingGroup) * share;
      const L before = load(gradient + j * kRankingGroup);
      store(gradient + j * kRankingGroup, before + select(choice & flag(i, j), change, zero));
    }
    sums.num_pairs += select(choice, counted, uncounted);
    sums.num_correct += select(choice & (score > best_other), counted, uncounted);
  }
  return sums;
}

template <class T>
static void plackett_luce_loss(const PlackettLuceArgs& args, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Scalar = typename L::Scalar;
  const RankingArgs& ranking = args.ranking;
  const int64_t num_responses = ranking.num_responses;
  auto* gradient = static_cast<Scalar*>(ranking.scratch);
  Scalar* exponentials = gradient + num_responses * kRankingGroup;
  auto* scores = reinterpret_cast<T*>(exponentials + num_responses * kRankingGroup);
  auto* available = reinterpret_cast<uint8_t*>(scores + num_responses * kRankingGroup);
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * kRankingGroup, num_prompts = least(kRankingGroup, ranking.num_prompts - first);
    load_choices(args.ranks + first * num_responses, num_prompts, num_responses, available);
    load_scores(ranking, first, num_prompts, scores);
    for (int64_t p = 0; p < num_prompts; p += L::kWidth) {
      const int64_t n = least(L::kWidth, num_prompts - p);
      const RankingLanes<L> sums =
          choose_lanes<T>(num_responses, scores + p, available + p, gradient + p, exponentials + p);
      store_first(static_cast<Scalar*>(ranking.loss_sum) + first + p, sums.loss, n);
      for (int i = 0; i < n; ++i) {
        ranking.num_pairs[first + p + i] = count_lane(sums.num_pairs, i);
        ranking.num_correct[first + p + i] = count_lane(sums.num_correct, i);
      }
    }
    store_gradient(ranking, first, num_prompts, gradient);
  }
}
