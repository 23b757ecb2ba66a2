"""verl's policy losses, at its registry of them, its value loss and its KL estimates."""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from instructrl.integrations.adapter import Replacement
from instructrl.integrations.selfcheck import Draw, Example, Sizes
from instructrl.integrations.verl.advantages import counted, plain
from instructrl.ops import ppo
from instructrl.ops.ppo_settings import KLSettings, PolicySettings, ValueSettings

_MODULE = "verl.trainer.ppo.core_algos"
_CLAMP = 20.0
"""Of log ratios."""
_SEQUENCE_CLAMP = 10.0
"""Of log ratios of sequences, from above alone."""

_MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")


class _Mean(NamedTuple):
    """A sum of losses over `num_tokens`, times the data-parallel size, is what verl's `agg_loss` makes of them."""

    weights: Tensor | None
    num_tokens: int | Tensor | None
    dp_size: int

    def weighted(self, others: Tensor | None) -> Tensor | None:
        if self.weights is None or others is None:
            return self.weights if others is None else others
        return self.weights * others

    def scaled(self, loss: Tensor) -> Tensor:
        return loss if self.dp_size == 1 else loss * self.dp_size


def _mean(
    mask: Tensor,
    mode: str,
    dp_size: int = 1,
    batch_num_tokens: Any = None,
    global_batch_size: Any = None,
    loss_scale_factor: Any = None,
) -> _Mean | None:
    """None where the host raises."""
    number = batch_num_tokens if mode == "token-mean" else global_batch_size
    if mode not in _MODES or (number is None and dp_size > 1 and mode != "token-sum"):
        return None
    if mode == "token-sum":
        return _Mean(None, 1, dp_size)
    if mode == "token-mean":
        return _Mean(None, _divisor(number, mask), dp_size)
    number = mask.any(-1).sum() if number is None else number
    if mode == "seq-mean-token-sum-norm":
        number = number * (mask.shape[-1] if loss_scale_factor is None else loss_scale_factor)
    weights = None
    if mode == "seq-mean-token-mean":
        weights = (1.0 / mask.sum(-1, keepdim=True).clamp(min=1)).expand(mask.shape)
    return _Mean(weights, _divisor(number, mask), dp_size)


def _divisor(number: Any, mask: Tensor) -> int | Tensor | None:
    """As a whole number, or as a tensor."""
    if number is None or isinstance(number, (int, Tensor)):
        return number
    return int(number) if float(number).is_integer() else torch.tensor(float(number), device=mask.device)


@cache
def _policy(surrogate: str, ratio: str = "token", **numbers: float | None) -> PolicySettings:
    return PolicySettings(surrogate=surrogate, ratio=ratio, **numbers)  # pyright: ignore[reportArgumentType]


def _bounds(config: Any) -> dict[str, float]:
    """Of the ratio. Below 0 there is none, so that a lower bound further down is the same as one at 0."""
    low, high = config.clip_ratio_low, config.clip_ratio_high
    low, high = (config.clip_ratio if x is None else x for x in (low, high))
    return {"clip_low": min(float(low), 1.0), "clip_high": float(high)}


def _vanilla_settings(config: Any) -> PolicySettings | None:
    dual_clip = float(config.get("clip_ratio_c", 3.0))
    if dual_clip <= 1.0:
        return None
    return _policy("clip", dual_clip=dual_clip, log_ratio_clamp=_CLAMP, **_bounds(config))


def _gspo_settings(config: Any) -> PolicySettings:
    return _policy("clip", "sequence", **_bounds(config))


def _cispo_settings(config: Any) -> PolicySettings:
    return _policy("cispo", log_ratio_clamp=_CLAMP, **_bounds(config))


def _sapo_settings(config: Any) -> PolicySettings:
    temperatures = {"positive_temperature": float(config.tau_pos), "negative_temperature": float(config.tau_neg)}
    return _policy("sapo", log_ratio_clamp=_CLAMP, **temperatures)


