"""NeMo-RL's policy loss and value loss."""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from instructrl.integrations.selfcheck import Draw, Example
from instructrl.ops import aggregation, ppo
from instructrl.ops.ppo_settings import KLSettings, PolicySettings, ValueSettings

MODULE = "nemo_rl.algorithms.loss.loss_functions"


@cache
def _policy_settings(disabled: bool, cispo: bool, low: float, high: float, dual_clip: float | None) -> PolicySettings:
    if disabled:
        return PolicySettings(surrogate="reinforce")
    # Ratios are above 0, so that a lower bound below 0 is no bound.
    bounds: dict[str, Any] = {"clip_low": min(low, 1.0), "clip_high": high, "dual_clip": dual_clip}
    return PolicySettings(surrogate="cispo" if cispo else "clip", **bounds)


@cache
def _value_settings(cliprange: float) -> ValueSettings:
    return ValueSettings(cliprange=cliprange)


@cache
def kl_settings(estimator: str, input_clamp: float | None, output_clamp: float | None, weighted: bool) -> KLSettings:
    importance = "score" if weighted else "none"
    return KLSettings(estimator=estimator, input_clamp=input_clamp, output_clamp=output_clamp, importance=importance)


_LEAST = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: torch.tensor(-d).exp().item() - 1 + d}
"""Of the estimate where the log ratio is d from 0, on either side."""


@cache
def _has_kl(estimator: str, input_clamp: float | None, output_clamp: float | None) -> bool:
    """Where the host clamps a log ratio its weight has no gradient; nor has ours, if the estimate is clamped too."""
    if estimator not in _LEAST:
        return False
    return input_clamp is None or (output_clamp is not None and _LEAST[estimator](input_clamp) > output_clamp)


_BY_TOKEN = ("tis", "icepop")


def _sayable(loss: Any, *counts: Tensor | None) -> bool:
    """Left to the host: ratios and weights of sequences, of which advantages may differ by token; a KL weighted by what
    sampled; the likelihood of what was right; a bound of the log-probability in place of a ratio."""
    kl = loss.reference_policy_kl_penalty == 0 or (
        not loss.use_on_policy_kl_approximation
        and _has_kl(loss.reference_policy_kl_type, loss.kl_input_clamp_value, loss.kl_output_clamp_value)
    )
    return (
        kl
        and not loss.sequence_level_importance_ratios
        and (loss.truncated_importance_sampling_ratio is None or loss.truncated_importance_sampling_type in _BY_TOKEN)
        and not loss.positive_example_nll_weight > 0
        and not (loss.disable_ppo_ratio and loss.ratio_clip_c is not None)
        and all(count is not None for count in counts)
    )


def _over_tokens(loss: Any, mask: Tensor, sequences: Tensor, tokens: Tensor) -> aggregation.TokenWeights:
    """Its two means, which its counts of the whole batch divide."""
    if loss.loss_type.name == "TOKEN_LEVEL":
        return aggregation.TokenWeights(None, tokens.reshape(()))
    return aggregation.token_weights(mask, "sequence_mean_of_token_means", num_sequences=sequences.reshape(()))


class _Sampled:
    """Weights for what the engine sampled from, one a token, and how many are out of bounds."""

    def __init__(self, loss: Any, old: Tensor, sampled: Tensor) -> None:
        weights = torch.nan_to_num((old - sampled).exp(), nan=0.0, posinf=0.0, neginf=0.0)
        self.outside: Tensor | None = None
        high = loss.truncated_importance_sampling_ratio
        if high is not None:
            low = loss.truncated_importance_sampling_ratio_min or 0.0
            self.outside = outside = (weights < low) | (weights > high)
            is_clamped = loss.truncated_importance_sampling_type == "tis"
            weights = weights.clamp(low, high) if is_clamped else weights * ~outside
        self.weights = weights


