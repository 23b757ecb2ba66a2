// Generalised advantages and whitening on the CPU; the kernels are in kernels/advantages.h and kernels/whitening.h.
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/run.h"
#include "formulas.h"
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

void run_sequences(Kernel<AdvantagesArgs> kernel, const AdvantagesArgs& args, const Sequences& sequences) {
  const bool packed = args.offsets != nullptr;
  const int64_t length = packed ? sequences.length / std::max<int64_t>(sequences.count, 1) : sequences.length;
  run_items(kernel, args, sequences.count, grain(length));
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
  run_sequences(cpu_kernels().generalized_advantages[dtype_of(rewards)], args, sequences);
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
  Tensor rewards = empty_shaped(logprobs, dtype), stats = empty(logprobs, {4}, ScalarType::Double);
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
  run_sequences(cpu_kernels().ppo_advantages[dtype_of(logprobs)], args, sequences);
  double* total = mutable_data<double>(stats);
  std::fill_n(total, 4, 0.0);
  for (const AdvantageSums& sequence : sums) {
    total[0] += sequence.sum;
    total[1] += sequence.sum_of_squares;
    total[2] += sequence.count;
    total[3] += sequence.kl;
  }
  return {advantages, returns, rewards, stats};
}

// The moments of two sets of numbers together.
Moments joined(const Moments& a, const Moments& b) {
  const double count = a.count + b.count, distance = b.mean - a.mean;
  if (b.count == 0 || a.count == 0) return a.count == 0 ? b : a;
  const double share = b.count / count;
  return {count, a.mean + distance * share, a.squared_deviations + b.squared_deviations + distance * distance * a.count * share};
}

Whitening own_whitening(WhitenArgs args, Kernel<WhitenArgs> kernel) {
  std::vector<Moments> blocks(num_blocks(args.num_elements, kWhitenBlock));
  args.moments = blocks.data();
  run_items(kernel, args, static_cast<int64_t>(blocks.size()), grain(kWhitenBlock));
  Moments total{0, 0, 0};
  for (const Moments& block : blocks) total = joined(total, block);
  return whitening(total.mean, total.squared_deviations, total.count);
}

Whitening given_whitening(const Tensor& stats) {
  const bool in_double = stats.scalar_type() == ScalarType::Double;
  const Tensor sums = dense(in_double ? stats : torch::stable::to(stats, ScalarType::Double));
  const double* values = data<double>(sums);
  return whitening_from_sums(values[0], values[1], values[2]);
}

Tensor masked_whiten(const Tensor& x, const Tensor& mask, std::optional<Tensor> stats) {
  const Tensor dense_x = dense(x), dense_mask = dense(mask);
  const Dtype dtype = dtype_of(x);
  Tensor whitened = empty_shaped(x, accumulation_dtype(x));
  WhitenArgs args{dense_x.data_ptr(), data<bool>(dense_mask), x.numel(), nullptr, 0.0, 0.0, whitened.data_ptr()};
  const Whitening whitening = stats ? given_whitening(*stats) : own_whitening(args, cpu_kernels().masked_moments[dtype]);
  args.mean = whitening.mean;
  args.scale = whitening.scale;
  run_items(cpu_kernels().masked_whiten[dtype], args, num_blocks(x.numel(), kWhitenBlock), grain(kWhitenBlock));
  return whitened;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(instructrl, CPU, m) {
  m.impl(INSTRUCTRL_PREFIX "generalized_advantages", TORCH_BOX(&generalized_advantages));
  m.impl(INSTRUCTRL_PREFIX "ppo_advantages", TORCH_BOX(&ppo_advantages));
  m.impl(INSTRUCTRL_PREFIX "masked_whiten", TORCH_BOX(&masked_whiten));
}

}  // namespace instructrl
