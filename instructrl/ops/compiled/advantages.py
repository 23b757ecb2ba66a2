"""Implementations of `instructrl.ops.advantages` by private ops."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instructrl.ops import checks, private_ops
from instructrl.ops.advantages import Advantages
from instructrl.ops.compiled.calls import of_one_dtype


def _generalized_advantages(prefix: str) -> Callable[..., tuple[Tensor, Tensor]]:
    op = private_ops.get(prefix, "generalized_advantages")

    @torch.no_grad()
    def generalized_advantages(rewards: Tensor, values: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        return op(*of_one_dtype(rewards, values), *others)

    return generalized_advantages


def _ppo_advantages(prefix: str) -> Callable[..., Advantages]:
    op = private_ops.get(prefix, "ppo_advantages")

    @torch.no_grad()
    def ppo_advantages(
        logprobs: Tensor, ref_logprobs: Tensor, values: Tensor, scores: Tensor, *others: Any
    ) -> Advantages:
        dtype = checks.accumulation_dtype(logprobs, ref_logprobs, values, scores)
        inputs = of_one_dtype(logprobs, ref_logprobs, values)
        if dtype == torch.float64 and inputs[0].dtype != torch.float64:
            inputs = tuple(x.to(dtype) for x in inputs)
        return Advantages(*op(*inputs, scores.to(dtype), *others))

    return ppo_advantages


def _masked_whiten(prefix: str) -> Callable[..., Tensor]:
    return torch.no_grad()(private_ops.get(prefix, "masked_whiten"))


IMPLEMENTATIONS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "advantages.generalized_advantages": _generalized_advantages,
    "advantages.ppo_advantages": _ppo_advantages,
    "advantages.masked_whiten": _masked_whiten,
}
