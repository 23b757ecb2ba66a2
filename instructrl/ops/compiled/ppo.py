"""Implementations of `instructrl.ops.ppo` by private ops."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from instructrl.ops import checks, private_ops
from instructrl.ops.compiled.calls import named, of_one_dtype, run_loss
from instructrl.ops.ppo import PolicyLoss, PPOLoss, ValueLoss
from instructrl.ops.ppo_terms import POLICY_METRICS, PPO_METRICS, VALUE_METRICS, Settings


def _clipped_policy_loss(prefix: str) -> Callable[..., PolicyLoss]:
    op = private_ops.get(prefix, "clipped_policy_loss")

    def clipped_policy_loss(
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        num_tokens: int | Tensor | None,
        cliprange: float,
    ) -> PolicyLoss:
        inputs = of_one_dtype(logprobs, old_logprobs, advantages)
        loss, metrics = run_loss(op, (0,), *inputs, mask, private_ops.as_count(num_tokens, mask.device), cliprange)
        return PolicyLoss(loss, named(metrics, POLICY_METRICS))

    return clipped_policy_loss


def _clipped_value_loss(prefix: str) -> Callable[..., ValueLoss]:
    op = private_ops.get(prefix, "clipped_value_loss")

    def clipped_value_loss(
        values: Tensor,
        old_values: Tensor,
        returns: Tensor,
        mask: Tensor,
        num_tokens: int | Tensor | None,
        cliprange_value: float,
    ) -> ValueLoss:
        inputs = of_one_dtype(values, old_values, returns)
        loss, metrics = run_loss(
            op, (0,), *inputs, mask, private_ops.as_count(num_tokens, mask.device), cliprange_value
        )
        return ValueLoss(loss, named(metrics, VALUE_METRICS))

    return clipped_value_loss


def _ppo_loss(prefix: str) -> Callable[..., PPOLoss]:
    op = private_ops.get(prefix, "ppo_loss")

    def ppo_loss(
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        values: Tensor,
        old_values: Tensor,
        returns: Tensor,
        mask: Tensor,
        ref_logprobs: Tensor | None,
        num_tokens: int | Tensor | None,
        settings: Settings,
    ) -> PPOLoss:
        inputs = of_one_dtype(logprobs, old_logprobs, advantages, values, old_values, returns)
        if ref_logprobs is not None and ref_logprobs.dtype != inputs[0].dtype:
            # The reference is read in the dtype of the loss, which is not its to choose.
            dtype = checks.accumulation_dtype(*inputs)
            inputs, ref_logprobs = tuple(x.to(dtype) for x in inputs), ref_logprobs.to(dtype)
        count = private_ops.as_count(num_tokens, mask.device)
        results = run_loss(op, (0, 3), *inputs, mask, ref_logprobs, count, *settings)
        loss, policy_loss, value_loss, metrics = results
        return PPOLoss(loss, policy_loss, value_loss, named(metrics, PPO_METRICS))

    return ppo_loss


IMPLEMENTATIONS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "ppo.clipped_policy_loss": _clipped_policy_loss,
    "ppo.clipped_value_loss": _clipped_value_loss,
    "ppo.ppo_loss": _ppo_loss,
}
