// The pairwise ranking loss on the CPU; the kernel is in kernels/ranking.h.
#include <tuple>
#include <vector>

#include "cpu/run.h"
#include "schemas.h"

namespace instructrl {
namespace {

// scores [P, K], preferred [P, K, K] -> loss_sum [P], num_pairs [P], num_correct [P], gradient [P, K].
std::tuple<Tensor, Tensor, Tensor, Tensor> pairwise_ranking_loss(const Tensor& scores, const Tensor& preferred) {
  const int64_t num_prompts = scores.size(0), num_responses = scores.size(1);
  const ScalarType dtype = accumulation_dtype(scores);
  const Tensor pairs = dense(preferred);
  Tensor loss_sum = empty(scores, {num_prompts}, dtype);
  Tensor num_pairs = empty(scores, {num_prompts}, ScalarType::Long);
  Tensor num_correct = empty(scores, {num_prompts}, ScalarType::Long);
  Tensor gradient = empty(scores, {num_prompts, num_responses}, dtype);
  const RankingArgs args{
      scores.data_ptr(),        scores.stride(0),      scores.stride(1),
      data<bool>(pairs),        num_prompts,           num_responses,
      nullptr,                  loss_sum.data_ptr(),   mutable_data<int64_t>(num_pairs),
      mutable_data<int64_t>(num_correct), gradient.data_ptr(),
  };
  const Kernel<RankingArgs> kernel = cpu_kernels().pairwise_ranking_loss[dtype_of(scores)];
  const int64_t pairs_per_group = kRankingGroup * num_responses * num_responses;
  run_items(num_blocks(num_prompts, kRankingGroup), grain(pairs_per_group), [&](int64_t begin, int64_t end) {
    RankingArgs own = args;
    std::vector<double> scratch(kRankingGroup * num_responses * (num_responses + 16) / sizeof(double));
    own.scratch = scratch.data();
    kernel(own, begin, end);
  });
  return {loss_sum, num_pairs, num_correct, gradient};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(instructrl, CPU, m) {
  m.impl(INSTRUCTRL_PREFIX "pairwise_ranking_loss", TORCH_BOX(&pairwise_ranking_loss));
}

}  // namespace instructrl
