"""The per-token mathematics of PPO's objective: losses with their derivatives, and metrics.

Derivatives at ties and at clip bounds are those of `torch.maximum` and `torch.clamp`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from instructrl.ops import checks
from instructrl.ops.ppo_settings import KLEstimator

POLICY_METRICS = ("num_tokens", "num_policy_clipped", "approx_kl_sum", "ratio_sum", "ratio_max")
VALUE_METRICS = ("num_tokens", "num_value_clipped", "squared_value_error_sum")
PPO_METRICS = (*POLICY_METRICS, *VALUE_METRICS[1:], "ref_kl_sum")
"""Names of the metrics: 0-dim float32 sums over counted tokens, and maxima (0 when none counts).

num_tokens: those the mask counts. num_policy_clipped, num_value_clipped: tokens whose loss is the clipped branch's.
approx_kl_sum: `0.5 * (logprobs - old_logprobs)^2`. ratio_sum, ratio_max: of `exp(logprobs - old_logprobs)`.
squared_value_error_sum: `(values - returns)^2`. ref_kl_sum: the k3 estimate of the KL to the reference, 0 without one.
"""


class Settings(NamedTuple):
    """The numbers of `ppo_loss`, as its implementations take them."""

    cliprange: float
    cliprange_value: float
    vf_coef: float
    kl_coef: float


class Terms(NamedTuple):
    """Per-token loss, its derivative, and metrics of one part of the objective; 0 where the mask is False."""

    loss: Tensor
    derivative: Tensor
    metrics: dict[str, Tensor]


def selected(mask: Tensor, *tensors: Tensor, like: Tensor | None = None) -> list[Tensor]:
    """Detached, in the accumulation dtype, 0 where the mask is False: what is not counted enters no arithmetic."""
    dtype = checks.accumulation_dtype(*tensors) if like is None else like.dtype
    return [torch.where(mask, tensor.detach().to(dtype), 0.0) for tensor in tensors]


def policy_terms(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, cliprange: float) -> Terms:
    log_ratio = new - old
    # An infinite ratio would turn advantage 0 into NaN.
    ratio = log_ratio.exp().clamp(max=torch.finfo(new.dtype).max)
    low, high = 1.0 - cliprange, 1.0 + cliprange
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(low, high)
    # torch.maximum halves the gradient at ties and clamp passes it at its bounds. Inside the bounds both branches are
    # the same number, so the clipped one wins only where its derivative is 0.
    tie_outside = (unclipped == clipped) & ((ratio < low) | (ratio > high))
    derivative = torch.where(clipped > unclipped, 0.0, torch.where(tie_outside, 0.5 * unclipped, unclipped))
    counted_ratio = torch.where(mask, ratio, 0.0)
    metrics = {
        "num_tokens": mask.sum(),
        "num_policy_clipped": ((clipped > unclipped) & mask).sum(),
        "approx_kl_sum": (0.5 * log_ratio.square()).sum(),
        "ratio_sum": counted_ratio.sum(),
        "ratio_max": counted_ratio.amax() if counted_ratio.numel() > 0 else counted_ratio.sum(),
    }
    return Terms(torch.maximum(unclipped, clipped), derivative, metrics)


def value_terms(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, cliprange_value: float) -> Terms:
    low, high = old - cliprange_value, old + cliprange_value
    error = values - returns
    squared = error.square()
    clipped_squared = (torch.maximum(torch.minimum(values, high), low) - returns).square()
    tie_outside = (squared == clipped_squared) & ((values < low) | (values > high))
    derivative = torch.where(clipped_squared > squared, 0.0, torch.where(tie_outside, 0.5 * error, error))
    metrics = {
        "num_tokens": mask.sum(),
        "num_value_clipped": ((clipped_squared > squared) & mask).sum(),
        "squared_value_error_sum": squared.sum(),
    }
    return Terms(0.5 * torch.maximum(squared, clipped_squared), derivative, metrics)


def _k1(d: Tensor) -> tuple[Tensor, Tensor]:
    return d, torch.ones_like(d)


def _k2(d: Tensor) -> tuple[Tensor, Tensor]:
    return 0.5 * d.square(), d


def _k3(d: Tensor) -> tuple[Tensor, Tensor]:
    growth = torch.expm1(-d)
    return growth + d, -growth


def _abs(d: Tensor) -> tuple[Tensor, Tensor]:
    return d.abs(), d.sign()


KL_ESTIMATES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {"k1": _k1, "k2": _k2, "k3": _k3, "abs": _abs}
"""`ppo_settings.KL_ESTIMATORS`: from `d = log-probability - that of the reference` to estimate and derivative."""


def kl_term(log_ratio: Tensor, settings: KLEstimator) -> Tensor:
    """The estimate of the KL from `log_ratio = logprobs - ref_logprobs`, with its clamps; elementwise, no gradient."""
    value, _ = KL_ESTIMATES[settings.estimator](clamped(log_ratio, settings.input_clamp))
    return clamped(value, settings.output_clamp)


def clamped(x: Tensor, limit: float | None) -> Tensor:
    return x if limit is None else x.clamp(-limit, limit)


def reference_kl_terms(new: Tensor, ref: Tensor) -> Terms:
    """The k3 estimator `exp(ref - new) - 1 - (ref - new)` and its derivative."""
    difference = ref - new
    growth = torch.expm1(difference)
    loss = growth - difference
    return Terms(loss, -growth, {"ref_kl_sum": loss.sum()})


def denominator(num_tokens: int | Tensor | None, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The count to divide by, 1 in place of 0. It may be a fraction: ranks that average gradients divide it."""
    count = mask.sum() if num_tokens is None else torch.as_tensor(num_tokens, device=mask.device)
    count = count.to(dtype)
    return torch.where(count > 0, count, torch.ones_like(count))


