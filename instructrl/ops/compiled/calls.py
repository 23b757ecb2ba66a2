"""What the calls of private ops have in common: dtypes, and losses that come with their gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instructrl.ops import checks
from instructrl.ops.autograd import loss_with_gradients

PrivateOp = Callable[..., Any]


def of_one_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as they are where their dtypes agree, else in the accumulation dtype."""
    first = tensors[0].dtype
    for tensor in tensors:
        if tensor.dtype != first:
            dtype = checks.accumulation_dtype(*tensors)
            return tuple(x.to(dtype) for x in tensors)
    return tensors


def wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def run_loss(op: PrivateOp, differentiable: tuple[int, ...], *args: Any) -> tuple[Any, ...]:
    """Losses without the scale, then the metrics."""
    if wants_gradient(*(args[place] for place in differentiable)):
        loss, losses, metrics = loss_with_gradients(op, differentiable, *args)
        return loss, *losses.unbind()[1:-1], metrics
    with torch.no_grad():
        losses, *_, metrics = op(*args)
    return *losses.unbind()[:-1], metrics


def named(metrics: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    return dict(zip(names, metrics.unbind(), strict=True))
