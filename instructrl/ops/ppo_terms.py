"""The per-token mathematics of PPO's objective: losses with their derivatives, and metrics.

Derivatives at ties, at clip bounds and at clamps are those of `torch.maximum`, `torch.minimum` and `torch.clamp`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from instructrl.ops.ppo_settings import KLEstimator, KLSettings, PolicySettings, PPOSettings, ValueSettings

POLICY_METRICS = ("num_tokens", "num_policy_clipped", "approx_kl_sum", "ratio_sum", "ratio_max")
VALUE_METRICS = ("num_tokens", "num_value_clipped", "squared_value_error_sum")
PPO_METRICS = (*POLICY_METRICS, *VALUE_METRICS[1:], "ref_kl_sum")
DUAL_CLIP_METRIC = "num_dual_clipped"
GENERAL_METRICS = (*PPO_METRICS, DUAL_CLIP_METRIC)
"""Names of the metrics: 0-dim float32 sums over counted tokens, unweighted, and maxima (0 when none counts).

num_tokens: those the mask counts. num_policy_clipped, num_value_clipped: tokens whose loss is the clipped branch's, of
"cispo" those whose ratio is clipped. num_dual_clipped: those whose loss is the bound of `dual_clip`; only where one is
set. approx_kl_sum: `0.5 * (logprobs - old_logprobs)^2`. ratio_sum, ratio_max: of the ratio as the loss takes it.
squared_value_error_sum: `(values - returns)^2`. ref_kl_sum: the estimate of the KL to the reference before `coef`, 0
without one.
"""


class Tokens(NamedTuple):
    """What the objective reads besides the new log-probabilities; one shape, detached, 0 where the mask is False.

    old_logprobs: None: those of the policy as it is, so every ratio is 1, with its gradient. log_ratios: constant log
    ratios of sequences in place of `new - old_logprobs`, or None. advantages: None without a policy loss. values,
    old_values, returns: None without a value loss. weights: of each token's loss; None: all 1.
    """

    mask: Tensor
    old_logprobs: Tensor | None = None
    log_ratios: Tensor | None = None
    advantages: Tensor | None = None
    values: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None
    ref_logprobs: Tensor | None = None
    weights: Tensor | None = None

    def at(self, rows: slice) -> "Tokens":
        return Tokens(*(None if x is None else x[rows] for x in self))  # pyright: ignore[reportArgumentType]


class Terms(NamedTuple):
    """Per-token loss, its derivative, and metrics of one part of the objective; 0 where the mask is False."""

    loss: Tensor
    derivative: Tensor
    metrics: dict[str, Tensor]


def selected(mask: Tensor, x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Detached, in the accumulation dtype, 0 where the mask is False: what is not counted enters no arithmetic."""
    return None if x is None else torch.where(mask, x.detach().to(dtype), 0.0)


def clamped(x: Tensor, limit: float | None) -> Tensor:
    return x if limit is None else x.clamp(-limit, limit)


def _where_within(x: Tensor, limit: float | None, derivative: Tensor) -> Tensor:
    """The derivative through `clamped(x, limit)`."""
    return derivative if limit is None else torch.where(x.abs() > limit, 0.0, derivative)


class Ratio(NamedTuple):
    """value: of the probabilities, policy : old policy. slope: its derivative by the new log-probability."""

    value: Tensor
    slope: Tensor


def ratio_of(log_ratio: Tensor, clamp: float | None) -> Ratio:
    # An infinite ratio would turn advantage 0 into NaN.
    value = clamped(log_ratio, clamp).exp().clamp(max=torch.finfo(log_ratio.dtype).max)
    return Ratio(value, _where_within(log_ratio, clamp, value))


class Surrogate(NamedTuple):
    """Per-token loss and derivative by the new log-probability; [..] bool: clipped, and bounded by the dual clip."""

    loss: Tensor
    derivative: Tensor
    clipped: Tensor
    dual_clipped: Tensor


def _nowhere(x: Tensor) -> Tensor:
    return torch.zeros_like(x, dtype=torch.bool)