class Tokens(NamedTuple):
    """What the objective reads besides the new log-probabilities; [N] each, detached, 0 where the mask is False."""

    old_logprobs: Tensor
    advantages: Tensor
    values: Tensor
    old_values: Tensor
    returns: Tensor
    ref_logprobs: Tensor | None
    mask: Tensor

    def at(self, rows: slice) -> "Tokens":
        return Tokens(*(None if x is None else x[rows] for x in self))  # pyright: ignore[reportArgumentType]


class Objective(NamedTuple):
    """Sums over tokens before the denominator, and the derivatives of `loss_sum` per token."""

    loss_sum: Tensor
    policy_sum: Tensor
    value_sum: Tensor
    logprob_derivative: Tensor
    value_derivative: Tensor
    metrics: dict[str, Tensor]


def objective(new: Tensor, tokens: Tokens, settings: Settings) -> Objective:
    policy = policy_terms(new, tokens.old_logprobs, tokens.advantages, tokens.mask, settings.cliprange)
    value = value_terms(tokens.values, tokens.old_values, tokens.returns, tokens.mask, settings.cliprange_value)
    policy_sum, value_sum = policy.loss.sum(), value.loss.sum()
    loss_sum = policy_sum + settings.vf_coef * value_sum
    derivative = policy.derivative
    metrics = {**policy.metrics, **value.metrics, "ref_kl_sum": torch.zeros_like(policy_sum)}
    if tokens.ref_logprobs is not None:
        kl = reference_kl_terms(new, tokens.ref_logprobs)
        metrics.update(kl.metrics)
        # A coefficient of 0 measures the KL and leaves the objective alone, whatever the KL is.
        if settings.kl_coef != 0.0:
            loss_sum = loss_sum + settings.kl_coef * kl.loss.sum()
            derivative = derivative + settings.kl_coef * kl.derivative
    return Objective(loss_sum, policy_sum, value_sum, derivative, settings.vf_coef * value.derivative, metrics)


def joined(parts: list[Objective]) -> Objective:
    """The objective of all chunks."""
    loss_sum, policy_sum, value_sum = (torch.stack(x).sum() for x in list(zip(*parts, strict=True))[:3])
    metrics = {}
    for name in PPO_METRICS:
        over_chunks = torch.stack([part.metrics[name] for part in parts])
        metrics[name] = over_chunks.amax() if name == "ratio_max" else over_chunks.sum()
    by_logprob = torch.cat([part.logprob_derivative for part in parts])
    by_value = torch.cat([part.value_derivative for part in parts])
    return Objective(loss_sum, policy_sum, value_sum, by_logprob, by_value, metrics)
