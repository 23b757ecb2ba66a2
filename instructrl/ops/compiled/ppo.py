"""Implementations of `instructrl.ops.ppo` by private ops.

The losses as they were published have kernels of their own, which know of no other settings; all others share one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instructrl.ops import checks, private_ops
from instructrl.ops.autograd import attach_derivative
from instructrl.ops.compiled.calls import PrivateOp, named, of_one_dtype, run_loss
from instructrl.ops.ppo_reference import PolicyLoss, PPOLoss, ValueLoss, metric_names
from instructrl.ops.ppo_settings import (
    KLSettings,
    PolicySettings,
    PPOSettings,
    ValueSettings,
    flat,
    is_plain_policy,
    is_plain_ppo,
)
from instructrl.ops.ppo_terms import GENERAL_METRICS, POLICY_METRICS, PPO_METRICS, VALUE_METRICS

_LOGPROBS, _VALUES = 0, 4
"""Among the arguments of `general_ppo_loss`."""


def _general_inputs(
    mask: Tensor,
    *,
    logprobs: Tensor | None = None,
    old_logprobs: Tensor | None = None,
    log_ratios: Tensor | None = None,
    advantages: Tensor | None = None,
    values: Tensor | None = None,
    old_values: Tensor | None = None,
    returns: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """The tensors of `general_ppo_loss` in its order, in the dtypes that a kernel reads."""
    model = [x for x in (logprobs, old_logprobs, advantages, values, old_values, returns) if x is not None]
    dtype = checks.accumulation_dtype(*model)
    read = model[0].dtype
    for x in (*model, ref_logprobs):
        if x is not None and x.dtype != read:
            # The reference is read in the dtype of the loss, which is not its to choose.
            read = dtype
            break
    first = (_to(logprobs, read), _to(old_logprobs, read), _to(log_ratios, dtype), _to(advantages, read))
    critic = (_to(values, read), _to(old_values, read), _to(returns, read))
    return *first, *critic, mask, _to(ref_logprobs, read), _to(weights, dtype)


def _to(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)


def _read_as_one(tensors: tuple[Tensor, ...], ref_logprobs: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """All in one dtype, which the reference does not choose."""
    tensors = of_one_dtype(*tensors)
    if ref_logprobs is not None and ref_logprobs.dtype != tensors[0].dtype:
        dtype = checks.accumulation_dtype(*tensors)
        return tuple(x.to(dtype) for x in tensors), ref_logprobs.to(dtype)
    return tensors, ref_logprobs


def _general(prefix: str) -> Callable[..., tuple[Any, ...]]:
    """From inputs, denominator and flat settings: loss, policy loss, value loss, metrics by name."""
    op: PrivateOp = private_ops.get(prefix, "general_ppo_loss")

    def reduced(*args: Any) -> tuple[Tensor, ...]:
        return op(*args)[:4]

    def run(inputs: tuple[Tensor | None, ...], mask: Tensor, num_tokens: Any, settings: list[float]) -> tuple[Any, ...]:
        count = private_ops.as_count(num_tokens, mask.device)
        *losses, metrics = run_loss(reduced, (_LOGPROBS, _VALUES), *inputs, count, settings, False)
        return *losses, named(metrics, GENERAL_METRICS)

    return run


def _chosen(metrics: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: metrics[name] for name in names}


def _clipped_policy_loss(prefix: str) -> Callable[..., PolicyLoss]:
    op, general = private_ops.get(prefix, "clipped_policy_loss"), _general(prefix)

    def clipped_policy_loss(
        logprobs: Tensor,
        old_logprobs: Tensor | None,
        advantages: Tensor,
        mask: Tensor,
        log_ratios: Tensor | None,
        weights: Tensor | None,
        num_tokens: int | Tensor | None,
        settings: PolicySettings,
    ) -> PolicyLoss:
        if old_logprobs is not None and is_plain_policy(old_logprobs, weights, settings):
            inputs = of_one_dtype(logprobs, old_logprobs, advantages)
            count = private_ops.as_count(num_tokens, mask.device)
            loss, metrics = run_loss(op, (0,), *inputs, mask, count, settings.clip_low, settings.clip_high)
            return PolicyLoss(loss, named(metrics, POLICY_METRICS))
        inputs = _general_inputs(
            mask, logprobs=logprobs, old_logprobs=old_logprobs, log_ratios=log_ratios, advantages=advantages,
            weights=weights,
        )  # fmt: skip
        loss, _, _, metrics = general(inputs, mask, num_tokens, flat(policy=settings))
        return PolicyLoss(loss, _chosen(metrics, metric_names(POLICY_METRICS, settings)))

    return clipped_policy_loss


def _clipped_value_loss(prefix: str) -> Callable[..., ValueLoss]:
    op, general = private_ops.get(prefix, "clipped_value_loss"), _general(prefix)

    def clipped_value_loss(
        values: Tensor,
        old_values: Tensor,
        returns: Tensor,
        mask: Tensor,
        weights: Tensor | None,
        num_tokens: int | Tensor | None,
        settings: ValueSettings,
    ) -> ValueLoss:
        if weights is None:
            inputs = of_one_dtype(values, old_values, returns)
            count = private_ops.as_count(num_tokens, mask.device)
            loss, metrics = run_loss(op, (0,), *inputs, mask, count, settings.cliprange)
            return ValueLoss(loss, named(metrics, VALUE_METRICS))
        inputs = _general_inputs(mask, values=values, old_values=old_values, returns=returns, weights=weights)
        loss, _, _, metrics = general(inputs, mask, num_tokens, flat(value=settings))
        return ValueLoss(loss, _chosen(metrics, VALUE_METRICS))

    return clipped_value_loss


def _ppo_loss(prefix: str) -> Callable[..., PPOLoss]:
    op, general = private_ops.get(prefix, "ppo_loss"), _general(prefix)

    def ppo_loss(
        logprobs: Tensor,
        old_logprobs: Tensor | None,
        advantages: Tensor,
        values: Tensor | None,
        old_values: Tensor | None,
        returns: Tensor | None,
        mask: Tensor,
        ref_logprobs: Tensor | None,
        log_ratios: Tensor | None,
        weights: Tensor | None,
        num_tokens: int | Tensor | None,
        settings: PPOSettings,
    ) -> PPOLoss:
        policy, kl = settings.policy, settings.kl
        if is_plain_ppo(old_logprobs, values, ref_logprobs, weights, settings):
            per_token = (logprobs, old_logprobs, advantages, values, old_values, returns)
            per_token, ref_logprobs = _read_as_one(per_token, ref_logprobs)  # pyright: ignore[reportArgumentType]
            numbers = (policy.clip_low, policy.clip_high, settings.value.cliprange, settings.vf_coef, kl.coef)
            count = private_ops.as_count(num_tokens, mask.device)
            results = run_loss(op, (0, 3), *per_token, mask, ref_logprobs, count, *numbers)
            loss, of_policy, of_value, metrics = results
            return PPOLoss(loss, of_policy, of_value, named(metrics, PPO_METRICS))
        inputs = _general_inputs(
            mask, logprobs=logprobs, old_logprobs=old_logprobs, log_ratios=log_ratios, advantages=advantages,
            values=values, old_values=old_values, returns=returns, ref_logprobs=ref_logprobs, weights=weights,
        )  # fmt: skip
        numbers = flat(policy, settings.value, settings.vf_coef, kl, kl.coef)
        loss, of_policy, of_value, metrics = general(inputs, mask, num_tokens, numbers)
        return PPOLoss(loss, of_policy, of_value, _chosen(metrics, metric_names(PPO_METRICS, policy)))

    return ppo_loss


def _token_losses(prefix: str) -> Callable[..., tuple[Tensor, ...]]:
    """From inputs and flat settings: the losses of tokens, their derivatives by log-probabilities and by values."""
    op = private_ops.get(prefix, "general_ppo_loss")

    @torch.no_grad()
    def run(inputs: tuple[Tensor | None, ...], settings: list[float]) -> tuple[Tensor, ...]:
        _, by_logprob, by_value, _, losses = op(*inputs, None, settings, True)
        return losses, by_logprob, by_value

    return run


def _policy_token_losses(prefix: str) -> Callable[..., Tensor]:
    run = _token_losses(prefix)

    def policy_token_losses(
        logprobs: Tensor,
        old_logprobs: Tensor | None,
        advantages: Tensor,
        mask: Tensor,
        log_ratios: Tensor | None,
        weights: Tensor | None,
        settings: PolicySettings,
    ) -> Tensor:
        inputs = _general_inputs(
            mask, logprobs=logprobs, old_logprobs=old_logprobs, log_ratios=log_ratios, advantages=advantages,
            weights=weights,
        )  # fmt: skip
        losses, derivative, _ = run(inputs, flat(policy=settings))
        return attach_derivative(logprobs, losses, derivative)

    return policy_token_losses


def _value_token_losses(prefix: str) -> Callable[..., Tensor]:
    run = _token_losses(prefix)

    def value_token_losses(
        values: Tensor,
        old_values: Tensor,
        returns: Tensor,
        mask: Tensor,
        weights: Tensor | None,
        settings: ValueSettings,
    ) -> Tensor:
        inputs = _general_inputs(mask, values=values, old_values=old_values, returns=returns, weights=weights)
        losses, _, derivative = run(inputs, flat(value=settings))
        return attach_derivative(values, losses, derivative)

    return value_token_losses


def _kl_token_losses(prefix: str) -> Callable[..., Tensor]:
    run = _token_losses(prefix)

    def kl_token_losses(
        logprobs: Tensor,
        ref_logprobs: Tensor,
        old_logprobs: Tensor | None,
        mask: Tensor,
        weights: Tensor | None,
        settings: KLSettings,
    ) -> Tensor:
        inputs = _general_inputs(
            mask, logprobs=logprobs, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs, weights=weights
        )
        losses, derivative, _ = run(inputs, flat(kl=settings, kl_coef=1.0))
        return attach_derivative(logprobs, losses, derivative)

    return kl_token_losses


IMPLEMENTATIONS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "ppo.clipped_policy_loss": _clipped_policy_loss,
    "ppo.clipped_value_loss": _clipped_value_loss,
    "ppo.ppo_loss": _ppo_loss,
    "ppo.policy_token_losses": _policy_token_losses,
    "ppo.value_token_losses": _value_token_losses,
    "ppo.kl_token_losses": _kl_token_losses,
}