def _clip(new: Tensor, ratio: Ratio, advantages: Tensor, settings: PolicySettings) -> Surrogate:
    low, high = 1.0 - settings.clip_low, 1.0 + settings.clip_high
    unclipped, clipped = -advantages * ratio.value, -advantages * ratio.value.clamp(low, high)
    # torch.maximum halves the gradient at ties and clamp passes it at its bounds. Inside the bounds both branches are
    # the same number, so the clipped one wins only where its derivative is 0.
    wins = clipped > unclipped
    tie_outside = (unclipped == clipped) & ((ratio.value < low) | (ratio.value > high))
    slope = -advantages * ratio.slope
    loss, derivative = torch.maximum(unclipped, clipped), torch.where(tie_outside, 0.5 * slope, slope)
    derivative = torch.where(wins, 0.0, derivative)
    if settings.dual_clip is None:
        return Surrogate(loss, derivative, wins, _nowhere(wins))
    bound, negative = -advantages * settings.dual_clip, advantages < 0
    bounded, tie = negative & (loss > bound), negative & (loss == bound)
    derivative = torch.where(bounded, 0.0, torch.where(tie, 0.5 * derivative, derivative))
    return Surrogate(torch.where(negative, torch.minimum(loss, bound), loss), derivative, wins, bounded)


def _cispo(new: Tensor, ratio: Ratio, advantages: Tensor, settings: PolicySettings) -> Surrogate:
    low, high = 1.0 - settings.clip_low, 1.0 + settings.clip_high
    derivative = -advantages * ratio.value.clamp(low, high)
    outside = (ratio.value < low) | (ratio.value > high)
    return Surrogate(derivative * new, derivative, outside, _nowhere(outside))


def _reinforce(new: Tensor, ratio: Ratio, advantages: Tensor, settings: PolicySettings) -> Surrogate:
    return Surrogate(-advantages * new, -advantages, _nowhere(new), _nowhere(new))


def _sapo(new: Tensor, ratio: Ratio, advantages: Tensor, settings: PolicySettings) -> Surrogate:
    positive, negative = settings.positive_temperature, settings.negative_temperature
    temperature = torch.where(advantages > 0, torch.full_like(new, positive), negative)
    gate = temperature * (ratio.value - 1.0)
    open_share = gate.sigmoid()
    loss = -advantages * (open_share * (4.0 / temperature))
    derivative = -advantages * (4.0 * open_share * (-gate).sigmoid() * ratio.slope)
    return Surrogate(loss, derivative, _nowhere(new), _nowhere(new))


SURROGATE_LOSSES: dict[str, Callable[[Tensor, Ratio, Tensor, PolicySettings], Surrogate]] = {
    "clip": _clip,
    "cispo": _cispo,
    "reinforce": _reinforce,
    "sapo": _sapo,
}
"""The formulas of `ppo_settings.SURROGATES`."""


def _token_log_ratio(new: Tensor, old: Tensor | None) -> Tensor:
    return torch.zeros_like(new) if old is None else new - old


def policy_terms(new: Tensor, tokens: Tokens, settings: PolicySettings) -> Terms:
    assert tokens.advantages is not None
    mask, log_ratio = tokens.mask, _token_log_ratio(new, tokens.old_logprobs)
    ratio = ratio_of(log_ratio if tokens.log_ratios is None else tokens.log_ratios, settings.log_ratio_clamp)
    found = SURROGATE_LOSSES[settings.surrogate](new, ratio, tokens.advantages, settings)
    counted_ratio = torch.where(mask, ratio.value, 0.0)
    metrics = {
        "num_tokens": mask.sum(),
        "num_policy_clipped": (found.clipped & mask).sum(),
        "approx_kl_sum": (0.5 * log_ratio.square()).sum(),
        "ratio_sum": counted_ratio.sum(),
        "ratio_max": counted_ratio.amax() if counted_ratio.numel() > 0 else counted_ratio.sum(),
        DUAL_CLIP_METRIC: (found.dual_clipped & mask).sum(),
    }
    return Terms(found.loss, found.derivative, metrics)


