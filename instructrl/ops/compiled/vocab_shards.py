"""Implementations of `instructrl.ops.vocab_shards` by row kernels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from instructrl.ops import checks, class_rows, compiled_linear, linear_chunks, private_ops
from instructrl.ops.class_rows import RowKernels

SCHEMAS = {
    # The token's z in place of its log-probability, entropy and normalizers of the shard alone.
    "linear_shard_rows": "(Tensor hidden, Tensor weight, Tensor? bias, Tensor tokens, Tensor? mask,"
    " float temperature, float tanh_slope, SymInt workspace, bool with_entropy)"
    " -> (Tensor chosen, Tensor entropy, Tensor normalizers)",
    # normalizers, entropy: of the whole vocabulary. wanted: as in linear_token_logprobs_backward.
    "linear_shard_gradients": "(Tensor hidden, Tensor weight, Tensor? bias, Tensor tokens, Tensor? mask,"
    " Tensor normalizers, Tensor? entropy, Tensor? grad_logprobs, Tensor? grad_entropy,"
    " float temperature, float tanh_slope, SymInt workspace, bool[] wanted)"
    " -> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
}


def _shard_rows(prefix: str) -> Callable[..., Any]:
    forward = private_ops.get(prefix, "token_logprobs")

    def shard_rows(logits: Tensor, tokens: Tensor, mask: Tensor | None, *others: Any) -> tuple[Tensor, ...]:
        return class_rows.shard_forward(forward, logits, tokens, mask, None, *others)

    return torch.no_grad()(shard_rows)


def _shard_gradient(prefix: str) -> Callable[..., Tensor]:
    backward = private_ops.get(prefix, "token_logprobs_backward")

    def shard_gradient(logits: Tensor, tokens: Tensor, mask: Tensor | None, *others: Any) -> Tensor:
        return class_rows.shard_backward(backward, logits, tokens, mask, None, *others)

    return torch.no_grad()(shard_gradient)


def _linear_shard_rows(row: RowKernels, *args: Any) -> tuple[Tensor, ...]:
    arguments: list[Any] = [*args, False]
    chosen, entropy, normalizers, _ = linear_chunks.forward(row, *arguments)
    return chosen, entropy, normalizers.view(*chosen.shape, 2)


def _linear_shard_gradients(row: RowKernels, *args: Any) -> tuple[Tensor, ...]:
    *tensors, normalizers, entropy, grad_logprobs, grad_entropy, temperature, slope, workspace, wanted = args
    upstream = (grad_logprobs, grad_entropy, temperature, slope, workspace, wanted)
    arguments: list[Any] = [*tensors, normalizers.reshape(-1, 2), entropy, None, *upstream]
    return linear_chunks.backward(row, *arguments)


def _fake_linear_rows(hidden: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, ...]:
    shape, dtype = hidden.shape[:-1], checks.accumulation_dtype(hidden, weight)
    shapes = (shape, shape if others[-1] else (0,), (*shape, 2))
    return tuple(hidden.new_empty(shape, dtype=dtype) for shape in shapes)


def define(prefix: str) -> None:
    """Register the private ops of a backend whose row kernels are registered."""
    row = class_rows.of_shards(compiled_linear.row_kernels(prefix))
    implementations = {
        "linear_shard_rows": partial(_linear_shard_rows, row),
        "linear_shard_gradients": partial(_linear_shard_gradients, row),
    }
    private_ops.define(prefix, SCHEMAS, implementations, ("CPU", "CUDA"))
    fakes = {"linear_shard_rows": _fake_linear_rows, "linear_shard_gradients": compiled_linear.fake_backward}
    private_ops.define_fakes(prefix, fakes)


def _linear(prefix: str, name: str) -> Callable[..., Any]:
    op = private_ops.get(prefix, name)
    return torch.no_grad()(lambda *args: op(*args))


IMPLEMENTATIONS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "vocab_shards.shard_rows": _shard_rows,
    "vocab_shards.shard_gradient": _shard_gradient,
    "vocab_shards.linear_shard_rows": lambda prefix: _linear(prefix, "linear_shard_rows"),
    "vocab_shards.linear_shard_gradients": lambda prefix: _linear(prefix, "linear_shard_gradients"),
}