def policy_loss(own: Callable[..., Any]) -> Callable[..., Any]:
    def call(
        self: Any, next_token_logprobs: Tensor, data: Any, global_valid_seqs: Tensor, global_valid_toks: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        if not _sayable(self, global_valid_seqs, global_valid_toks):
            return own(self, next_token_logprobs, data, global_valid_seqs, global_valid_toks)
        new = next_token_logprobs
        mask = (data["token_mask"][:, 1:] * data["sample_mask"].unsqueeze(-1)).bool()
        gains, sampled = data["advantages"][:, 1:], data["generation_logprobs"][:, 1:]
        old = new.detach() if self.force_on_policy_ratio else data["prev_logprobs"][:, 1:]
        mean = _over_tokens(self, mask, global_valid_seqs, global_valid_toks)
        engine = _Sampled(self, old, sampled)
        weights = mean.weights
        if self.use_importance_sampling_correction:
            kept = torch.where(mask, engine.weights, 0.0)
            weights = kept if weights is None else kept * weights
        settings = _policy_settings(
            self.disable_ppo_ratio and not self.force_on_policy_ratio,
            self.use_cispo, self.ratio_clip_min, self.ratio_clip_max, self.ratio_clip_c,
        )  # fmt: skip
        constants = (None if self.force_on_policy_ratio else old, gains, mask)
        loss = ppo.clipped_policy_loss(
            new, *constants, weights=weights, num_tokens=mean.num_tokens, settings=settings
        ).loss
        kl = None
        if self.reference_policy_kl_penalty != 0:
            kl = _kl_loss(self, data.get("curr_logprobs_unfiltered", new), data, mask, mean)
            loss = loss + self.reference_policy_kl_penalty * kl
        metrics = _policy_metrics(self, new.detach(), old, sampled, mask, engine, global_valid_toks)
        metrics |= {"loss": loss.detach(), "num_valid_samples": data["sample_mask"].sum()}
        if kl is not None:
            metrics["kl_penalty"] = kl.detach()
        return loss, {"kl_penalty": 0, "positive_nll_loss": 0.0, **_read(metrics)}

    return call


def _kl_loss(loss: Any, new: Tensor, data: Any, mask: Tensor, mean: aggregation.TokenWeights) -> Tensor:
    clamps = (loss.kl_input_clamp_value, loss.kl_output_clamp_value)
    settings = kl_settings(loss.reference_policy_kl_type, *clamps, True)
    reference = data["reference_policy_logprobs"][:, 1:]
    terms = ppo.kl_token_losses(new, reference, mask, weights=mean.weights, settings=settings)
    return terms.sum() / torch.as_tensor(mean.num_tokens, device=new.device).clamp(min=1)


def _read(metrics: dict[str, Tensor]) -> dict[str, float]:
    """All numbers at once: the device is waited for once."""
    values = torch.stack([x.detach().to(torch.float32) for x in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))


@torch.no_grad()
def _policy_metrics(
    loss: Any, new: Tensor, old: Tensor, sampled: Tensor, mask: Tensor, engine: _Sampled, tokens: Tensor
) -> dict[str, Tensor]:
    """What its documentation calls by these names, over the tokens that count alone."""
    weights = engine.weights[mask]
    new, old, sampled = new[mask], old[mask], sampled[mask]
    if loss.force_on_policy_ratio:
        ratio = clipped = torch.ones_like(new)
    elif loss.disable_ppo_ratio:
        ratio = clipped = new
    else:
        ratio = (new - old).exp()
        clipped = ratio.clamp(1.0 - loss.ratio_clip_min, 1.0 + loss.ratio_clip_max)
    apart = sampled - old
    mixture = torch.logaddexp(sampled, old) - torch.log(torch.tensor(2.0))
    divergence = 0.5 * (_k3(old - mixture) + _k3(sampled - mixture))
    estimate = {"k1": lambda x: -x, "k2": lambda x: x.square() / 2, "k3": _k3}[loss.reference_policy_kl_type]
    means = {
        "probs_ratio": ratio,
        "probs_ratio_clamped": clipped,
        "token_mult_prob_error": apart.abs().exp(),
        "gen_kl_error": estimate(-apart),
        "policy_kl_error": estimate(apart),
        "js_divergence_error": divergence,
        "sampling_importance_ratio": weights,
        "approx_entropy": -(new - sampled).exp() * new,
    }
    if engine.outside is not None:
        means["is_oob_ratio"] = engine.outside[mask].to(torch.float32)
    found = {name: x.sum() / (tokens + 1e-8) for name, x in means.items()}
    for name, x in (("probs_ratio", ratio), ("probs_ratio_clamped", clipped)):
        low, high = torch.aminmax(x) if x.numel() else (x.new_tensor(torch.inf), x.new_tensor(-torch.inf))
        found |= {f"{name}_min": low, f"{name}_max": high}
    return found


def _k3(x: Tensor) -> Tensor:
    return torch.expm1(x) - x


def value_loss(own: Callable[..., Any]) -> Callable[..., Any]:
    def call(
        self: Any, logits: Tensor, data: Any, global_valid_seqs: Tensor, global_valid_toks: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        values = logits.squeeze(-1) if logits.ndim > 2 and logits.shape[-1] == 1 else logits
        mask = (data["token_mask"] * data["sample_mask"].unsqueeze(-1)).bool()
        settings = _value_settings(self.cliprange or torch.inf)
        returns, old = data["returns"], data["values"] if self.cliprange else values.detach()
        tokens = None if global_valid_toks is None else global_valid_toks.reshape(())
        found = ppo.clipped_value_loss(values, old, returns, mask, num_tokens=tokens, settings=settings)
        loss = self.scale * found.loss
        with torch.no_grad():
            counted, aims = values.detach()[mask], returns[mask]
            count = (mask.sum() if tokens is None else tokens) + 1e-8
            low, high = torch.aminmax(counted) if counted.numel() else (counted.sum(), counted.sum())
            metrics = {
                "loss": loss.detach(),
                "vf_clipfrac": found.metrics["num_value_clipped"] / count,
                "returns_mean": aims.sum() / count,
                "values_mean": counted.sum() / count,
                "values_min": low,
                "values_max": high,
                "returns_sq_mean": aims.square().sum() / count,
                "residual_sq_mean": found.metrics["squared_value_error_sum"] / count,
            }
        return loss, {**_read(metrics), "num_valid_samples": int(values.shape[0])}

    return call


def as_loss(name: str, config: str) -> Callable[..., Any]:
    """A call of one that is made with the first argument; numbers in an order of their own."""

    def call(function: Callable[..., Any], options: dict[str, Any], *args: Any) -> Any:
        module = importlib.import_module(MODULE)
        loss, metrics = function(getattr(module, name)(getattr(module, config)(**options)), *args)
        return loss, [metrics[key] for key in sorted(metrics)]

    return call


def batch(draw: Draw, **columns: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """Masks with gaps and a sample that does not count, and the counts of the whole batch."""
    shape = (draw.sizes.batch, draw.sizes.tokens)
    mask = (draw.lengths(*shape) & (draw.ids(*shape, below=4) > 0)).float()
    samples = torch.ones(shape[0], device=draw.device)
    samples[-1] = 0.0
    counts = (torch.tensor(5.0, device=draw.device), torch.tensor(1.7 * shape[1], device=draw.device))
    return {"token_mask": mask, "sample_mask": samples, **columns}, counts


def policies(draw: Draw) -> list[Example]:
    shape = (draw.sizes.batch, draw.sizes.tokens)

    def example(**options: Any) -> Example:
        new, old, sampled, reference = (-draw.normal(*shape).abs() for _ in range(4))
        columns = {"prev_logprobs": old, "generation_logprobs": sampled, "reference_policy_logprobs": reference}
        # Mostly losses, so that a dual clip has something to bound.
        data, counts = batch(draw, advantages=draw.normal(*shape) - 0.5, **columns)
        return Example((options, new[:, 1:].detach().requires_grad_(), data, *counts))

    corrected = {"use_importance_sampling_correction": True}
    truncated = {"truncated_importance_sampling_ratio": 1.5, "truncated_importance_sampling_ratio_min": 0.5}
    tis, icepop = ({**truncated, "truncated_importance_sampling_type": kind} for kind in _BY_TOKEN)
    return [
        example(ratio_clip_max=0.28, ratio_clip_c=1.3),
        example(reference_policy_kl_penalty=0.0, token_level_loss=False),
        example(reference_policy_kl_type="k1", disable_ppo_ratio=True, token_level_loss=False),
        example(reference_policy_kl_type="k2", kl_input_clamp_value=0.5, kl_output_clamp_value=0.1, use_cispo=True),
        example(kl_input_clamp_value=None, kl_output_clamp_value=None, force_on_policy_ratio=True),
        example(token_level_loss=False, **corrected, **tis),
        example(ratio_clip_c=1.5, **corrected, **icepop),
        example(token_level_loss=False, sequence_level_importance_ratios=True),
    ]


def values(draw: Draw) -> list[Example]:
    shape = (draw.sizes.batch, draw.sizes.tokens)

    def example(*last: int, **options: Any) -> Example:
        data, counts = batch(draw, values=draw.normal(*shape), returns=draw.normal(*shape))
        return Example((options, draw.normal(*shape, *last, grad=True), data, *counts))

    return [example(scale=0.4, cliprange=0.2), example(1), example(1, cliprange=0.5)]
