// Paired comparisons with margins, weights, label smoothing and ties, and the Plackett-Luce loss, in one launch each.
//
// A group of 8, 16 or 32 lanes per prompt, whatever K is: lane l has the responses l, l + group, ... one after the other,
// and reads what it needs of all partners, the same address in all lanes of a group. So each pair is computed by both of
// its ends, no gradient is summed across lanes, and a number that serves many pairs is read with a stride of 0.
//
// Bytes: K scores, K^2 flags of each matrix and K^2 numbers once per side (the second time from L1/L2), 4 K of gradient
// and 28 per prompt written. A row's loss is a float, a lane's rows are added up in double, then by a fixed tree of lanes.
#include <type_traits>

#include "cuda/block.h"

namespace instructrl {
namespace {

constexpr int kThreads = 128;

// What comes in and goes out of either kernel.
template <class T>
struct Prompts {
  const T* scores;
  int64_t prompt_stride;
  int64_t response_stride;
  int64_t num_prompts;
  int64_t num_responses;
  float* loss_sum;
  int64_t* num_pairs;
  int64_t* num_correct;
  float* gradient;

  __device__ __forceinline__ float score(int64_t prompt, int64_t k) const {
    return static_cast<float>(scores[prompt * prompt_stride + k * response_stride]);
  }
};

// A number for each ordered pair; nullptr: none.
struct PairNumbers {
  const float* data;
  int64_t prompt_stride;
  int64_t winner_stride;
  int64_t loser_stride;

