"""What the operations that write their own backward have in common."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A `torch.autograd.Function.backward` whose result has no derivative: RuntimeError where one is asked for.

    Without any incoming gradient there is none.

    `torch.autograd.function.once_differentiable` raises only when the incoming gradient requires one itself, and a
    gradient penalty on a loss would be zero without a word.
    """

    @functools.wraps(backward)
    def refusing(ctx: Any, *grad_outputs: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                f"{backward.__qualname__}: found create_graph=True, accepted is a first backward: this gradient has"
                " no derivative (that of ops.use_backend('reference') has, for token_logprobs and the ranking loss)"
            )
        if all(grad is None for grad in grad_outputs):
            return (None,) * len(ctx.needs_input_grad)
        return backward(ctx, *grad_outputs)

    return refusing


def savable(x: Tensor | None) -> Tensor | None:
    """A constant as autograd may keep it: what was made under `torch.inference_mode()`, as rollouts are, is copied."""
    if x is None or torch.compiler.is_compiling() or not x.is_inference():
        return x
    return x.clone()
