// PPO's losses on the CPU; the kernels are in kernels/ppo.h.
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/run.h"
#include "formulas.h"
#include "schemas.h"

namespace instructrl {
namespace {

// NaN where one of the two is.
double larger_ratio(double a, double b) { return a > b || std::isnan(a) ? a : b; }

PpoSums sums_of(Kernel<PpoArgs> kernel, PpoArgs args) {
  std::vector<PpoSums> blocks(num_blocks(args.num_tokens, kPpoBlockTokens));
  args.blocks = blocks.data();
  run_items(kernel, args, static_cast<int64_t>(blocks.size()), grain(kPpoBlockTokens));
  PpoSums total{};
  for (const PpoSums& block : blocks) {
    total.policy_loss += block.policy_loss;
    total.value_loss += block.value_loss;
    total.kl += block.kl;
    total.num_tokens += block.num_tokens;
    total.num_policy_clipped += block.num_policy_clipped;
    total.approx_kl += block.approx_kl;
    total.ratio += block.ratio;
    total.num_value_clipped += block.num_value_clipped;
    total.squared_error += block.squared_error;
    total.ratio_max = larger_ratio(total.ratio_max, block.ratio_max);
    total.kl_loss += block.kl_loss;
    total.num_dual_clipped += block.num_dual_clipped;
  }
  return total;
}

// 1 / denominator.
double scale_of(const std::optional<Tensor>& num_tokens, const PpoSums& sums) {
  if (!num_tokens) return 1.0 / denominator(sums.num_tokens);
  STD_TORCH_CHECK(num_tokens->scalar_type() == ScalarType::Double, "num_tokens: expected float64");
  return 1.0 / denominator(*data<double>(*num_tokens));
}

// A new 1-D tensor of these numbers.
Tensor numbers(const Tensor& like, ScalarType dtype, std::initializer_list<double> values) {
  Tensor tensor = empty(like, {static_cast<int64_t>(values.size())}, dtype);
  if (dtype == ScalarType::Double) {
    std::copy(values.begin(), values.end(), mutable_data<double>(tensor));
  } else {
    std::transform(values.begin(), values.end(), mutable_data<float>(tensor),
                   [](double value) { return static_cast<float>(value); });
  }
  return tensor;
}

// Bounds of the ratio are made in double and rounded once, as PyTorch does with Python's numbers.
void clip_ratio(PpoArgs& args, double clip_low, double clip_high) {
  args.low = 1.0 - clip_low;
  args.high = 1.0 + clip_high;
}

std::tuple<Tensor, Tensor, Tensor> clipped_policy_loss(const Tensor& logprobs, const Tensor& old_logprobs,
                                                       const Tensor& advantages, const Tensor& mask,
                                                       std::optional<Tensor> num_tokens, double clip_low,
                                                       double clip_high) {
  const ScalarType dtype = accumulation_dtype(logprobs);
  const Tensor dense_logprobs = dense(logprobs), dense_old = dense(old_logprobs), dense_advantages = dense(advantages);
  const Tensor dense_mask = dense(mask);
  Tensor gradient = empty_shaped(logprobs, dtype);
  PpoArgs args{};
  args.logprobs = dense_logprobs.data_ptr();
  args.old_logprobs = dense_old.data_ptr();
  args.advantages = dense_advantages.data_ptr();
  args.mask = data<bool>(dense_mask);
  args.num_tokens = logprobs.numel();
  args.grad_logprobs = gradient.data_ptr();
  clip_ratio(args, clip_low, clip_high);
  const PpoSums sums = sums_of(cpu_kernels().clipped_policy_loss[dtype_of(logprobs)], args);
  const double scale = scale_of(num_tokens, sums);
  Tensor losses = numbers(logprobs, dtype, {sums.policy_loss * scale, scale});
  Tensor metrics = numbers(logprobs, ScalarType::Float,
                           {sums.num_tokens, sums.num_policy_clipped, sums.approx_kl, sums.ratio, sums.ratio_max});
  return {losses, gradient, metrics};
}

std::tuple<Tensor, Tensor, Tensor> clipped_value_loss(const Tensor& values, const Tensor& old_values,
                                                      const Tensor& returns, const Tensor& mask,
                                                      std::optional<Tensor> num_tokens, double cliprange_value) {
  const ScalarType dtype = accumulation_dtype(values);
  const Tensor dense_values = dense(values), dense_old = dense(old_values), dense_returns = dense(returns);
  const Tensor dense_mask = dense(mask);
  Tensor gradient = empty_shaped(values, dtype);
  PpoArgs args{};
  args.values = dense_values.data_ptr();
  args.old_values = dense_old.data_ptr();
  args.returns = dense_returns.data_ptr();
  args.mask = data<bool>(dense_mask);
  args.num_tokens = values.numel();
  args.grad_values = gradient.data_ptr();
  args.range = cliprange_value;
  args.vf_coef = 1.0;
  const PpoSums sums = sums_of(cpu_kernels().clipped_value_loss[dtype_of(values)], args);
  const double scale = scale_of(num_tokens, sums);
  Tensor losses = numbers(values, dtype, {sums.value_loss * scale, scale});
  Tensor metrics = numbers(values, ScalarType::Float, {sums.num_tokens, sums.num_value_clipped, sums.squared_error});
  return {losses, gradient, metrics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ppo_loss(const Tensor& logprobs, const Tensor& old_logprobs,
                                                    const Tensor& advantages, const Tensor& values,
                                                    const Tensor& old_values, const Tensor& returns, const Tensor& mask,
                                                    std::optional<Tensor> ref_logprobs, std::optional<Tensor> num_tokens,
                                                    double clip_low, double clip_high, double cliprange_value,
                                                    double vf_coef, double kl_coef) {
  const ScalarType dtype = accumulation_dtype(logprobs);
  const Tensor dense_logprobs = dense(logprobs), dense_old = dense(old_logprobs), dense_advantages = dense(advantages);
  const Tensor dense_values = dense(values), dense_old_values = dense(old_values), dense_returns = dense(returns);
  const Tensor dense_mask = dense(mask);
  const std::optional<Tensor> dense_ref = dense(ref_logprobs);
  Tensor grad_logprobs = empty_shaped(logprobs, dtype), grad_values = empty_shaped(values, dtype);
  PpoArgs args{};
  args.logprobs = dense_logprobs.data_ptr();
  args.old_logprobs = dense_old.data_ptr();
  args.advantages = dense_advantages.data_ptr();
  args.ref_logprobs = dense_ref ? dense_ref->data_ptr() : nullptr;
  args.values = dense_values.data_ptr();
  args.old_values = dense_old_values.data_ptr();
  args.returns = dense_returns.data_ptr();
  args.mask = data<bool>(dense_mask);
  args.num_tokens = logprobs.numel();
  clip_ratio(args, clip_low, clip_high);
  args.range = cliprange_value;
  args.vf_coef = vf_coef;
  args.kl_coef = kl_coef;
  args.grad_logprobs = grad_logprobs.data_ptr();
  args.grad_values = grad_values.data_ptr();
  const PpoSums sums = sums_of(cpu_kernels().ppo_loss[dtype_of(logprobs)], args);
  const double scale = scale_of(num_tokens, sums);
  double loss = sums.policy_loss + vf_coef * sums.value_loss;
  // A coefficient of 0 measures the KL and leaves the objective alone, whatever the KL is.
  if (ref_logprobs && kl_coef != 0.0) loss += kl_coef * sums.kl;
  Tensor losses = numbers(logprobs, dtype, {loss * scale, sums.policy_loss * scale, sums.value_loss * scale, scale});
  Tensor metrics = numbers(logprobs, ScalarType::Float,
                           {sums.num_tokens, sums.num_policy_clipped, sums.approx_kl, sums.ratio, sums.ratio_max,
                            sums.num_value_clipped, sums.squared_error, sums.kl});
  return {losses, grad_logprobs, grad_values, metrics};
}

const void* data_of(const std::optional<Tensor>& tensor) { return tensor ? tensor->data_ptr() : nullptr; }

// A new tensor of the shape of `shape` where it is wanted, else [0].
Tensor output(const Tensor& like, const std::optional<Tensor>& shape, ScalarType dtype) {
  return shape ? empty_shaped(*shape, dtype) : empty(like, {0}, dtype);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> general_ppo_loss(
    std::optional<Tensor> logprobs, std::optional<Tensor> old_logprobs, std::optional<Tensor> log_ratios,
    std::optional<Tensor> advantages, std::optional<Tensor> values, std::optional<Tensor> old_values,
    std::optional<Tensor> returns, const Tensor& mask, std::optional<Tensor> ref_logprobs, std::optional<Tensor> weights,
    std::optional<Tensor> num_tokens, std::vector<double> settings, bool unreduced) {
  STD_TORCH_CHECK(settings.size() == 15, "settings: expected the numbers of ppo_settings.Flat");
  const Tensor& model = logprobs ? *logprobs : values.value();
  const ScalarType dtype = accumulation_dtype(model);
  const auto new_logprobs = dense(logprobs), old = dense(old_logprobs), ratios = dense(log_ratios);
  const auto of_policy = dense(advantages), ref = dense(ref_logprobs), factors = dense(weights);
  const auto new_values = dense(values), before = dense(old_values), targets = dense(returns);
  const Tensor dense_mask = dense(mask);
  const Tensor grad_logprobs = output(mask, logprobs, dtype), grad_values = output(mask, values, dtype);
  const Tensor token_losses = output(mask, unreduced ? std::optional<Tensor>(mask) : std::nullopt, dtype);
  PpoArgs args{};
  args.logprobs = data_of(new_logprobs), args.old_logprobs = data_of(old), args.log_ratios = data_of(ratios);
  args.advantages = data_of(of_policy), args.ref_logprobs = data_of(ref), args.weights = data_of(factors);
  args.values = data_of(new_values), args.old_values = data_of(before), args.returns = data_of(targets);
  args.mask = data<bool>(dense_mask);
  args.num_tokens = mask.numel();
  args.settings = settings.data();
  args.range = settings[7], args.vf_coef = settings[8], args.kl_coef = settings[10];
  args.grad_logprobs = logprobs ? grad_logprobs.data_ptr() : nullptr;
  args.grad_values = values ? grad_values.data_ptr() : nullptr;
  args.token_losses = unreduced ? token_losses.data_ptr() : nullptr;
  const PpoSums sums = sums_of(cpu_kernels().general_ppo_loss[dtype_of(model)], args);
  const double scale = scale_of(num_tokens, sums);
  double loss = sums.policy_loss + args.vf_coef * sums.value_loss;
  if (args.kl_coef != 0.0) loss += args.kl_coef * sums.kl_loss;
  Tensor losses = numbers(mask, dtype, {loss * scale, sums.policy_loss * scale, sums.value_loss * scale, scale});
  Tensor metrics = numbers(mask, ScalarType::Float,
                           {sums.num_tokens, sums.num_policy_clipped, sums.approx_kl, sums.ratio, sums.ratio_max,
                            sums.num_value_clipped, sums.squared_error, sums.kl, sums.num_dual_clipped});
  return {losses, grad_logprobs, grad_values, metrics, token_losses};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(instructrl, CPU, m) {
  m.impl(INSTRUCTRL_PREFIX "clipped_policy_loss", TORCH_BOX(&clipped_policy_loss));
  m.impl(INSTRUCTRL_PREFIX "clipped_value_loss", TORCH_BOX(&clipped_value_loss));
  m.impl(INSTRUCTRL_PREFIX "ppo_loss", TORCH_BOX(&ppo_loss));
  m.impl(INSTRUCTRL_PREFIX "general_ppo_loss", TORCH_BOX(&general_ppo_loss));
}

}  // namespace instructrl