def _policy_loss(
    settings_of: Callable[[Any], PolicySettings | None], default_mode: str, fixed_mode: str | None = None
) -> Callable[[Any], Any]:
    """A stand-in for a policy loss of verl. fixed_mode: its mean, whatever it is asked for."""

    def stand_in(own: Callable[..., Any]) -> Callable[..., Any]:
        def compute_policy_loss(
            old_log_prob: Tensor,
            log_prob: Tensor,
            advantages: Tensor,
            response_mask: Tensor,
            loss_agg_mode: str = default_mode,
            config: Any = None,
            rollout_is_weights: Tensor | None = None,
        ) -> tuple[Tensor, dict[str, float]]:
            given = (old_log_prob, log_prob, advantages, response_mask, loss_agg_mode, config, rollout_is_weights)
            constants = [x for x in (old_log_prob, advantages, rollout_is_weights) if x is not None]
            if config is None or not plain(log_prob, *constants) or any(x.requires_grad for x in constants):
                return own(*given)
            mask, settings = counted(response_mask), settings_of(config)
            mean = None if mask is None else _mean(mask, fixed_mode or loss_agg_mode, **config.global_batch_info)
            if mask is None or settings is None or mean is None:
                return own(*given)
            log_ratios = torch.where(mask, log_prob.detach() - old_log_prob, 0.0)
            if settings.ratio == "sequence" and _is_beyond(log_ratios, mask):
                return own(*given)
            found = ppo.clipped_policy_loss(
                log_prob,
                old_log_prob,
                advantages,
                mask,
                weights=mean.weighted(rollout_is_weights),
                num_tokens=mean.num_tokens,
                settings=settings,
            )
            return mean.scaled(found.loss), _metrics(found, log_ratios, settings.log_ratio_clamp)

        return compute_policy_loss

    return stand_in


def _is_beyond(log_ratios: Tensor, mask: Tensor) -> bool:
    """Whether a mean over a sequence is above the clamp that ours does not have."""
    if not log_ratios.numel() or float(log_ratios.amax()) <= _SEQUENCE_CLAMP:
        return False
    return bool((log_ratios.sum(-1) / mask.sum(-1).clamp(min=1) > _SEQUENCE_CLAMP).any())


def _metrics(found: ppo.PolicyLoss, log_ratios: Tensor, clamp: float | None) -> dict[str, float]:
    """As verl names them, read from the device at once. log_ratios: 0 where the mask is False."""
    kl = -(log_ratios if clamp is None else log_ratios.clamp(-clamp, clamp)).sum()
    clipped, none = found.metrics["num_policy_clipped"], kl.new_zeros(())
    sums = torch.stack([clipped.to(kl.dtype), kl, found.metrics.get("num_dual_clipped", none).to(kl.dtype)])
    means = sums / (found.metrics["num_tokens"] + 1e-8)
    names = ("actor/pg_clipfrac", "actor/ppo_kl", "actor/pg_clipfrac_lower")
    return dict(zip(names, means.tolist(), strict=True))


@cache
def _value(cliprange: float) -> ValueSettings:
    return ValueSettings(cliprange=cliprange)


def _value_loss(own: Callable[..., Any]) -> Callable[..., Any]:
    def compute_value_loss(
        vpreds: Tensor,
        returns: Tensor,
        values: Tensor,
        response_mask: Tensor,
        cliprange_value: float,
        loss_agg_mode: str = "token-mean",
        dp_size: int = 1,
        batch_num_tokens: Any = None,
        global_batch_size: Any = None,
        loss_scale_factor: Any = None,
    ) -> tuple[Tensor, Tensor]:
        size = (loss_agg_mode, dp_size, batch_num_tokens, global_batch_size, loss_scale_factor)
        mask = counted(response_mask)
        computes = plain(vpreds, returns, values) and not (returns.requires_grad or values.requires_grad)
        mean = _mean(mask, *size) if mask is not None and computes else None
        if mask is None or mean is None:
            return own(vpreds, returns, values, response_mask, cliprange_value, *size)
        settings = _value(float(cliprange_value))
        how = {"weights": mean.weights, "num_tokens": mean.num_tokens, "settings": settings}
        found = ppo.clipped_value_loss(vpreds, values, returns, mask, **how)
        share = found.metrics["num_value_clipped"] / (found.metrics["num_tokens"] + 1e-8)
        return mean.scaled(found.loss), share

    return compute_value_loss


_ESTIMATORS = {"k1": "k1", "kl": "k1", "abs": "abs", "k2": "k2", "mse": "k2", "k3": "k3", "low_var_kl": "k3"}


@cache
def _kl(name: str) -> KLSettings | None:
    """None where the host raises, and where it is a subtraction."""
    estimator = _ESTIMATORS.get(name.removesuffix("+"))
    straight_through = name.endswith("+")
    if estimator is None or (estimator in ("k1", "abs") and not straight_through):
        return None
    input_clamp, output_clamp = (20.0, 10.0) if estimator == "k3" else (None, None)
    bounds: Any = {"input_clamp": input_clamp, "output_clamp": output_clamp}
    return KLSettings(estimator=estimator, straight_through=straight_through, **bounds)


def _kl_penalty(own: Callable[..., Any]) -> Callable[..., Any]:
    def penalty(logprob: Tensor, ref_logprob: Tensor, kl_penalty: str) -> Tensor:
        settings = _kl(kl_penalty)
        same = logprob.shape == ref_logprob.shape and plain(logprob, ref_logprob)
        if settings is None or ref_logprob.requires_grad or not same:
            return own(logprob, ref_logprob, kl_penalty)
        everywhere = torch.ones_like(logprob, dtype=torch.bool)
        return ppo.kl_token_losses(logprob, ref_logprob, everywhere, settings=settings)

    return penalty


