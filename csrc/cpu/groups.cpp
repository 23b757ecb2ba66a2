// Advantages of scores within their group, on the CPU: a score for each response is too little for threads or vectors.
#include <cmath>
#include <vector>

#include "cpu/groups.h"
#include "formulas.h"
#include "schemas.h"

namespace instructrl {
namespace {

// Sums in the order of scores, and deviations from the mean itself.
struct ScoreGroup {
  double count = 0.0;
  double mean = 0.0;
  double squared_deviations = 0.0;
};

template <class T>
void write(const std::vector<double>& advantages, Tensor& to) {
  std::copy(advantages.begin(), advantages.end(), mutable_data<T>(to));
}

Tensor group_advantages(const Tensor& scores, const Tensor& groups, int64_t num_groups, int64_t baseline, bool scaled,
                        int64_t ddof, double epsilon) {
  const bool in_double = scores.scalar_type() == ScalarType::Double;
  const Tensor wide = dense(in_double ? scores : torch::stable::to(scores, ScalarType::Double));
  const double* x = data<double>(wide);
  const std::vector<int64_t> ids = ids_of(groups);
  const auto num_scores = static_cast<int64_t>(ids.size());
  std::vector<ScoreGroup> found(num_groups);
  const auto each = [&](auto&& function) {
    for (int64_t i = 0; i < num_scores; ++i) {
      if (is_group(ids[i], num_groups)) function(i, found[ids[i]]);
    }
  };
  each([&](int64_t i, ScoreGroup& group) {
    group.count += 1.0;
    group.mean += x[i];
  });
  for (ScoreGroup& group : found) group.mean /= group.count > 0 ? group.count : 1.0;
  each([&](int64_t i, ScoreGroup& group) { group.squared_deviations += (x[i] - group.mean) * (x[i] - group.mean); });
  const GroupRule rule = {static_cast<Baseline>(baseline), scaled, ddof, epsilon};
  std::vector<double> advantages(num_scores, NAN);
  each([&](int64_t i, ScoreGroup& group) {
    advantages[i] = group_advantage(x[i], group.mean, group.squared_deviations, group.count, rule);
  });
  Tensor result = empty_shaped(scores, accumulation_dtype(scores));
  in_double ? write<double>(advantages, result) : write<float>(advantages, result);
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(instructrl, CPU, m) {
  m.impl(INSTRUCTRL_PREFIX "group_advantages", TORCH_BOX(&group_advantages));
}

}  // namespace instructrl
