// The pairwise ranking loss and its gradient: one item is kRankingGroup prompts, one prompt a lane.
//
// Reads K scores and K * K preferences of a prompt and writes K derivatives, one loss and two counts. A group is first
// transposed into scratch (1.3 KB of preferences at K = 9, so it stays in the first-level cache): then every lane is busy
// whatever K is, and both orders of a pair share one exponential and one division. The logarithms of a prompt share one
// log1p: with p = (1 + e_1) (1 + e_2) ... - 1, log1p(p) is their sum, and p adds up positive numbers only, so that it
// loses nothing where losses are tiny.

// p stays finite: a factor is at most 2, and two may come from one pair.
constexpr int kPairsPerLogarithm = 60;

typedef uint8_t Bytes16 __attribute__((vector_size(16)));

#if defined(__clang__)
INSTRUCTRL_LANE Bytes16 interleaved_low(Bytes16 a, Bytes16 b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
INSTRUCTRL_LANE Bytes16 interleaved_high(Bytes16 a, Bytes16 b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#else
INSTRUCTRL_LANE Bytes16 interleaved_low(Bytes16 a, Bytes16 b) {
  return __builtin_shuffle(a, b, Bytes16{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
}
INSTRUCTRL_LANE Bytes16 interleaved_high(Bytes16 a, Bytes16 b) {
  return __builtin_shuffle(a, b, Bytes16{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
}
#endif

// One of four equal rounds that transpose 16 x 16 bytes.
INSTRUCTRL_LANE void shuffle_round(const Bytes16* from, Bytes16* to) {
  for (int i = 0; i < 8; ++i) {
    to[2 * i] = interleaved_low(from[i], from[i + 8]);
    to[2 * i + 1] = interleaved_high(from[i], from[i + 8]);
  }
}

// `num_columns` bytes of each of `num_rows` rows, one behind the other, to `columns[c * kRankingGroup + row]`; 0 for rows
// that do not exist.
static void transpose_bytes(const bool* rows, int64_t num_rows, int64_t num_columns, uint8_t* columns) {
  if (num_columns < 16) {
    for (int64_t row = 0; row < kRankingGroup; ++row) {
      for (int64_t c = 0; c < num_columns; ++c) {
        columns[c * kRankingGroup + row] = row < num_rows ? rows[row * num_columns + c] : 0;
      }
    }
    return;
  }
  for (int64_t c = 0; c < num_columns; c += 16) {
    // The last 16 columns are done whole, some of them for the second time.
    const int64_t first = least(c, num_columns - 16);
    Bytes16 a[16] = {}, b[16];
    for (int64_t row = 0; row < num_rows; ++row) __builtin_memcpy(&a[row], rows + row * num_columns + first, 16);
    shuffle_round(a, b);
    shuffle_round(b, a);
    shuffle_round(a, b);
    shuffle_round(b, a);
    __builtin_memcpy(columns + first * kRankingGroup, a, sizeof a);
  }
}

template <class L>
struct RankingLanes {
  L loss;
  Count<L> num_pairs, num_correct;
};

// The prompts of one vector. Element (k) of the scores and (i, j) of the preferences are kRankingGroup apart.
template <class T>
INSTRUCTRL_LANE RankingLanes<Lanes<T>> rank_lanes(int64_t num_responses, const T* scores, const uint8_t* preferred,
                                                  typename Lanes<T>::Scalar* gradient) {
  using L = Lanes<T>;
  const L zero(0.0), one(1.0);
  const Count<L> uncounted(0), counted(1);
  const auto prefers = [&](int64_t i, int64_t j) {
    return load_mask<L>(reinterpret_cast<const bool*>(preferred + (i * num_responses + j) * kRankingGroup));
  };
  RankingLanes<L> sums{zero, uncounted, uncounted};
  L product = zero;
  int num_factors = 0;
  for (int64_t k = 0; k < num_responses; ++k) store(gradient + k * kRankingGroup, zero);
  for (int64_t i = 0; i < num_responses; ++i) {
    const L score = load(scores + i * kRankingGroup);
    L derivative = load(gradient + i * kRankingGroup), linear = zero;
    for (int64_t j = i + 1; j < num_responses; ++j) {
      const auto first_wins = prefers(i, j), second_wins = prefers(j, i);
      const L margin = select(first_wins | second_wins, score - load(scores + j * kRankingGroup), zero);
      const L small = exp(-abs(margin));
      // softplus(-x) = max(-x, 0) + log1p(exp(-|x|)), with x = margin where the first wins, -margin where the second.
      linear += select(first_wins, larger(-margin, zero), zero) + select(second_wins, larger(margin, zero), zero);
      product = fma(select(first_wins, small, zero), product + one, product);
      product = fma(select(second_wins, small, zero), product + one, product);
      // The probability that the better score loses, and that it wins.
      const L win = one / (one + small), loss = small * win;
      const auto first_ahead = margin > zero;
      const L change = select(first_wins, select(first_ahead, loss, win), zero) -
                       select(second_wins, select(first_ahead, win, loss), zero);
      derivative -= change;
      store(gradient + j * kRankingGroup, load(gradient + j * kRankingGroup) + change);
      sums.num_pairs += select(first_wins, counted, uncounted) + select(second_wins, counted, uncounted);
      sums.num_correct += select((first_wins & first_ahead) | (second_wins & (margin < zero)), counted, uncounted);
      if (++num_factors == kPairsPerLogarithm) {
        linear += log1p(product);
        product = zero;
        num_factors = 0;
      }
    }
    store(gradient + i * kRankingGroup, derivative);
    sums.loss += linear;
  }
  sums.loss += log1p(product);
  return sums;
}

// The scores of a group to `scores[k * kRankingGroup + prompt]`, 0 for prompts that do not exist.
template <class T>
INSTRUCTRL_LANE void load_scores(const RankingArgs& args, int64_t first, int64_t num_prompts, T* scores) {
  for (int64_t k = 0; k < args.num_responses; ++k) {
    const T* from = static_cast<const T*>(args.scores) + first * args.prompt_stride + k * args.response_stride;
    T* to = scores + k * kRankingGroup;
    for (int64_t p = 0; p < kRankingGroup; ++p) to[p] = p < num_prompts ? from[p * args.prompt_stride] : T{};
  }
}

// The gradient of a group back into rows.
template <class Scalar>
INSTRUCTRL_LANE void store_gradient(const RankingArgs& args, int64_t first, int64_t num_prompts,
                                    const Scalar* gradient) {
  const int64_t num_responses = args.num_responses;
  auto* to = static_cast<Scalar*>(args.gradient) + first * num_responses;
  for (int64_t p = 0; p < num_prompts; ++p) {
    for (int64_t k = 0; k < num_responses; ++k) to[p * num_responses + k] = gradient[k * kRankingGroup + p];
  }
}

template <class T>
static void pairwise_ranking_loss(const RankingArgs& args, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using Scalar = typename L::Scalar;
  const int64_t num_responses = args.num_responses;
  auto* gradient = static_cast<Scalar*>(args.scratch);
  auto* scores = reinterpret_cast<T*>(gradient + num_responses * kRankingGroup);
  auto* preferred = reinterpret_cast<uint8_t*>(scores + num_responses * kRankingGroup);
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * kRankingGroup, num_prompts = least(kRankingGroup, args.num_prompts - first);
    transpose_bytes(args.preferred + first * num_responses * num_responses, num_prompts, num_responses * num_responses,
                    preferred);
    load_scores(args, first, num_prompts, scores);
    for (int64_t p = 0; p < num_prompts; p += L::kWidth) {
      const RankingLanes<L> sums = rank_lanes<T>(num_responses, scores + p, preferred + p, gradient + p);
      const int64_t n = least(L::kWidth, num_prompts - p);
      store_first(static_cast<Scalar*>(args.loss_sum) + first + p, sums.loss, n);
      for (int i = 0; i < n; ++i) {
        args.num_pairs[first + p + i] = count_lane(sums.num_pairs, i);
        args.num_correct[first + p + i] = count_lane(sums.num_correct, i);
      }
    }
    store_gradient(args, first, num_prompts, gradient);
  }
}