def _registered(name: str) -> Callable[[Any], Callable[[], None]]:
    """verl's own hook: a loss that its settings choose by name."""

    def put(ours: Any) -> Callable[[], None]:
        module = importlib.import_module(_MODULE)
        module.register_policy_loss(name)(ours)
        return lambda: module.POLICY_LOSS_REGISTRY.pop(name, None) and None

    return put


def _config(**batch: Any) -> Any:
    """Of verl's class, which some of its losses insist on."""
    actor = importlib.import_module("verl.workers.config").ActorConfig
    config = actor(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio_high=0.28)
    config.global_batch_info.update(batch)
    return config


def _policies(draw: Draw) -> list[Example]:
    """Every mean, with weights and without, ratios on both sides of each bound."""
    shape, found = (draw.sizes.batch, draw.sizes.tokens), []
    size = {"dp_size": 2, "batch_num_tokens": 77, "global_batch_size": 12, "loss_scale_factor": None}
    for number, mode in enumerate((*_MODES, *_MODES)):
        old, mask = draw.normal(*shape), draw.lengths(*shape)
        new = (old + draw.normal(*shape)).requires_grad_()
        weights = draw.normal(*shape).exp() if number % 2 else None
        config = _config(**(size if number >= len(_MODES) else {}))
        given = (old, new, draw.normal(*shape), mask.float() if number % 3 == 1 else mask, mode, config, weights)
        found.append(Example(given))
    return found


def _values(draw: Draw) -> list[Example]:
    shape, found = (draw.sizes.batch, draw.sizes.tokens), []
    for number, mode in enumerate((*_MODES, *_MODES)):
        values, mask = draw.normal(*shape), draw.lengths(*shape)
        new = (values + draw.normal(*shape)).requires_grad_()
        size = {"dp_size": 2, "batch_num_tokens": 77, "global_batch_size": 12, "loss_scale_factor": 2.5}
        given = (new, draw.normal(*shape), values, mask.float() if number % 3 == 1 else mask, 0.5, mode)
        found.append(Example(given, size if number >= len(_MODES) else {}))
    return found


def _penalties(draw: Draw) -> list[Example]:
    shape = (draw.sizes.batch, draw.sizes.tokens)
    names = ("k3", "low_var_kl", "k3+", "k2", "mse", "kl", "abs", "k1+", "abs+", "mse+")
    # So far apart that both clamps are reached.
    return [
        Example((draw.normal(*shape, scale=9.0, grad=True), draw.normal(*shape, scale=9.0), name)) for name in names
    ]


_BATCH = Sizes(batch=64, tokens=1024)


def _policy_row(name: str, put: str, stand_in: Callable[[Any], Any], signature: str, source: str) -> Replacement:
    return Replacement(
        name=f"{_MODULE}:compute_policy_loss_{name}",
        signature=signature,
        sources=(source,),
        stand_in=stand_in,
        examples=_policies,
        put=_registered(put),
        measured=_BATCH,
    )


_TOKEN = (
    "(old_log_prob, log_prob, advantages, response_mask, loss_agg_mode='token-mean', config=None, "
    "rollout_is_weights=None)"
)
_SEQUENCE = _TOKEN.replace("token-mean", "seq-mean-token-mean")

ROWS = (
    _policy_row("vanilla", "instructrl", _policy_loss(_vanilla_settings, "token-mean"), _TOKEN, "1a0214517a6d"),
    _policy_row(
        "gspo", "instructrl_gspo", _policy_loss(_gspo_settings, "seq-mean-token-mean"), _SEQUENCE, "fd4ceb495b6b"
    ),
    _policy_row("cispo", "instructrl_cispo", _policy_loss(_cispo_settings, "token-mean"), _TOKEN, "ed3e38ae6bcf"),
    _policy_row(
        "sapo",
        "instructrl_sapo",
        _policy_loss(_sapo_settings, "seq-mean-token-mean", "seq-mean-token-mean"),
        _SEQUENCE,
        "9e9994716c61",
    ),
    Replacement(
        name=f"{_MODULE}:compute_value_loss",
        signature="(vpreds, returns, values, response_mask, cliprange_value, loss_agg_mode='token-mean', "
        "dp_size=1, batch_num_tokens=None, global_batch_size=None, loss_scale_factor=None)",
        sources=("8e4bdebbeb6a",),
        stand_in=_value_loss,
        examples=_values,
        measured=_BATCH,
    ),
    Replacement(
        name=f"{_MODULE}:kl_penalty",
        signature="(logprob, ref_logprob, kl_penalty)",
        sources=("a2d1ace64346",),
        stand_in=_kl_penalty,
        examples=_penalties,
        measured=_BATCH,
    ),
)
