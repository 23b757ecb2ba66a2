"""The private ops that a compiled backend registers under its prefix, such as `instructrl::_native_ppo_loss`.

Their arguments are checked already. Floating inputs of one call have one dtype; sums, gradients of losses and results
are in the accumulation dtype. A C++ backend registers the same signatures from `csrc/schemas.h`; a test compares them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from instructrl.ops import checks

NAMESPACE = "instructrl"

SCHEMAS: dict[str, str] = {
    # gradient: [P, K], the derivative of loss_sum by the scores.
    "pairwise_ranking_loss": "(Tensor scores, Tensor preferred)"
    " -> (Tensor loss_sum, Tensor num_pairs, Tensor num_correct, Tensor gradient)",
    # tied: [P, K, K]. margins, weights: [P, K, K] in the dtype of the results, of any strides. The numbers are
    # ranking_settings.ComparisonTerms.
    "paired_comparison_loss": "(Tensor scores, Tensor preferred, Tensor? tied, Tensor? margins, Tensor? weights,"
    " float margin, float label_smoothing, float davidson, float tie_weight, float tie_constant)"
    " -> (Tensor loss_sum, Tensor num_pairs, Tensor num_correct, Tensor num_ties, Tensor gradient)",
    # ranks: int64, below 0 where a response is absent.
    "plackett_luce_loss": "(Tensor scores, Tensor ranks)"
    " -> (Tensor loss_sum, Tensor num_choices, Tensor num_correct, Tensor gradient)",
    # Under the softmax is z / temperature: z is the logits where tanh_slope is 0, else tanh(tanh_slope * logits), and
    # -inf where allowed, [V], is False (`LogitSettings.folded` makes temperature and slope of a scale and a cap).
    # normalizers: [..., 2], the largest z and the log of the sum of `exp((z - largest) / temperature)`.
    # entropy: [0] where it is not wanted.
    "token_logprobs": "(Tensor logits, Tensor tokens, Tensor? mask, Tensor? allowed, float temperature,"
    " float tanh_slope, bool with_entropy) -> (Tensor logprobs, Tensor entropy, Tensor normalizers)",
    "token_logprobs_backward": "(Tensor logits, Tensor tokens, Tensor? mask, Tensor? allowed, Tensor normalizers,"
    " Tensor? entropy, Tensor? grad_logprobs, Tensor? grad_entropy, float temperature, float tanh_slope) -> Tensor",
    # The same, written over the logits.
    "token_logprobs_backward_": "(Tensor(a!) logits, Tensor tokens, Tensor? mask, Tensor? allowed, Tensor normalizers,"
    " Tensor? entropy, Tensor? grad_logprobs, Tensor? grad_entropy, float temperature, float tanh_slope) -> ()",
    # [..., 3]: the mean of z over what is not -inf, the sum of squares of the probabilities, and 1 where no such class
    # has a larger logit than the token, else 0.
    "row_statistics": "(Tensor logits, Tensor tokens, Tensor? mask, Tensor? allowed, Tensor normalizers,"
    " float temperature, float tanh_slope) -> Tensor",
    "generalized_advantages": "(Tensor rewards, Tensor values, Tensor mask, float gamma, float lam,"
    " Tensor? cu_seqlens) -> (Tensor advantages, Tensor returns)",
    "ppo_advantages": "(Tensor logprobs, Tensor ref_logprobs, Tensor values, Tensor scores, Tensor mask,"
    " float kl_coef, float gamma, float lam, Tensor? cu_seqlens)"
    " -> (Tensor advantages, Tensor returns, Tensor rewards, Tensor stats)",
    # Either of the two above under any settings. rewards: None where they are made of the log-probabilities and the
    # scores, and returned. scores, bootstrap: in the accumulation dtype. rates: [B, 3] float64, in place of gamma, lam
    # and value_lam. kl_estimator: a place in KL_ESTIMATORS; infinite clamps are none. stats: with a KL of 0 where
    # rewards are given.
    "general_advantages": "(Tensor values, Tensor mask, Tensor? rewards, Tensor? logprobs, Tensor? ref_logprobs,"
    " Tensor? scores, Tensor? dones, Tensor? next_values, Tensor? bootstrap, Tensor? rates, Tensor? cu_seqlens,"
    " float kl_coef, int kl_estimator, float kl_input_clamp, float kl_output_clamp, float gamma, float lam,"
    " float value_lam, bool count_gaps, bool score_behind)"
    " -> (Tensor advantages, Tensor returns, Tensor rewards, Tensor stats)",
    # epsilon_at: a place in EPSILON_PLACES. baseline: a place in BASELINES.
    "masked_whiten": "(Tensor x, Tensor mask, Tensor? stats, bool center, int ddof, float epsilon, int epsilon_at)"
    " -> Tensor",
    "group_whiten": "(Tensor x, Tensor mask, Tensor groups, int num_groups, bool center, int ddof, float epsilon,"
    " int epsilon_at) -> Tensor",
    "group_advantages": "(Tensor scores, Tensor groups, int num_groups, int baseline, bool scaled, int ddof,"
    " float epsilon) -> Tensor",
    # num_tokens: 0-dim float64, None for the mask's own count. losses: the loss, its parts where it has parts, and
    # 1 / denominator. Gradients are those of the sum, before the denominator. metrics: float32, one a name.
    "clipped_policy_loss": "(Tensor logprobs, Tensor old_logprobs, Tensor advantages, Tensor mask,"
    " Tensor? num_tokens, float clip_low, float clip_high) -> (Tensor losses, Tensor gradient, Tensor metrics)",
    "clipped_value_loss": "(Tensor values, Tensor old_values, Tensor returns, Tensor mask, Tensor? num_tokens,"
    " float cliprange_value) -> (Tensor losses, Tensor gradient, Tensor metrics)",
    "ppo_loss": "(Tensor logprobs, Tensor old_logprobs, Tensor advantages, Tensor values, Tensor old_values,"
    " Tensor returns, Tensor mask, Tensor? ref_logprobs, Tensor? num_tokens, float clip_low, float clip_high,"
    " float cliprange_value, float vf_coef, float kl_coef)"
    " -> (Tensor losses, Tensor grad_logprobs, Tensor grad_values, Tensor metrics)",
    # The three losses before under any settings, which are the numbers of `ppo_settings.Flat`. Without advantages,
    # values or ref_logprobs there is no such part, and what it alone reads is None; logprobs is None for values alone.
    # old_logprobs None: ratios of 1. log_ratios: constants in place of `logprobs - old_logprobs` in the ratio of the
    # policy loss. log_ratios and weights are in the accumulation dtype. losses: the loss, its parts, and
    # 1 / denominator. Gradients are those of the sum, before the denominator, [0] where there is nothing to
    # differentiate. metrics: those of `ppo_terms.GENERAL_METRICS`. token_losses: [0] unless unreduced.
    "general_ppo_loss": "(Tensor? logprobs, Tensor? old_logprobs, Tensor? log_ratios, Tensor? advantages,"
    " Tensor? values, Tensor? old_values, Tensor? returns, Tensor mask, Tensor? ref_logprobs, Tensor? weights,"
    " Tensor? num_tokens, float[] settings, bool unreduced) -> (Tensor losses, Tensor grad_logprobs,"
    " Tensor grad_values, Tensor metrics, Tensor token_losses)",
    # allowed: [V] or [B, V].
    "sample_tokens": "(Tensor logits, Tensor uniforms, Tensor? allowed, float temperature, float tanh_slope) -> Tensor",
}


def _like(x: Tensor, *shape: int | torch.SymInt, dtype: torch.dtype | None = None) -> Tensor:
    return x.new_empty(shape, dtype=checks.accumulation_dtype(x) if dtype is None else dtype)


def _fake_ranking(num_counts: int) -> Callable[..., tuple[Tensor, ...]]:
    def fake(scores: Tensor, *_: object) -> tuple[Tensor, ...]:
        counts = [_like(scores, scores.shape[0], dtype=torch.int64) for _ in range(num_counts)]
        return _like(scores, scores.shape[0]), *counts, _like(scores, *scores.shape)

    return fake


def _fake_logprobs(logits: Tensor, tokens: Tensor, *others: Any) -> tuple[Tensor, ...]:
    entropy = _like(logits, *tokens.shape) if others[-1] else _like(logits, 0)
    return _like(logits, *tokens.shape), entropy, _like(logits, *tokens.shape, 2)


def _fake_logprobs_backward(logits: Tensor, *_: object) -> Tensor:
    return _like(logits, *logits.shape, dtype=logits.dtype)


def _fake_advantages(rewards: Tensor, *_: object) -> tuple[Tensor, ...]:
    return _like(rewards, *rewards.shape), _like(rewards, *rewards.shape)


def _fake_ppo_advantages(logprobs: Tensor, *_: object) -> tuple[Tensor, ...]:
    return *(_like(logprobs, *logprobs.shape) for _ in range(3)), _like(logprobs, 4, dtype=torch.float64)


def _fake_general_advantages(values: Tensor, mask: Tensor, rewards: Tensor | None, *_: object) -> tuple[Tensor, ...]:
    made = _like(values, *values.shape) if rewards is None else _like(values, 0)
    return *_fake_advantages(values), made, _like(values, 4, dtype=torch.float64)


def _fake_loss(num_losses: int, num_gradients: int, num_metrics: int) -> Callable[..., tuple[Tensor, ...]]:
    def fake(first: Tensor, *_: object) -> tuple[Tensor, ...]:
        gradients = [_like(first, *first.shape) for _ in range(num_gradients)]
        return _like(first, num_losses), *gradients, _like(first, num_metrics, dtype=torch.float32)

    return fake


def _fake_general_ppo_loss(
    logprobs: Tensor | None,
    old_logprobs: Tensor | None,
    log_ratios: Tensor | None,
    advantages: Tensor | None,
    values: Tensor | None,
    *others: Any,
) -> tuple[Tensor, ...]:
    model, unreduced = values if logprobs is None else logprobs, others[-1]
    assert model is not None
    gradients = [_like(model, *(model.shape if x is not None else (0,))) for x in (logprobs, values)]
    losses = _like(model, *(model.shape if unreduced else (0,)))
    return _like(model, 4), *gradients, _like(model, 9, dtype=torch.float32), losses


FAKES: dict[str, Callable[..., Any]] = {
    "pairwise_ranking_loss": _fake_ranking(2),
    "paired_comparison_loss": _fake_ranking(3),
    "plackett_luce_loss": _fake_ranking(2),
    "token_logprobs": _fake_logprobs,
    "token_logprobs_backward": _fake_logprobs_backward,
    "token_logprobs_backward_": lambda *_: None,
    "row_statistics": lambda logits, tokens, *_: _like(logits, *tokens.shape, 3),
    "generalized_advantages": _fake_advantages,
    "ppo_advantages": _fake_ppo_advantages,
    "general_advantages": _fake_general_advantages,
    "masked_whiten": lambda x, *_: _like(x, *x.shape),
    "group_whiten": lambda x, *_: _like(x, *x.shape),
    "group_advantages": lambda scores, *_: _like(scores, *scores.shape),
    "clipped_policy_loss": _fake_loss(2, 1, 5),
    "clipped_value_loss": _fake_loss(2, 1, 3),
    "ppo_loss": _fake_loss(4, 2, 8),
    "general_ppo_loss": _fake_general_ppo_loss,
    "sample_tokens": lambda logits, *_: _like(logits, logits.shape[0], dtype=torch.int64),
}

# A library lives as long as its ops do.
_libraries: list[torch.library.Library] = []


def define(
    prefix: str,
    schemas: Mapping[str, str],
    implementations: Mapping[str, Callable[..., Any]],
    dispatch_keys: tuple[str, ...],
) -> None:
    """Register private ops that are written in Python.

    prefix: of the backend, such as "_triton_". implementations: by name in `schemas`; an op without one has no kernel.
    dispatch_keys: such as "CUDA".
    """
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    _libraries.append(library)
    for name, schema in schemas.items():
        library.define(f"{prefix}{name}{schema}")
    for name, function in implementations.items():
        for key in dispatch_keys:
            library.impl(f"{prefix}{name}", function, key)


def define_fakes(prefix: str, fakes: Mapping[str, Callable[..., Any]]) -> None:
    """Shapes and dtypes of the results of a backend's private ops, for tracing."""
    for name, fake in fakes.items():
        torch.library.register_fake(f"{NAMESPACE}::{prefix}{name}", fake)


def get(prefix: str, name: str) -> Callable[..., Any]:
    """A private op, called without the search for an overload."""
    return getattr(getattr(torch.ops, NAMESPACE), f"{prefix}{name}").default


def as_count(num_tokens: int | Tensor | None, device: torch.device) -> Tensor | None:
    """A denominator as private ops take it: 0-dim float64, or None."""
    if num_tokens is None:
        return None
    if isinstance(num_tokens, Tensor):
        return num_tokens.detach().to(torch.float64)
    return torch.full((), num_tokens, dtype=torch.float64, device=device)