  __device__ __forceinline__ float at(int64_t prompt, int64_t i, int64_t j, float otherwise) const {
    return data == nullptr ? otherwise : data[prompt * prompt_stride + i * winner_stride + j * loser_stride];
  }
};

struct Comparisons {
  const bool* preferred;
  const bool* tied;  // nullptr: none.
  PairNumbers margins;
  PairNumbers weights;
  float margin;
  float label_smoothing;
  float davidson;
  float tie_weight;
  float half_tie_constant;
  int64_t* num_ties;
};

template <class A>
__device__ __forceinline__ A group_sum(A x, int group) {
  for (int offset = group / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullWarp, x, offset, group);
  return x;
}

// The pair (i, j) as i has it: what it adds to the loss, and the derivative of that by the difference of the scores.
__device__ __forceinline__ LossTerm<float> compared(const Comparisons& c, int64_t prompt, int64_t i, int64_t j,
                                                    float difference, bool won, bool tie) {
  if (!(won || tie)) return {0.0f, 0.0f};
  const float x = difference - c.margin - c.margins.at(prompt, i, j, 0.0f);
  const float weight = c.weights.at(prompt, i, j, 1.0f);
  const float strength = won ? weight : c.tie_weight * weight;
  const LossTerm<float> term = comparison_term(x, c.davidson);
  const float loss = strength * (term.loss + c.label_smoothing * x);
  return {tie ? loss - c.half_tie_constant * weight : loss, strength * (term.derivative + c.label_smoothing)};
}

template <class T, int kGroup>
__global__ void __launch_bounds__(kThreads) comparison_kernel(const Prompts<T> p, const Comparisons c) {
  const int lane = static_cast<int>(threadIdx.x) % kGroup;
  const int64_t prompt = static_cast<int64_t>(blockIdx.x) * (kThreads / kGroup) + threadIdx.x / kGroup;
  const bool in_range = prompt < p.num_prompts;  // A group without a prompt still takes part in its warp's shuffles.
  const int64_t num_responses = in_range ? p.num_responses : 0, matrix = prompt * p.num_responses * p.num_responses;
  double loss = 0.0;
  int64_t num_pairs = 0, num_correct = 0, num_ties = 0;
  for (int64_t i = lane; i < num_responses; i += kGroup) {
    const float mine = p.score(prompt, i);
    float row_loss = 0.0f, gradient = 0.0f;
    for (int64_t j = 0; j < num_responses; ++j) {
      const int64_t forth = matrix + i * num_responses + j, back = matrix + j * num_responses + i;
      const bool won = c.preferred[forth], lost = c.preferred[back];
      const bool tie = c.tied != nullptr && (c.tied[forth] || c.tied[back]);
      // Scores are looked at only where something is preferred: an absent response may have any.
      if (i == j || !(won || lost || tie)) continue;
      const float difference = mine - p.score(prompt, j);
      const LossTerm<float> own = compared(c, prompt, i, j, difference, won, tie);
      row_loss += own.loss;
      gradient += own.derivative - compared(c, prompt, j, i, -difference, lost, tie).derivative;
      num_pairs += won;
      num_correct += won && difference > 0.0f;
      num_ties += tie && i < j;
    }
    loss += row_loss;
    p.gradient[prompt * num_responses + i] = gradient;
  }
  loss = group_sum(loss, kGroup);
  num_pairs = group_sum(num_pairs, kGroup);
  num_correct = group_sum(num_correct, kGroup);
  num_ties = group_sum(num_ties, kGroup);
  if (in_range && lane == 0) {
    p.loss_sum[prompt] = static_cast<float>(loss);
    p.num_pairs[prompt] = num_pairs;
    p.num_correct[prompt] = num_correct;
    c.num_ties[prompt] = num_ties;
  }
}

// Of the responses that i was chosen from: the largest score, one over the sum of exponentials of differences to it, and
// the probability that another one is chosen.
struct Choice {
  float top;
  float share;
  float missed;
};

// First each lane's choices, kept in `choices` [P, K], then the gradient of each lane's scores from all of them.
template <class T, int kGroup>
__global__ void __launch_bounds__(kThreads)
    choice_kernel(const Prompts<T> p, const int64_t* const all_ranks, Choice* const all_choices) {
  const int lane = static_cast<int>(threadIdx.x) % kGroup;
  const int64_t prompt = static_cast<int64_t>(blockIdx.x) * (kThreads / kGroup) + threadIdx.x / kGroup;
  const bool in_range = prompt < p.num_prompts;
  const int64_t num_responses = in_range ? p.num_responses : 0;
  const int64_t* const ranks = all_ranks + prompt * p.num_responses;
  Choice* const choices = all_choices + prompt * p.num_responses;
  double loss = 0.0;
  int64_t num_choices = 0, num_correct = 0;
  for (int64_t i = lane; i < num_responses; i += kGroup) {
    const int64_t rank = ranks[i];
    bool chosen = false;
    float best_other = -INFINITY;
    for (int64_t j = 0; j < num_responses; ++j) {
      if (rank < 0 || j == i || ranks[j] < rank) continue;
      chosen = true;
      best_other = maximum(best_other, p.score(prompt, j));
    }
    choices[i] = {0.0f, 0.0f, 0.0f};
    if (!chosen) continue;
    const float mine = p.score(prompt, i), top = maximum(best_other, mine), own = exp(mine - top);
    float others = 0.0f;
    for (int64_t j = 0; j < num_responses; ++j) {
      if (j != i && ranks[j] >= rank) others += exp(p.score(prompt, j) - top);
    }
    loss += (top - mine) + log1p(mine == top ? others : (own + others) - 1.0f);
    const float share = 1.0f / (own + others);
    choices[i] = {top, share, others * share};
    num_choices += 1;
    num_correct += mine > best_other;
  }
  __syncwarp(kFullWarp);
  for (int64_t k = lane; k < num_responses; k += kGroup) {
    const int64_t rank = ranks[k];
    float gradient = 0.0f;
    if (rank >= 0) {
      const float mine = p.score(prompt, k);
      for (int64_t i = 0; i < num_responses; ++i) {
        if (i == k || ranks[i] < 0 || ranks[i] > rank) continue;
        gradient += exp(mine - choices[i].top) * choices[i].share;
      }
      gradient -= choices[k].missed;
    }
    p.gradient[prompt * num_responses + k] = gradient;
  }
  loss = group_sum(loss, kGroup);
  num_choices = group_sum(num_choices, kGroup);
  num_correct = group_sum(num_correct, kGroup);
  if (in_range && lane == 0) {
    p.loss_sum[prompt] = static_cast<float>(loss);
    p.num_pairs[prompt] = num_choices;
    p.num_correct[prompt] = num_correct;
  }
}

// launch(width of a group as a constant), the narrowest that holds K responses, at most a warp.
template <class Launch>
void with_group(int64_t num_responses, const Launch& launch) {
  if (num_responses <= 8) {
    launch(std::integral_constant<int, 8>{});
  } else if (num_responses <= 16) {
    launch(std::integral_constant<int, 16>{});
  } else {
    launch(std::integral_constant<int, 32>{});
  }
}

struct Results {
  Tensor loss_sum;
  Tensor num_pairs;
  Tensor num_correct;
  Tensor gradient;