def value_terms(tokens: Tokens, settings: ValueSettings) -> Terms:
    values, old, returns = tokens.values, tokens.old_values, tokens.returns
    assert values is not None
    assert old is not None
    assert returns is not None
    low, high = old - settings.cliprange, old + settings.cliprange
    error = values - returns
    squared = error.square()
    clipped_squared = (torch.maximum(torch.minimum(values, high), low) - returns).square()
    tie_outside = (squared == clipped_squared) & ((values < low) | (values > high))
    derivative = torch.where(clipped_squared > squared, 0.0, torch.where(tie_outside, 0.5 * error, error))
    metrics = {
        "num_tokens": tokens.mask.sum(),
        "num_value_clipped": ((clipped_squared > squared) & tokens.mask).sum(),
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


def kl_terms(new: Tensor, tokens: Tokens, settings: KLSettings, log_ratio_clamp: float | None) -> Terms:
    """The KL to the reference before its coefficient. log_ratio_clamp: of the ratio that `importance` brings in."""
    assert tokens.ref_logprobs is not None
    d = new - tokens.ref_logprobs
    value, own = KL_ESTIMATES[settings.estimator](clamped(d, settings.input_clamp))
    derivative = d if settings.straight_through else _where_within(d, settings.input_clamp, own)
    if settings.importance != "none":
        old = None if settings.importance == "score" else tokens.old_logprobs
        ratio = ratio_of(_token_log_ratio(new, old), log_ratio_clamp)
        derivative = ratio.value * derivative
        if settings.importance != "constant":
            derivative = derivative + ratio.slope * (0.5 * d.square() if settings.straight_through else value)
        value = ratio.value * value
    if not settings.straight_through:
        derivative = _where_within(value, settings.output_clamp, derivative)
    value = clamped(value, settings.output_clamp)
    return Terms(value, torch.where(tokens.mask, derivative, 0.0), {"ref_kl_sum": value.sum()})


def denominator(num_tokens: int | Tensor | None, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The count to divide by, 1 in place of 0. It may be a fraction: ranks that average gradients divide it."""
    count = mask.sum() if num_tokens is None else torch.as_tensor(num_tokens, device=mask.device)
    count = count.to(dtype)
    return torch.where(count > 0, count, torch.ones_like(count))


def weighted(x: Tensor, weights: Tensor | None) -> Tensor:
    """A weight of 0 leaves a token out, whatever its loss is."""
    return x if weights is None else torch.where(weights == 0, 0.0, weights * x)


def weighted_terms(terms: Terms, weights: Tensor | None) -> Terms:
    return Terms(weighted(terms.loss, weights), weighted(terms.derivative, weights), terms.metrics)


class Objective(NamedTuple):
    """Weighted per-token losses and sums before the denominator, and the derivatives of the loss by each token."""

    losses: Tensor
    policy_sum: Tensor
    value_sum: Tensor
    logprob_derivative: Tensor
    value_derivative: Tensor
    metrics: dict[str, Tensor]


def objective(new: Tensor, tokens: Tokens, settings: PPOSettings) -> Objective:
    """new: the log-probabilities, as `selected` makes them."""
    nothing = torch.zeros_like(new)
    metrics = dict.fromkeys(GENERAL_METRICS, nothing.sum())
    policy = weighted_terms(policy_terms(new, tokens, settings.policy), tokens.weights)
    value, kl = Terms(nothing, nothing, {}), Terms(nothing, nothing, {})
    if tokens.values is not None:
        value = weighted_terms(value_terms(tokens, settings.value), tokens.weights)
    losses, by_logprob = policy.loss + settings.vf_coef * value.loss, policy.derivative
    if tokens.ref_logprobs is not None:
        kl = weighted_terms(kl_terms(new, tokens, settings.kl, settings.policy.log_ratio_clamp), tokens.weights)
        # A coefficient of 0 measures the KL and leaves the objective alone, whatever the KL is.
        if settings.kl.coef != 0.0:
            losses, by_logprob = losses + settings.kl.coef * kl.loss, by_logprob + settings.kl.coef * kl.derivative
    metrics |= policy.metrics | value.metrics | kl.metrics
    by_value = settings.vf_coef * value.derivative
    return Objective(losses, policy.loss.sum(), value.loss.sum(), by_logprob, by_value, metrics)


def joined(parts: list[Objective]) -> Objective:
    """The objective of all chunks."""
    losses, policy_sums, value_sums, by_logprob, by_value, _ = zip(*parts, strict=True)
    metrics = {}
    for name in parts[0].metrics:
        over_chunks = torch.stack([part.metrics[name] for part in parts])
        metrics[name] = over_chunks.amax() if name == "ratio_max" else over_chunks.sum()
    sums = torch.stack(policy_sums).sum(), torch.stack(value_sums).sum()
    return Objective(torch.cat(losses), *sums, torch.cat(by_logprob), torch.cat(by_value), metrics)
