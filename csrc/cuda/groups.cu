// Advantages of scores within their group: a block a group, which goes through all scores three times, for the mean, the
// deviations and the results. The scores of a batch stay in the first-level cache: a few thousand times 12 bytes. Sums are
// double and in one order.
#include <algorithm>

#include "cuda/block.h"
#include "cuda/group_ids.h"

namespace instructrl {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxGroupBlocks = 65536;  // Beyond that blocks take several groups.

template <class T>
__global__ void __launch_bounds__(kThreads)
    group_advantages_kernel(const T* scores, int64_t num_scores, GroupIds groups, GroupRule rule, float* advantages) {
  __shared__ double shared[kThreads / kWarpSize];
  const auto score = [&](int64_t i) { return static_cast<double>(static_cast<float>(scores[i])); };
  for (int64_t group = blockIdx.x; group < groups.num_groups; group += gridDim.x) {
    double count = 0.0, sum = 0.0, deviations = 0.0;
    for (int64_t i = threadIdx.x; i < num_scores; i += kThreads) {
      if (groups[i] != group) continue;
      count += 1.0;
      sum += score(i);
    }
    count = block_sum<kThreads>(count, shared);
    const double mean = block_sum<kThreads>(sum, shared) / denominator(count);
    for (int64_t i = threadIdx.x; i < num_scores; i += kThreads) {
      if (groups[i] == group) deviations += (score(i) - mean) * (score(i) - mean);
    }
    deviations = block_sum<kThreads>(deviations, shared);
    for (int64_t i = threadIdx.x; i < num_scores; i += kThreads) {
      const int64_t own = groups[i];
      if (own == group) advantages[i] = static_cast<float>(group_advantage(score(i), mean, deviations, count, rule));
      if (group == 0 && (own < 0 || own >= groups.num_groups)) advantages[i] = NAN;
    }
  }
}

Tensor group_advantages(const Tensor& scores, const Tensor& groups, int64_t num_groups, int64_t baseline, bool scaled,
                        int64_t ddof, double epsilon) {
  const OnDevice on(scores);
  Tensor result = empty_shaped(scores, ScalarType::Float);
  if (scores.numel() == 0) return result;
  const Tensor dense_scores = dense(scores), dense_groups = dense(groups);
  const GroupRule rule = {static_cast<Baseline>(baseline), scaled, ddof, epsilon};
  dispatch_floating(scores.scalar_type(), "scores", [&](auto tag) {
    using T = typename decltype(tag)::type;
    INSTRUCTRL_LAUNCH(group_advantages_kernel<T>, std::min(num_groups, kMaxGroupBlocks), kThreads, 0, on.stream(),
                      data<T>(dense_scores), scores.numel(), group_ids(dense_groups, num_groups), rule,
                      mutable_data<float>(result));
  });
  return result;
}

}  // namespace
}  // namespace instructrl

STABLE_TORCH_LIBRARY_IMPL(instructrl, INSTRUCTRL_KEY, m) {
  INSTRUCTRL_REGISTER(m, "group_advantages", instructrl::group_advantages);
}
