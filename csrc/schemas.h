// The private ops that a compiled backend registers. `instructrl/ops/private_ops.py` says what each argument is; a test
// compares the two lists. One string an op: its name without the backend's prefix, and its signature.
#pragma once

#include <string>
#include <utility>

namespace instructrl {

inline constexpr std::pair<const char*, const char*> kSchemas[] = {
    {"pairwise_ranking_loss",
     "(Tensor scores, Tensor preferred) -> (Tensor loss_sum, Tensor num_pairs, Tensor num_correct, Tensor gradient)"},
    {"paired_comparison_loss",
     "(Tensor scores, Tensor preferred, Tensor? tied, Tensor? margins, Tensor? weights, float margin,"
     " float label_smoothing, float davidson, float tie_weight, float tie_constant)"
     " -> (Tensor loss_sum, Tensor num_pairs, Tensor num_correct, Tensor num_ties, Tensor gradient)"},
    {"plackett_luce_loss",
     "(Tensor scores, Tensor ranks) -> (Tensor loss_sum, Tensor num_choices, Tensor num_correct, Tensor gradient)"},
    {"token_logprobs",
     "(Tensor logits, Tensor tokens, Tensor? mask, Tensor? allowed, float temperature, float tanh_slope,"
     " bool with_entropy) -> (Tensor logprobs, Tensor entropy, Tensor normalizers)"},
    {"token_logprobs_backward",
     "(Tensor logits, Tensor tokens, Tensor? mask, Tensor? allowed, Tensor normalizers, Tensor? entropy,"
     " Tensor? grad_logprobs, Tensor? grad_entropy, float temperature, float tanh_slope) -> Tensor"},
    {"token_logprobs_backward_",
     "(Tensor(a!) logits, Tensor tokens, Tensor? mask, Tensor? allowed, Tensor normalizers, Tensor? entropy,"
     " Tensor? grad_logprobs, Tensor? grad_entropy, float temperature, float tanh_slope) -> ()"},
    {"row_statistics",
     "(Tensor logits, Tensor tokens, Tensor? mask, Tensor? allowed, Tensor normalizers, float temperature,"
     " float tanh_slope) -> Tensor"},
    {"generalized_advantages",
     "(Tensor rewards, Tensor values, Tensor mask, float gamma, float lam, Tensor? cu_seqlens)"
     " -> (Tensor advantages, Tensor returns)"},
    {"ppo_advantages",
     "(Tensor logprobs, Tensor ref_logprobs, Tensor values, Tensor scores, Tensor mask, float kl_coef, float gamma,"
     " float lam, Tensor? cu_seqlens) -> (Tensor advantages, Tensor returns, Tensor rewards, Tensor stats)"},
    {"general_advantages",
     "(Tensor values, Tensor mask, Tensor? rewards, Tensor? logprobs, Tensor? ref_logprobs, Tensor? scores,"
     " Tensor? dones, Tensor? next_values, Tensor? bootstrap, Tensor? rates, Tensor? cu_seqlens, float kl_coef,"
     " int kl_estimator, float kl_input_clamp, float kl_output_clamp, float gamma, float lam, float value_lam,"
     " bool count_gaps, bool score_behind)"
     " -> (Tensor advantages, Tensor returns, Tensor rewards, Tensor stats)"},
    {"masked_whiten",
     "(Tensor x, Tensor mask, Tensor? stats, bool center, int ddof, float epsilon, int epsilon_at) -> Tensor"},
    {"group_whiten",
     "(Tensor x, Tensor mask, Tensor groups, int num_groups, bool center, int ddof, float epsilon, int epsilon_at)"
     " -> Tensor"},
    {"group_advantages",
     "(Tensor scores, Tensor groups, int num_groups, int baseline, bool scaled, int ddof, float epsilon) -> Tensor"},
    {"clipped_policy_loss",
     "(Tensor logprobs, Tensor old_logprobs, Tensor advantages, Tensor mask, Tensor? num_tokens, float clip_low,"
     " float clip_high)"
     " -> (Tensor losses, Tensor gradient, Tensor metrics)"},
    {"clipped_value_loss",
     "(Tensor values, Tensor old_values, Tensor returns, Tensor mask, Tensor? num_tokens, float cliprange_value)"
     " -> (Tensor losses, Tensor gradient, Tensor metrics)"},
    {"ppo_loss",
     "(Tensor logprobs, Tensor old_logprobs, Tensor advantages, Tensor values, Tensor old_values, Tensor returns,"
     " Tensor mask, Tensor? ref_logprobs, Tensor? num_tokens, float clip_low, float clip_high, float cliprange_value,"
     " float vf_coef, float kl_coef) -> (Tensor losses, Tensor grad_logprobs, Tensor grad_values, Tensor metrics)"},
    {"general_ppo_loss",
     "(Tensor? logprobs, Tensor? old_logprobs, Tensor? log_ratios, Tensor? advantages, Tensor? values,"
     " Tensor? old_values, Tensor? returns, Tensor mask, Tensor? ref_logprobs, Tensor? weights, Tensor? num_tokens,"
     " float[] settings, bool unreduced) -> (Tensor losses, Tensor grad_logprobs, Tensor grad_values, Tensor metrics,"
     " Tensor token_losses)"},
    {"sample_tokens",
     "(Tensor logits, Tensor uniforms, Tensor? allowed, float temperature, float tanh_slope) -> Tensor"},
};

// INSTRUCTRL_PREFIX names the backend; a test that runs the CUDA sources on the host picks another.
#ifndef INSTRUCTRL_PREFIX
#define INSTRUCTRL_PREFIX "_native_"
#endif

}  // namespace instructrl
