"""Implementation of `instructrl.ops.candidates` for logits by private ops, which are made of the row kernels' own."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from instructrl.ops import checks, class_rows, private_ops
from instructrl.ops.autograd import first_order, savable
from instructrl.ops.compiled.calls import wants_gradient
from instructrl.ops.logit_settings import LogitSettings

SCHEMAS = {
    # ids: [..., K]. The other arguments and the normalizers: as in token_logprobs.
    "candidate_logprobs": "(Tensor logits, Tensor ids, Tensor? mask, Tensor? allowed, float temperature,"
    " float tanh_slope) -> (Tensor logprobs, Tensor normalizers)",
    "candidate_logprobs_backward": "(Tensor logits, Tensor ids, Tensor? mask, Tensor? allowed, Tensor normalizers,"
    " Tensor grad_logprobs, float temperature, float tanh_slope) -> Tensor",
}


def _forward(forward: Callable[..., Any], *args: Any) -> tuple[Tensor, Tensor]:
    arguments: list[Any] = [*args, False]
    logprobs, _, normalizers = class_rows.candidates_forward(forward, *arguments)
    return logprobs, normalizers


def _backward(backward: Callable[..., Tensor], *args: Any) -> Tensor:
    *inputs, grad_logprobs, temperature, tanh_slope = args
    arguments: list[Any] = [*inputs, None, grad_logprobs, None, temperature, tanh_slope]
    return class_rows.candidates_backward(backward, *arguments)


def _fake_forward(logits: Tensor, ids: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = checks.accumulation_dtype(logits)
    return logits.new_empty(ids.shape, dtype=dtype), logits.new_empty((*ids.shape[:-1], 2), dtype=dtype)


def define(prefix: str) -> None:
    """Register the private ops of a backend whose row kernels are registered."""
    implementations = {
        "candidate_logprobs": partial(_forward, private_ops.get(prefix, "token_logprobs")),
        "candidate_logprobs_backward": partial(_backward, private_ops.get(prefix, "token_logprobs_backward")),
    }
    private_ops.define(prefix, SCHEMAS, implementations, ("CPU", "CUDA"))
    fakes = {
        "candidate_logprobs": _fake_forward,
        "candidate_logprobs_backward": lambda logits, *_: logits.new_empty(logits.shape),
    }
    private_ops.define_fakes(prefix, fakes)


class _CandidateLogprobs(torch.autograd.Function):
    """ops: forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        ops: tuple[Callable[..., Any], Callable[..., Any]],
        logits: Tensor,
        ids: Tensor,
        mask: Tensor | None,
        allowed: Tensor | None,
        temperature: float,
        tanh_slope: float,
    ) -> Tensor:
        logprobs, normalizers = ops[0](logits, ids, mask, allowed, temperature, tanh_slope)
        ctx.op, ctx.shape = ops[1], (temperature, tanh_slope)
        ctx.save_for_backward(logits, savable(ids), savable(mask), savable(allowed), normalizers)
        ctx.set_materialize_grads(False)
        return logprobs

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_logprobs: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        return None, ctx.op(*ctx.saved_tensors, grad_logprobs, *ctx.shape), *(None,) * 5


def _candidate_logprobs(prefix: str) -> Callable[..., Tensor]:
    forward, backward = (private_ops.get(prefix, name) for name in SCHEMAS)

    def candidate_logprobs(*args: Any) -> Tensor:
        *tensors, temperature, settings = args
        assert isinstance(settings, LogitSettings)
        arguments = (*tensors, *settings.folded(temperature))
        if wants_gradient(tensors[0]):
            return _CandidateLogprobs.apply((forward, backward), *arguments)  # pyright: ignore
        return forward(*arguments)[0]

    return candidate_logprobs


IMPLEMENTATIONS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "candidates.candidate_logprobs": _candidate_logprobs,
}
