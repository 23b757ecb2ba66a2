// PPO's clipped policy and value losses, apart and together: loss, gradients and metrics in one launch.
//
// A thread takes 16 bytes of every array at once (4 tokens of float32, 8 of bfloat16), computes the terms of
// csrc/formulas.h, writes unnormalised gradients (the backward multiplies by the incoming gradient over the denominator
// anyway) and keeps ten sums in registers; columns.h adds them up over the grid, and one thread writes losses and
// metrics.
//
// Bytes per token, all terms with a reference in float32: 29 read, 8 written. 256 threads with at most 107 registers:
// two or more blocks a multiprocessor, 512 threads with seven 16-byte loads each in flight, twice what hides the
// latency of memory.
#include "cuda/columns.h"

namespace instructrl {
namespace {

enum class Part { kPolicy, kValue, kBoth };

enum Column {
  kCount,
  kPolicyLoss,
  kPolicyClipped,
  kApproxKl,
  kRatio,
  kValueLoss,
  kValueClipped,
  kSquaredError,
  kRefKl,
  kRatioMax,  // The one that is not a sum.
  kNumColumns
};

template <class T>
struct Arguments {
  const T* logprobs;
  const T* old_logprobs;
  const T* advantages;
  const T* values;
  const T* old_values;
  const T* returns;
  const T* ref_logprobs;
  const bool* mask;
  int64_t num_tokens;
  bool aligned;
  float low, high;  // Bounds of the ratio.
  float cliprange_value;
  float vf_coef;
  float kl_coef;
  float* grad_logprobs;
  float* grad_values;
  double* partials;  // [number of blocks, kNumColumns]
  unsigned* ticket;
  const double* denominator;  // nullptr: the number of counted tokens.
  double vf_coef_of_loss;
  double kl_coef_of_loss;
  float* losses;
  float* metrics;
};

// One token's policy terms into the sums; returns the derivative by its log-probability.
template <class T>
__device__ __forceinline__ float add_policy(const Arguments<T>& a, float logprob, float old_logprob, float advantage,
                                            float (&sums)[kNumColumns]) {
  const PolicyTerm<float> term = policy_term(logprob, old_logprob, advantage, a.low, a.high);
  sums[kPolicyLoss] += term.loss;
  sums[kPolicyClipped] += term.clipped;
  sums[kApproxKl] += term.approx_kl;
  sums[kRatio] += term.ratio;
  sums[kRatioMax] = maximum(sums[kRatioMax], term.ratio);
  return term.derivative;
}

template <class T>
__device__ __forceinline__ float add_value(const Arguments<T>& a, float value, float old_value, float target,
                                           float (&sums)[kNumColumns]) {
  const ValueTerm<float> term = value_term(value, old_value, target, a.cliprange_value);
  sums[kValueLoss] += term.loss;
  sums[kValueClipped] += term.clipped;
  sums[kSquaredError] += term.squared_error;
  return term.derivative;
}

// A coefficient of 0 measures the KL and leaves the gradient alone, whatever the KL is.
template <class T>
__device__ __forceinline__ float add_reference(const Arguments<T>& a, float logprob, float ref_logprob,
                                               float derivative, float (&sums)[kNumColumns]) {
  const LossTerm<float> term = reference_kl_term(logprob, ref_logprob);
  sums[kRefKl] += term.loss;
  return a.kl_coef != 0.0f ? derivative + a.kl_coef * term.derivative : derivative;
}

template <class T, Part kPart, bool kReference>
__device__ __forceinline__ void add_group(const Arguments<T>& a, int64_t first, float (&sums)[kNumColumns]) {
  constexpr int kGroup = Vector<T>::kSize;
  const bool whole = a.aligned && first + kGroup <= a.num_tokens;
  const unsigned counted = load_mask<kGroup>(a.mask, first, a.num_tokens, whole);
  float by_logprob[kGroup] = {}, by_value[kGroup] = {};
  if (counted != 0) {
    Vector<T> logprob, old_logprob, advantage, value, old_value, target, ref_logprob;
    if constexpr (kPart != Part::kValue) {
      logprob = load_group(a.logprobs, first, counted, whole);
      old_logprob = load_group(a.old_logprobs, first, counted, whole);
      advantage = load_group(a.advantages, first, counted, whole);
    }
    if constexpr (kPart != Part::kPolicy) {
      value = load_group(a.values, first, counted, whole);
      old_value = load_group(a.old_values, first, counted, whole);
      target = load_group(a.returns, first, counted, whole);
    }
    if constexpr (kReference) ref_logprob = load_group(a.ref_logprobs, first, counted, whole);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (!(counted >> k & 1)) continue;
      sums[kCount] += 1.0f;
      if constexpr (kPart != Part::kValue) {
        by_logprob[k] = add_policy(a, static_cast<float>(logprob.lane[k]), static_cast<float>(old_logprob.lane[k]),
                                   static_cast<float>(advantage.lane[k]), sums);
      }
      if constexpr (kReference) {
        by_logprob[k] = add_reference(a, static_cast<float>(logprob.lane[k]), static_cast<float>(ref_logprob.lane[k]),
                                      by_logprob[k], sums);
      }
      if constexpr (kPart != Part::kPolicy) {
        by_value[k] = a.vf_coef * add_value(a, static_cast<float>(value.lane[k]), static_cast<float>(old_value.lane[k]),
                                            static_cast<float>(target.lane[k]), sums);
      }
    }
  }
  if constexpr (kPart != Part::kValue) store_group(a.grad_logprobs, first, a.num_tokens, whole, by_logprob);
  if constexpr (kPart != Part::kPolicy) store_group(a.grad_values, first, a.num_tokens, whole, by_value);
}

// What one thread makes of all sums: the order of outputs is that of `instructrl/ops/ppo_terms.py`.
template <class T, Part kPart>
__device__ __forceinline__ void finish(const Arguments<T>& a, const double* sums) {
  const double scale = 1.0 / denominator(a.denominator == nullptr ? sums[kCount] : *a.denominator);
  const double policy = sums[kPolicyLoss] * scale, value = sums[kValueLoss] * scale;
  float* metric = a.metrics;
  *metric++ = static_cast<float>(sums[kCount]);
  if constexpr (kPart != Part::kValue) {
    *metric++ = static_cast<float>(sums[kPolicyClipped]);
    *metric++ = static_cast<float>(sums[kApproxKl]);
    *metric++ = static_cast<float>(sums[kRatio]);
    *metric++ = static_cast<float>(sums[kRatioMax]);
  }
  if constexpr (kPart != Part::kPolicy) {
    *metric++ = static_cast<float>(sums[kValueClipped]);
    *metric++ = static_cast<float>(sums[kSquaredError]);
  }
  float* loss = a.losses;
  if constexpr (kPart == Part::kBoth) {
    *metric++ = static_cast<float>(sums[kRefKl]);
    double total = policy + a.vf_coef_of_loss * value;
    if (a.kl_coef_of_loss != 0.0) total += a.kl_coef_of_loss * sums[kRefKl] * scale;
    *loss++ = static_cast<float>(total);
  }
  if constexpr (kPart != Part::kValue) *loss++ = static_cast<float>(policy);
  if constexpr (kPart != Part::kPolicy) *loss++ = static_cast<float>(value);
  *loss = static_cast<float>(scale);
}

template <class T, Part kPart, bool kReference>
__global__ void __launch_bounds__(kTokenThreads) ppo_kernel(const Arguments<T> a) {
  __shared__ double total[kNumColumns];
  __shared__ bool last;
  constexpr int kGroup = Vector<T>::kSize;
  float sums[kNumColumns] = {};  // A ratio is not negative, so 0 does for its maximum as well.
  const int64_t step = static_cast<int64_t>(gridDim.x) * kTokenThreads * kGroup;
  int64_t first = (static_cast<int64_t>(blockIdx.x) * kTokenThreads + threadIdx.x) * kGroup;
  for (; first < a.num_tokens; first += step) add_group<T, kPart, kReference>(a, first, sums);

  if (!all_columns(sums, a, total, &last)) return;
  if (threadIdx.x == 0) finish<T, kPart>(a, total);
}

struct Inputs {
  std::optional<Tensor> logprobs, old_logprobs, advantages, values, old_values, returns, ref_logprobs;
  Tensor mask;
  std::optional<Tensor> num_tokens;
};

struct Outputs {
  std::optional<Tensor> grad_logprobs, grad_values;
  Tensor losses, metrics;
};

struct Settings {
  double clip_low = 0.0, clip_high = 0.0, cliprange_value = 0.0, vf_coef = 1.0, kl_coef = 0.0;
};

template <class T>
bool all_aligned(const Arguments<T>& a) {
  // Absent arrays are nullptr, which is aligned.
  return is_aligned(a.logprobs, 16) && is_aligned(a.old_logprobs, 16) && is_aligned(a.advantages, 16) &&
         is_aligned(a.values, 16) && is_aligned(a.old_values, 16) && is_aligned(a.returns, 16) &&
         is_aligned(a.ref_logprobs, 16) && is_aligned(a.grad_logprobs, 16) && is_aligned(a.grad_values, 16) &&
         Tokens<T>::mask_is_aligned(a.mask);
}

template <class T, Part kPart>
void launch_ppo(const Inputs& in, const Outputs& out, const Settings& settings, const Tensor& model,
                cudaStream_t stream) {
  Arguments<T> a = {};
  a.logprobs = data<T>(in.logprobs), a.old_logprobs = data<T>(in.old_logprobs), a.advantages = data<T>(in.advantages);
  a.values = data<T>(in.values), a.old_values = data<T>(in.old_values), a.returns = data<T>(in.returns);
  a.ref_logprobs = data<T>(in.ref_logprobs);
  a.mask = data<bool>(in.mask);
  a.num_tokens = in.mask.numel();
  // In double and rounded once, as the reference does with Python's numbers.
  a.low = static_cast<float>(1.0 - settings.clip_low), a.high = static_cast<float>(1.0 + settings.clip_high);
  a.cliprange_value = static_cast<float>(settings.cliprange_value);
  a.vf_coef = static_cast<float>(settings.vf_coef), a.kl_coef = static_cast<float>(settings.kl_coef);
  a.vf_coef_of_loss = settings.vf_coef, a.kl_coef_of_loss = in.ref_logprobs ? settings.kl_coef : 0.0;
  a.grad_logprobs = out.grad_logprobs ? mutable_data<float>(*out.grad_logprobs) : nullptr;
  a.grad_values = out.grad_values ? mutable_data<float>(*out.grad_values) : nullptr;
  a.denominator = data<double>(in.num_tokens);
  a.losses = mutable_data<float>(out.losses), a.metrics = mutable_data<float>(out.metrics);
  a.aligned = all_aligned(a);
  // Without a token one block still writes the zeros.
  const int64_t blocks = Tokens<T>::num_blocks(a.num_tokens > 0 ? a.num_tokens : 1);
  const ColumnMemory memory(model, blocks, kNumColumns, stream);
  a.partials = memory.partials, a.ticket = memory.ticket;
  if constexpr (kPart == Part::kBoth) {
    if (in.ref_logprobs) {
      INSTRUCTRL_LAUNCH((ppo_kernel<T, kPart, true>), blocks, kTokenThreads, 0, stream, a);
      return;
    }
  }
  INSTRUCTRL_LAUNCH((ppo_kernel<T, kPart, false>), blocks, kTokenThreads, 0, stream, a);
}

template <Part kPart>
Outputs run(const Inputs& in, const Settings& settings, int64_t num_losses, int64_t num_metrics) {
  const Tensor& model = kPart == Part::kValue ? *in.values : *in.logprobs;
  const OnDevice on(model);
  Outputs out = {std::nullopt, std::nullopt, empty(model, {num_losses}, ScalarType::Float),
                 empty(model, {num_metrics}, ScalarType::Float)};
  if (kPart != Part::kValue) out.grad_logprobs = empty_shaped(model, ScalarType::Float);
  if (kPart != Part::kPolicy) out.grad_values = empty_shaped(model, ScalarType::Float);
  dispatch_floating(model.scalar_type(), "logprobs or values", [&](auto tag) {
    launch_ppo<typename decltype(tag)::type, kPart>(in, out, settings, model, on.stream());
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> clipped_policy_loss(Tensor logprobs, Tensor old_logprobs, Tensor advantages,
                                                       Tensor mask, std::optional<Tensor> num_tokens,
                                                       double clip_low, double clip_high) {
  Settings settings;
  settings.clip_low = clip_low, settings.clip_high = clip_high;
  const Inputs in = {dense(logprobs), dense(old_logprobs), dense(advantages), {}, {}, {}, {}, dense(mask), num_tokens};
  const Outputs out = run<Part::kPolicy>(in, settings, 2, 5);
  return {out.losses, *out.grad_logprobs, out.metrics};
}

std::tuple<Tensor, Tensor, Tensor> clipped_value_loss(Tensor values, Tensor old_values, Tensor returns, Tensor mask,
                                                      std::optional<Tensor> num_tokens, double cliprange_value) {
  Settings settings;
  settings.cliprange_value = cliprange_value;
  const Inputs in = {{}, {}, {}, dense(values), dense(old_values), dense(returns), {}, dense(mask), num_tokens};
  const Outputs out = run<Part::kValue>(in, settings, 2, 3);
  return {out.losses, *out.grad_values, out.metrics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ppo_loss(Tensor logprobs, Tensor old_logprobs, Tensor advantages,
                                                    Tensor values, Tensor old_values, Tensor returns, Tensor mask,
                                                    std::optional<Tensor> ref_logprobs,
                                                    std::optional<Tensor> num_tokens, double clip_low, double clip_high,
                                                    double cliprange_value, double vf_coef, double kl_coef) {
  const Settings settings = {clip_low, clip_high, cliprange_value, vf_coef, kl_coef};
  const Inputs in = {dense(logprobs),   dense(old_logprobs), dense(advantages),   dense(values), dense(old_values),
                     dense(returns),    dense(ref_logprobs), dense(mask),         num_tokens};
  const Outputs out = run<Part::kBoth>(in, settings, 4, 8);
  return {out.losses, *out.grad_logprobs, *out.grad_values, out.metrics};
}

}  // namespace
}  // namespace instructrl

STABLE_TORCH_LIBRARY_IMPL(instructrl, INSTRUCTRL_KEY, m) {
  INSTRUCTRL_REGISTER(m, "clipped_policy_loss", instructrl::clipped_policy_loss);
  INSTRUCTRL_REGISTER(m, "clipped_value_loss", instructrl::clipped_value_loss);
  INSTRUCTRL_REGISTER(m, "ppo_loss", instructrl::ppo_loss);
}
