// The ranking losses on the CPU; the kernels are in kernels/ranking.h and kernels/ranking_models.h.
#include <tuple>
#include <vector>

#include "cpu/run.h"
#include "schemas.h"

namespace instructrl {
namespace {

// loss_sum [P], two counts [P] and gradient [P, K].
struct Results {
  Tensor loss_sum;
  Tensor num_pairs;
  Tensor num_correct;
  Tensor gradient;

  explicit Results(const Tensor& scores)
      : loss_sum(empty(scores, {scores.size(0)}, accumulation_dtype(scores))),
        num_pairs(empty(scores, {scores.size(0)}, ScalarType::Long)),
        num_correct(empty(scores, {scores.size(0)}, ScalarType::Long)),
        gradient(empty(scores, {scores.size(0), scores.size(1)}, accumulation_dtype(scores))) {}

  RankingArgs args(const Tensor& scores, const bool* preferred) const {
    return {
        scores.data_ptr(),
        scores.stride(0),
        scores.stride(1),
        preferred,
        scores.size(0),
        scores.size(1),
        nullptr,
        loss_sum.data_ptr(),
        mutable_data<int64_t>(num_pairs),
        mutable_data<int64_t>(num_correct),
        gradient.data_ptr(),
    };
  }
};

RankingArgs& ranking_of(RankingArgs& args) { return args; }
template <class Args>
RankingArgs& ranking_of(Args& args) {
  return args.ranking;
}

// A thread's groups of prompts with scratch of their own; `bytes_per_response`: for each prompt of a group.
template <class Args>
void run_groups(Kernel<Args> kernel, Args args, int64_t bytes_per_response) {
  const int64_t num_prompts = ranking_of(args).num_prompts, num_responses = ranking_of(args).num_responses;
  const int64_t pairs_per_group = kRankingGroup * num_responses * num_responses;
  run_items(num_blocks(num_prompts, kRankingGroup), grain(pairs_per_group), [&](int64_t begin, int64_t end) {
    Args own = args;
    std::vector<double> scratch(kRankingGroup * num_responses * bytes_per_response / sizeof(double));
    ranking_of(own).scratch = scratch.data();
    kernel(own, begin, end);
  });
}

// scores [P, K], preferred [P, K, K] -> loss_sum [P], num_pairs [P], num_correct [P], gradient [P, K].
std::tuple<Tensor, Tensor, Tensor, Tensor> pairwise_ranking_loss(const Tensor& scores, const Tensor& preferred) {
  const Tensor pairs = dense(preferred);
  const Results results(scores);
  const Kernel<RankingArgs> kernel = cpu_kernels().pairwise_ranking_loss[dtype_of(scores)];
  run_groups(kernel, results.args(scores, data<bool>(pairs)), scores.size(1) + 16);
  return {results.loss_sum, results.num_pairs, results.num_correct, results.gradient};
}

PairNumbers pair_numbers(const std::optional<Tensor>& x) {
  if (!x) return {nullptr, 0, 0, 0};
  return {x->data_ptr(), x->stride(0), x->stride(1), x->stride(2)};
}

// margins, weights [P, K, K] in the dtype of the results, with any strides.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> paired_comparison_loss(
    const Tensor& scores, const Tensor& preferred, const std::optional<Tensor>& tied,
    const std::optional<Tensor>& margins, const std::optional<Tensor>& weights, double margin, double label_smoothing,
    double davidson, double tie_weight, double tie_constant) {
  const Tensor pairs = dense(preferred);
  const std::optional<Tensor> ties = dense(tied);
  const Results results(scores);
  const Tensor num_ties = empty(scores, {scores.size(0)}, ScalarType::Long);
  const ComparisonArgs args{
      results.args(scores, data<bool>(pairs)),
      data<bool>(ties),
      pair_numbers(margins),
      pair_numbers(weights),
      {margin, label_smoothing, davidson, tie_weight, tie_constant},
      mutable_data<int64_t>(num_ties),
  };
  const Kernel<ComparisonArgs> kernel = cpu_kernels().paired_comparison_loss[dtype_of(scores)];
  run_groups(kernel, args, 2 * scores.size(1) + 16);
  return {results.loss_sum, results.num_pairs, results.num_correct, num_ties, results.gradient};
}

// ranks [P, K] int64.
std::tuple<Tensor, Tensor, Tensor, Tensor> plackett_luce_loss(const Tensor& scores, const Tensor& ranks) {
  const Tensor order = dense(ranks);
  const Results results(scores);
  const PlackettLuceArgs args{results.args(scores, nullptr), data<int64_t>(order)};
  const Kernel<PlackettLuceArgs> kernel = cpu_kernels().plackett_luce_loss[dtype_of(scores)];
  run_groups(kernel, args, scores.size(1) + 24);
  return {results.loss_sum, results.num_pairs, results.num_correct, results.gradient};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(instructrl, CPU, m) {
  m.impl(INSTRUCTRL_PREFIX "pairwise_ranking_loss", TORCH_BOX(&pairwise_ranking_loss));
  m.impl(INSTRUCTRL_PREFIX "paired_comparison_loss", TORCH_BOX(&paired_comparison_loss));
  m.impl(INSTRUCTRL_PREFIX "plackett_luce_loss", TORCH_BOX(&plackett_luce_loss));
}

}  // namespace instructrl
