// PPO's losses under any settings: weights of tokens, other surrogates and estimators, given log ratios, no critic.
//
// One instantiation a dtype, whose branches are the same for all threads: what is absent is a null pointer, what is set
// is in the arguments. A thread takes one token a turn, which keeps such branches out of unrolled code: neighbours read
// neighbouring addresses, up to nine arrays at once. ppo.cu has the published losses, with 16-byte loads.
//
// Bytes per token: every input that is given, the mask, and 4 for each gradient and for the losses of tokens where they
// are asked for. The formulas are those of csrc/formulas.h, the sums go over the grid as columns.h has it.
#include <vector>

#include "cuda/columns.h"

namespace instructrl {
namespace {

// The metrics of `ppo_terms.GENERAL_METRICS`, in their order but for the maximum; then the weighted losses.
enum Column {
  kCount,
  kPolicyClipped,
  kApproxKl,
  kRatio,
  kValueClipped,
  kSquaredError,
  kRefKl,
  kDualClipped,
  kPolicyLoss,
  kValueLoss,
  kKlLoss,
  kRatioMax,  // The one that is not a sum.
  kNumColumns
};
constexpr int kNumMetrics = 9;

template <class T>
struct Arguments {
  const T* logprobs;
  const T* old_logprobs;
  const float* log_ratios;
  const T* advantages;
  const T* values;
  const T* old_values;
  const T* returns;
  const T* ref_logprobs;
  const float* weights;
  const bool* mask;
  int64_t num_tokens;
  PpoOptions<float> options;
  float cliprange_value;
  float vf_coef;
  float kl_coef;
  float* grad_logprobs;
  float* grad_values;
  float* token_losses;
  double* partials;  // [number of blocks, kNumColumns]
  unsigned* ticket;
  const double* denominator;  // nullptr: the number of counted tokens.
  double vf_coef_of_loss;
  double kl_coef_of_loss;
  float* losses;
  float* metrics;
};

// What a token adds to the loss, and its derivatives.
struct TokenResults {
  float loss = 0.0f, by_logprob = 0.0f, by_value = 0.0f;
};

template <class T>
__device__ __forceinline__ float at(const T* source, int64_t token) {
  return static_cast<float>(source[token]);
}

template <class T>
__device__ __forceinline__ void add_policy(const Arguments<T>& a, int64_t token, float logprob, float log_ratio,
                                           float weight, float (&sums)[kNumColumns], TokenResults& results) {
  const float given = a.log_ratios == nullptr ? log_ratio : a.log_ratios[token];
  const Ratio<float> ratio = ratio_of(given, a.options.log_ratio_clamp);
  const SurrogateTerm<float> term = surrogate_term(logprob, ratio, at(a.advantages, token), a.options);
  results.loss = weighted(term.loss, weight);
  results.by_logprob = weighted(term.derivative, weight);
  sums[kPolicyLoss] += results.loss;
  sums[kPolicyClipped] += term.clipped;
  sums[kDualClipped] += term.dual_clipped;
  sums[kApproxKl] += 0.5f * (log_ratio * log_ratio);
  sums[kRatio] += ratio.value;
  sums[kRatioMax] = maximum(sums[kRatioMax], ratio.value);
}

// A coefficient of 0 measures the KL and leaves the loss alone, whatever the KL is.
template <class T>
__device__ __forceinline__ void add_reference(const Arguments<T>& a, int64_t token, float logprob, float log_ratio,
                                              float weight, float (&sums)[kNumColumns], TokenResults& results) {
  const Ratio<float> ratio = ratio_of(log_ratio, a.options.log_ratio_clamp);
  const LossTerm<float> term = kl_term(logprob - at(a.ref_logprobs, token), ratio, a.options);
  sums[kRefKl] += term.loss;
  if (a.kl_coef == 0.0f) return;
  const float loss = weighted(term.loss, weight);
  sums[kKlLoss] += loss;
  results.loss += a.kl_coef * loss;
  results.by_logprob += a.kl_coef * weighted(term.derivative, weight);
}

template <class T>
__device__ __forceinline__ void add_value(const Arguments<T>& a, int64_t token, float weight,
                                          float (&sums)[kNumColumns], TokenResults& results) {
  const ValueTerm<float> term =
      value_term(at(a.values, token), at(a.old_values, token), at(a.returns, token), a.cliprange_value);
  const float loss = weighted(term.loss, weight);
  sums[kValueLoss] += loss;
  sums[kValueClipped] += term.clipped;
  sums[kSquaredError] += term.squared_error;
  results.loss += a.vf_coef * loss;
  results.by_value = a.vf_coef * weighted(term.derivative, weight);
}

template <class T>
__device__ __forceinline__ void add_token(const Arguments<T>& a, int64_t token, float (&sums)[kNumColumns]) {
  TokenResults results;
  if (a.mask[token]) {
    const float weight = a.weights == nullptr ? 1.0f : a.weights[token];
    sums[kCount] += 1.0f;
    if (a.logprobs != nullptr) {
      const float logprob = at(a.logprobs, token);
      const float log_ratio = a.old_logprobs == nullptr ? 0.0f : logprob - at(a.old_logprobs, token);
      if (a.advantages != nullptr) add_policy(a, token, logprob, log_ratio, weight, sums, results);
      if (a.ref_logprobs != nullptr) add_reference(a, token, logprob, log_ratio, weight, sums, results);
    }
    if (a.values != nullptr) add_value(a, token, weight, sums, results);
  }
  if (a.grad_logprobs != nullptr) a.grad_logprobs[token] = results.by_logprob;
  if (a.grad_values != nullptr) a.grad_values[token] = results.by_value;
  if (a.token_losses != nullptr) a.token_losses[token] = results.loss;
}

// What one thread makes of all sums.
template <class T>
__device__ __forceinline__ void finish(const Arguments<T>& a, const double (&sums)[kNumColumns]) {
  const double scale = 1.0 / denominator(a.denominator == nullptr ? sums[kCount] : *a.denominator);
  double total = sums[kPolicyLoss] + a.vf_coef_of_loss * sums[kValueLoss];
  if (a.kl_coef_of_loss != 0.0) total += a.kl_coef_of_loss * sums[kKlLoss];
  a.losses[0] = static_cast<float>(total * scale);
  a.losses[1] = static_cast<float>(sums[kPolicyLoss] * scale);
  a.losses[2] = static_cast<float>(sums[kValueLoss] * scale);
  a.losses[3] = static_cast<float>(scale);
  const Column order[kNumMetrics] = {kCount,        kPolicyClipped, kApproxKl, kRatio,      kRatioMax,
                                     kValueClipped, kSquaredError,  kRefKl,    kDualClipped};
#pragma unroll
  for (int k = 0; k < kNumMetrics; ++k) a.metrics[k] = static_cast<float>(sums[order[k]]);
}

template <class T>
__global__ void __launch_bounds__(kTokenThreads) general_ppo_kernel(const Arguments<T> a) {
  __shared__ double total[kNumColumns];
  __shared__ bool last;
  float sums[kNumColumns] = {};  // A ratio is not negative, so 0 does for its maximum as well.
  const int64_t step = static_cast<int64_t>(gridDim.x) * kTokenThreads;
  int64_t token = static_cast<int64_t>(blockIdx.x) * kTokenThreads + threadIdx.x;
  for (; token < a.num_tokens; token += step) add_token(a, token, sums);
  // Losses of either sign may add up to little: what is left of them is not that of float.
  double numbers[kNumColumns];
#pragma unroll
  for (int c = 0; c < kNumColumns; ++c) numbers[c] = static_cast<double>(sums[c]);
  if (!all_columns(numbers, a, total, &last)) return;
  if (threadIdx.x == 0) finish(a, total);
}

// A new tensor of the shape of `shape`, or an empty one.
Tensor output(const Tensor& shape, bool wanted) {
  return wanted ? empty_shaped(shape, ScalarType::Float) : empty(shape, {0}, ScalarType::Float);
}

float* written(const Tensor& tensor, bool wanted) { return wanted ? mutable_data<float>(tensor) : nullptr; }

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> general_ppo_loss(
    std::optional<Tensor> logprobs, std::optional<Tensor> old_logprobs, std::optional<Tensor> log_ratios,
    std::optional<Tensor> advantages, std::optional<Tensor> values, std::optional<Tensor> old_values,
    std::optional<Tensor> returns, Tensor mask, std::optional<Tensor> ref_logprobs, std::optional<Tensor> weights,
    std::optional<Tensor> num_tokens, std::vector<double> settings, bool unreduced) {
  const Tensor& model = logprobs ? *logprobs : *values;
  const OnDevice on(model);
  const std::optional<Tensor> inputs[] = {dense(logprobs),   dense(old_logprobs), dense(log_ratios),
                                          dense(advantages), dense(values),       dense(old_values),
                                          dense(returns),    dense(ref_logprobs), dense(weights)};
  const Tensor dense_mask = dense(mask);
  const Tensor grad_logprobs = output(model, logprobs.has_value()), grad_values = output(model, values.has_value());
  const Tensor token_losses = output(model, unreduced);
  const Tensor losses = empty(model, {4}, ScalarType::Float), metrics = empty(model, {kNumMetrics}, ScalarType::Float);
  dispatch_floating(model.scalar_type(), "logprobs or values", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Arguments<T> a = {};
    a.logprobs = data<T>(inputs[0]), a.old_logprobs = data<T>(inputs[1]), a.log_ratios = data<float>(inputs[2]);
    a.advantages = data<T>(inputs[3]), a.values = data<T>(inputs[4]), a.old_values = data<T>(inputs[5]);
    a.returns = data<T>(inputs[6]), a.ref_logprobs = data<T>(inputs[7]), a.weights = data<float>(inputs[8]);
    a.mask = data<bool>(dense_mask), a.num_tokens = mask.numel();
    a.options = ppo_options<float>(settings.data());
    a.cliprange_value = static_cast<float>(settings[7]);
    a.vf_coef_of_loss = settings[8], a.vf_coef = static_cast<float>(settings[8]);
    a.kl_coef_of_loss = settings[10], a.kl_coef = static_cast<float>(settings[10]);
    a.grad_logprobs = written(grad_logprobs, logprobs.has_value());
    a.grad_values = written(grad_values, values.has_value());
    a.token_losses = written(token_losses, unreduced);
    a.denominator = data<double>(num_tokens);
    a.losses = mutable_data<float>(losses), a.metrics = mutable_data<float>(metrics);
    // Without a token one block still writes the zeros.
    const int64_t turns = ceil_div(a.num_tokens > 0 ? a.num_tokens : 1, kTokenThreads);
    const int64_t blocks = turns < kMaxTokenBlocks ? turns : kMaxTokenBlocks;
    const ColumnMemory memory(model, blocks, kNumColumns, on.stream());
    a.partials = memory.partials, a.ticket = memory.ticket;
    INSTRUCTRL_LAUNCH(general_ppo_kernel<T>, blocks, kTokenThreads, 0, on.stream(), a);
  });
  return {losses, grad_logprobs, grad_values, metrics, token_losses};
}

}  // namespace
}  // namespace instructrl

STABLE_TORCH_LIBRARY_IMPL(instructrl, INSTRUCTRL_KEY, m) {
  INSTRUCTRL_REGISTER(m, "general_ppo_loss", instructrl::general_ppo_loss);
}