  explicit Results(const Tensor& scores)
      : loss_sum(empty(scores, {scores.size(0)}, ScalarType::Float)),
        num_pairs(empty(scores, {scores.size(0)}, ScalarType::Long)),
        num_correct(empty(scores, {scores.size(0)}, ScalarType::Long)),
        gradient(empty(scores, {scores.size(0), scores.size(1)}, ScalarType::Float)) {}

  template <class T>
  Prompts<T> prompts(const Tensor& scores) const {
    return {data<T>(scores),  scores.stride(0),
            scores.stride(1), scores.size(0),
            scores.size(1),   mutable_data<float>(loss_sum),
            mutable_data<int64_t>(num_pairs), mutable_data<int64_t>(num_correct),
            mutable_data<float>(gradient)};
  }
};

PairNumbers pair_numbers(const std::optional<Tensor>& x) {
  if (!x) return {nullptr, 0, 0, 0};
  return {data<float>(*x), x->stride(0), x->stride(1), x->stride(2)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> paired_comparison_loss(
    Tensor scores, Tensor preferred, std::optional<Tensor> tied, std::optional<Tensor> margins,
    std::optional<Tensor> weights, double margin, double label_smoothing, double davidson, double tie_weight,
    double tie_constant) {
  const OnDevice on(scores);
  const Tensor pairs = dense(preferred);
  const std::optional<Tensor> ties = dense(tied);
  const Results results(scores);
  const Tensor num_ties = empty(scores, {scores.size(0)}, ScalarType::Long);
  const Comparisons comparisons{data<bool>(pairs),
                                data<bool>(ties),
                                pair_numbers(margins),
                                pair_numbers(weights),
                                static_cast<float>(margin),
                                static_cast<float>(label_smoothing),
                                static_cast<float>(davidson),
                                static_cast<float>(tie_weight),
                                static_cast<float>(0.5 * tie_constant),
                                mutable_data<int64_t>(num_ties)};
  if (scores.size(0) > 0) {
    dispatch_floating(scores.scalar_type(), "scores", [&](auto tag) {
      using T = typename decltype(tag)::type;
      with_group(scores.size(1), [&](auto group) {
        constexpr int kGroup = decltype(group)::value;
        INSTRUCTRL_LAUNCH((comparison_kernel<T, kGroup>), ceil_div(scores.size(0), kThreads / kGroup), kThreads, 0,
                          on.stream(), results.template prompts<T>(scores), comparisons);
      });
    });
  }
  return {results.loss_sum, results.num_pairs, results.num_correct, num_ties, results.gradient};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> plackett_luce_loss(Tensor scores, Tensor ranks) {
  const OnDevice on(scores);
  const Tensor order = dense(ranks);
  const Results results(scores);
  const Tensor choices = empty(scores, {scores.size(0), scores.size(1), 3}, ScalarType::Float);
  if (scores.size(0) > 0) {
    dispatch_floating(scores.scalar_type(), "scores", [&](auto tag) {
      using T = typename decltype(tag)::type;
      with_group(scores.size(1), [&](auto group) {
        constexpr int kGroup = decltype(group)::value;
        INSTRUCTRL_LAUNCH((choice_kernel<T, kGroup>), ceil_div(scores.size(0), kThreads / kGroup), kThreads, 0,
                          on.stream(), results.template prompts<T>(scores), data<int64_t>(order),
                          mutable_data<Choice>(choices));
      });
    });
  }
  return {results.loss_sum, results.num_pairs, results.num_correct, results.gradient};
}

}  // namespace
}  // namespace instructrl

STABLE_TORCH_LIBRARY_IMPL(instructrl, INSTRUCTRL_KEY, m) {
  INSTRUCTRL_REGISTER(m, "paired_comparison_loss", instructrl::paired_comparison_loss);
  INSTRUCTRL_REGISTER(m, "plackett_luce_loss", instructrl::plackett_luce_loss);
}
