// Generalised advantages on the CPU; the kernels are in kernels/advantages.h and kernels/general_advantages.h.
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/run.h"
#include "schemas.h"

namespace instructrl {
namespace {

// The sequences of [B, T] rows, or of packed [N] tokens with `cu_seqlens`.
struct Sequences {
  int64_t count;
  int64_t length;                // Of a row, or of all packed tokens.
  std::vector<int64_t> offsets;  // Empty for rows.
};

Sequences sequences_of(const Tensor& tokens, const std::optional<Tensor>& cu_seqlens) {
  if (!cu_seqlens) return {tokens.size(0), tokens.size(1), {}};
  const Tensor given = dense(*cu_seqlens);
  const int64_t num_offsets = given.numel();
  std::vector<int64_t> offsets(num_offsets);
  if (given.scalar_type() == ScalarType::Int) {
    std::copy_n(data<int32_t>(given), num_offsets, offsets.begin());
  } else {
    STD_TORCH_CHECK(given.scalar_type() == ScalarType::Long, "cu_seqlens: expected int32 or int64");
    std::copy_n(data<int64_t>(given), num_offsets, offsets.begin());
  }
  return {num_offsets - 1, tokens.size(0), std::move(offsets)};
}

AdvantagesArgs arguments(const Sequences& sequences, const Tensor& values, const Tensor& mask, double gamma, double lam) {
  AdvantagesArgs args{};
  args.values = values.data_ptr();
  args.mask = data<bool>(mask);
  args.offsets = sequences.offsets.empty() ? nullptr : sequences.offsets.data();
  args.length = sequences.length;
  args.gamma = gamma;
  args.lam = lam;
  return args;
}

template <class Args>
void run_sequences(Kernel<Args> kernel, const Args& args, const AdvantagesArgs& plain, const Sequences& sequences) {
  const bool packed = plain.offsets != nullptr;
  const int64_t length = packed ? sequences.length / std::max<int64_t>(sequences.count, 1) : sequences.length;
  run_items(kernel, args, sequences.count, grain(length));
}

// [4] float64: the sums of all sequences, in their order.
Tensor added_up(const Tensor& like, const std::vector<AdvantageSums>& sums) {
  Tensor stats = empty(like, {4}, ScalarType::Double);
  double* total = mutable_data<double>(stats);
  std::fill_n(total, 4, 0.0);
  for (const AdvantageSums& sequence : sums) {
    total[0] += sequence.sum;
    total[1] += sequence.sum_of_squares;
    total[2] += sequence.count;
    total[3] += sequence.kl;
  }
  return stats;
}

std::tuple<Tensor, Tensor> generalized_advantages(const Tensor& rewards, const Tensor& values, const Tensor& mask,
                                                  double gamma, double lam, std::optional<Tensor> cu_seqlens) {
  const Tensor dense_rewards = dense(rewards), dense_values = dense(values), dense_mask = dense(mask);
  const Sequences sequences = sequences_of(rewards, cu_seqlens);
  Tensor advantages = empty_shaped(rewards, accumulation_dtype(rewards));
  Tensor returns = empty_shaped(rewards, accumulation_dtype(rewards));
  AdvantagesArgs args = arguments(sequences, dense_values, dense_mask, gamma, lam);
  args.rewards = dense_rewards.data_ptr();
  args.advantages = advantages.data_ptr();
  args.returns = returns.data_ptr();
  run_sequences(cpu_kernels().generalized_advantages[dtype_of(rewards)], args, args, sequences);
  return {advantages, returns};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ppo_advantages(const Tensor& logprobs, const Tensor& ref_logprobs,
                                                          const Tensor& values, const Tensor& scores, const Tensor& mask,
                                                          double kl_coef, double gamma, double lam,
                                                          std::optional<Tensor> cu_seqlens) {
  const ScalarType dtype = accumulation_dtype(logprobs);
  const Tensor dense_logprobs = dense(logprobs), dense_ref = dense(ref_logprobs), dense_values = dense(values);
  const Tensor dense_mask = dense(mask);
  const Tensor dense_scores = dense(scores.scalar_type() == dtype ? scores : torch::stable::to(scores, dtype));
  const Sequences sequences = sequences_of(logprobs, cu_seqlens);
  Tensor advantages = empty_shaped(logprobs, dtype), returns = empty_shaped(logprobs, dtype);
  Tensor rewards = empty_shaped(logprobs, dtype);
  std::vector<AdvantageSums> sums(sequences.count);
  AdvantagesArgs args = arguments(sequences, dense_values, dense_mask, gamma, lam);
  args.logprobs = dense_logprobs.data_ptr();
  args.ref_logprobs = dense_ref.data_ptr();
  args.scores = dense_scores.data_ptr();
  args.minus_kl_coef = -kl_coef;
  args.advantages = advantages.data_ptr();
  args.returns = returns.data_ptr();
  args.shaped_rewards = rewards.data_ptr();
  args.sums = sums.data();
  run_sequences(cpu_kernels().ppo_advantages[dtype_of(logprobs)], args, args, sequences);
  return {advantages, returns, rewards, added_up(logprobs, sums)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> general_advantages(
    const Tensor& values, const Tensor& mask, std::optional<Tensor> rewards, std::optional<Tensor> logprobs,
    std::optional<Tensor> ref_logprobs, std::optional<Tensor> scores, std::optional<Tensor> dones,
    std::optional<Tensor> next_values, std::optional<Tensor> bootstrap, std::optional<Tensor> rates,
    std::optional<Tensor> cu_seqlens, double kl_coef, int64_t kl_estimator, double kl_input_clamp,
    double kl_output_clamp, double gamma, double lam, double value_lam, bool count_gaps, bool score_behind) {
  const ScalarType dtype = accumulation_dtype(values);
  const Tensor dense_values = dense(values), dense_mask = dense(mask);
  rewards = dense(rewards), logprobs = dense(logprobs), ref_logprobs = dense(ref_logprobs), scores = dense(scores);
  dones = dense(dones), next_values = dense(next_values), bootstrap = dense(bootstrap), rates = dense(rates);
  const Sequences sequences = sequences_of(values, cu_seqlens);
  Tensor advantages = empty_shaped(values, dtype), returns = empty_shaped(values, dtype);
  Tensor made = rewards ? empty(values, {0}, dtype) : empty_shaped(values, dtype);
  std::vector<AdvantageSums> sums(sequences.count);
  GeneralAdvantagesArgs args{};
  args.plain = arguments(sequences, dense_values, dense_mask, gamma, lam);
  args.plain.rewards = data<char>(rewards);
  args.plain.logprobs = data<char>(logprobs);
  args.plain.ref_logprobs = data<char>(ref_logprobs);
  args.plain.scores = data<char>(scores);
  args.plain.minus_kl_coef = -kl_coef;
  args.plain.advantages = advantages.data_ptr();
  args.plain.returns = returns.data_ptr();
  args.plain.shaped_rewards = made.data_ptr();
  args.plain.sums = sums.data();
  args.dones = data<bool>(dones);
  args.next_values = data<char>(next_values);
  args.bootstrap = data<char>(bootstrap);
  args.rates = data<double>(rates);
  args.value_lam = value_lam;
  args.kl_estimator = kl_estimator;
  args.kl_input_clamp = kl_input_clamp;
  args.kl_output_clamp = kl_output_clamp;
  args.count_gaps = count_gaps;
  args.score_behind = score_behind;
  run_sequences(cpu_kernels().general_advantages[dtype_of(values)], args, args.plain, sequences);
  return {advantages, returns, made, added_up(values, sums)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(instructrl, CPU, m) {
  m.impl(INSTRUCTRL_PREFIX "generalized_advantages", TORCH_BOX(&generalized_advantages));
  m.impl(INSTRUCTRL_PREFIX "ppo_advantages", TORCH_BOX(&ppo_advantages));
  m.impl(INSTRUCTRL_PREFIX "general_advantages", TORCH_BOX(&general_advantages));
}

}  // namespace instructrl
