"""Implementations of `instructrl.ops.logprobs` by private ops."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instructrl.ops import private_ops
from instructrl.ops.autograd import first_order, savable
from instructrl.ops.compiled.calls import PrivateOp, wants_gradient
from instructrl.ops.logit_settings import LogitSettings


def _has_rows(logits: Tensor) -> bool:
    """Whether two strides say where each row of [..., V] starts, which is what the op that writes over them needs."""
    return logits.stride(-1) == 1 and (logits.dim() <= 3 or logits.is_contiguous())


class _TokenLogprobs(torch.autograd.Function):
    """ops: forward, backward, backward over the logits, which is taken when `inplace`."""

    @staticmethod
    def forward(
        ctx: Any,
        ops: tuple[PrivateOp, PrivateOp, PrivateOp],
        logits: Tensor,
        tokens: Tensor,
        mask: Tensor | None,
        allowed: Tensor | None,
        temperature: float,
        tanh_slope: float,
        with_entropy: bool,
        inplace: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:
        logprobs, entropy, normalizers = ops[0](logits, tokens, mask, allowed, temperature, tanh_slope, with_entropy)
        ctx.ops, ctx.shape, ctx.inplace = ops, (temperature, tanh_slope), inplace
        constants = (savable(tokens), savable(mask), savable(allowed))
        saved = (*constants, normalizers, entropy if with_entropy else None)
        ctx.save_for_backward(logits, *saved)
        ctx.set_materialize_grads(False)
        return (logprobs, entropy) if with_entropy else logprobs

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None = None) -> tuple[Any, ...]:  # pyright: ignore
        logits, *others = ctx.saved_tensors
        gradient = logits
        if not ctx.inplace:
            gradient = ctx.ops[1](logits, *others, grad_logprobs, grad_entropy, *ctx.shape)
        elif _has_rows(logits):
            ctx.ops[2](logits, *others, grad_logprobs, grad_entropy, *ctx.shape)
            # Whoever saved the logits for a backward of their own gets autograd's error, a second backward of this
            # function included. An op from C++ does not count its writes by itself.
            torch.autograd.graph.increment_version(logits)
        else:
            logits.copy_(ctx.ops[1](logits, *others, grad_logprobs, grad_entropy, *ctx.shape))
        return None, gradient, *(None,) * 7


def _token_logprobs(prefix: str, with_entropy: bool) -> Callable[..., Any]:
    names = ("token_logprobs", "token_logprobs_backward", "token_logprobs_backward_")
    forward, *backwards = (private_ops.get(prefix, name) for name in names)
    ops = (forward, *backwards)

    def token_logprobs(
        logits: Tensor,
        tokens: Tensor,
        mask: Tensor | None,
        allowed: Tensor | None,
        temperature: float,
        settings: LogitSettings,
        inplace_backward: bool,
    ) -> Any:
        arguments = (logits, tokens, mask, allowed, *settings.folded(temperature), with_entropy)
        if wants_gradient(logits):
            return _TokenLogprobs.apply(ops, *arguments, inplace_backward)
        results = forward(*arguments)
        return results[:2] if with_entropy else results[0]

    return token_logprobs


IMPLEMENTATIONS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "logprobs.token_logprobs": lambda prefix: _token_logprobs(prefix, False),
    "logprobs.token_logprobs_and_entropy": lambda prefix: _token_logprobs(prefix, True),
}
