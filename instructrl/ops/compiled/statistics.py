"""Implementations of `instructrl.ops.statistics` by private ops."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from instructrl.ops import checks, compiled_linear, linear_chunks, private_ops
from instructrl.ops.autograd import first_order, savable
from instructrl.ops.class_rows import RowKernels
from instructrl.ops.compiled.calls import PrivateOp, wants_gradient
from instructrl.ops.logit_settings import LogitSettings

SCHEMAS = {
    # statistics: [..., 3], as row_statistics has them.
    "linear_token_statistics": "(Tensor hidden, Tensor weight, Tensor? bias, Tensor tokens, Tensor? mask,"
    " float temperature, float tanh_slope, SymInt workspace)"
    " -> (Tensor logprobs, Tensor entropy, Tensor normalizers, Tensor statistics)",
}


def _of_chunks(
    row: RowKernels,
    row_statistics: Callable[..., Tensor],
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    mask: Tensor | None,
    temperature: float,
    tanh_slope: float,
    workspace: int,
) -> tuple[Tensor, ...]:
    """`linear_chunks.forward` with the entropy, and the statistics of each chunk's rows while its logits are there."""
    found: list[Tensor] = []

    def forward_and_statistics(logits: Tensor, *selected: Any) -> tuple[Tensor, ...]:
        results = row.forward(logits, *selected)
        found.append(row_statistics(logits, *selected[:3], results[2], temperature, tanh_slope))
        return results

    arguments = (hidden, weight, bias, tokens, mask, temperature, tanh_slope, workspace, True, False)
    watched = row._replace(forward=forward_and_statistics)
    logprobs, entropy, normalizers, _ = linear_chunks.forward(watched, *arguments)
    statistics = torch.cat(found) if found else logprobs.new_empty((0, 3))
    if mask is not None and hidden.device.type == "cpu":
        counted = mask.reshape(-1).nonzero().squeeze(1)  # as in `linear_chunks`
        statistics = statistics.new_zeros((tokens.numel(), 3)).index_copy_(0, counted, statistics)
    return logprobs, entropy, normalizers, statistics.view(*tokens.shape, 3)


def _fake(hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, *_: Any) -> tuple[Tensor, ...]:
    shape, dtype = tokens.shape, checks.accumulation_dtype(hidden, weight)
    shapes = (shape, shape, (tokens.numel(), 2), (*shape, 3))
    return tuple(hidden.new_empty(shape, dtype=dtype) for shape in shapes)


def define(prefix: str) -> None:
    """Register the private op of a backend whose row kernels are registered."""
    row: RowKernels = compiled_linear.row_kernels(prefix)
    implementation = partial(_of_chunks, row, private_ops.get(prefix, "row_statistics"))
    private_ops.define(prefix, SCHEMAS, {"linear_token_statistics": implementation}, ("CPU", "CUDA"))
    private_ops.define_fakes(prefix, {"linear_token_statistics": _fake})


class _TokenStatistics(torch.autograd.Function):
    """ops: forward, statistics, backward."""

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
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = (temperature, tanh_slope)
        logprobs, entropy, normalizers = ops[0](logits, tokens, mask, allowed, *shape, True)
        statistics = ops[1](logits, tokens, mask, allowed, normalizers, *shape)
        ctx.op, ctx.shape = ops[2], shape
        ctx.save_for_backward(logits, savable(tokens), savable(mask), savable(allowed), normalizers, entropy)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(statistics)
        return logprobs, entropy, statistics

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:  # pyright: ignore
        return None, ctx.op(*ctx.saved_tensors, *grads[:2], *ctx.shape), *(None,) * 5


class _LinearTokenStatistics(torch.autograd.Function):
    """ops: forward, backward, which makes the logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        ops: tuple[PrivateOp, PrivateOp],
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        mask: Tensor | None,
        temperature: float,
        tanh_slope: float,
        workspace: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        numbers = (temperature, tanh_slope, workspace)
        inputs = (savable(hidden), savable(weight), savable(bias), savable(tokens), savable(mask))
        logprobs, entropy, normalizers, statistics = ops[0](*inputs, *numbers)
        ctx.op, ctx.numbers = ops[1], numbers
        ctx.save_for_backward(*inputs, normalizers, entropy)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(statistics)
        return logprobs, entropy, statistics

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:  # pyright: ignore
        wanted = list(ctx.needs_input_grad[1:4])
        gradients = ctx.op(*ctx.saved_tensors, None, *grads[:2], *ctx.numbers, wanted)
        found = zip(gradients, ctx.saved_tensors, wanted, strict=False)
        return None, *(g.to(x.dtype) if want else None for g, x, want in found), *(None,) * 5


def _read(logprobs: Tensor, entropy: Tensor, statistics: Tensor, units: float) -> tuple[Tensor, ...]:
    """units: what a kernel's z is to be multiplied by."""
    mean, squares, is_largest = statistics.unbind(-1)
    return logprobs, entropy, is_largest == 1.0, mean * units, squares


def _token_statistics(prefix: str) -> Callable[..., Any]:
    names = ("token_logprobs", "row_statistics", "token_logprobs_backward")
    ops = tuple(private_ops.get(prefix, name) for name in names)

    def token_statistics(*args: Any) -> tuple[Tensor, ...]:
        *tensors, temperature, settings = args
        assert isinstance(settings, LogitSettings)
        shape = settings.folded(temperature)
        if wants_gradient(tensors[0]):
            found = _TokenStatistics.apply(ops, *tensors, *shape)
        else:
            logprobs, entropy, normalizers = ops[0](*tensors, *shape, True)
            found = (logprobs, entropy, ops[1](*tensors, normalizers, *shape))
        return _read(*found, temperature / shape[0])  # pyright: ignore

    return token_statistics


def _linear_token_statistics(prefix: str) -> Callable[..., Any]:
    ops = tuple(private_ops.get(prefix, name) for name in ("linear_token_statistics", "linear_token_logprobs_backward"))

    def linear_token_statistics(*args: Any) -> tuple[Tensor, ...]:
        *tensors, temperature, settings, workspace = args
        assert isinstance(settings, LogitSettings)
        shape = settings.folded(temperature)
        if wants_gradient(*tensors[:3]):
            found = _LinearTokenStatistics.apply(ops, *tensors, *shape, workspace)
        else:
            with torch.no_grad():
                logprobs, entropy, _, statistics = ops[0](*tensors, *shape, workspace)
            found = (logprobs, entropy, statistics)
        return _read(*found, temperature / shape[0])  # pyright: ignore

    return linear_token_statistics


IMPLEMENTATIONS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "statistics.token_statistics": _token_statistics,
    "statistics.linear_token_statistics": _linear_token_statistics,
}
