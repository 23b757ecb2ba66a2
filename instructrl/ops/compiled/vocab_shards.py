"""Implementations of `instructrl.ops.vocab_shards` by row kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instructrl.ops import class_rows, compiled_linear, linear_chunks, private_ops


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


def _linear_shard_rows(prefix: str) -> Callable[..., Any]:
    row = class_rows.of_shards(compiled_linear.row_kernels(prefix))

    def linear_shard_rows(*args: Any) -> tuple[Tensor, ...]:
        chosen, entropy, normalizers, _ = linear_chunks.forward(row, *args, False)
        return chosen, entropy, normalizers.view(*chosen.shape, 2)

    return torch.no_grad()(linear_shard_rows)


def _linear_shard_gradients(prefix: str) -> Callable[..., Any]:
    row = class_rows.of_shards(compiled_linear.row_kernels(prefix))

    def linear_shard_gradients(*args: Any) -> tuple[Tensor, ...]:
        *tensors, normalizers, entropy, grad_logprobs, grad_entropy, temperature, slope, workspace, wanted = args
        upstream = (grad_logprobs, grad_entropy, temperature, slope, workspace, list(wanted))
        return linear_chunks.backward(row, *tensors, normalizers.reshape(-1, 2), entropy, None, *upstream)

    return torch.no_grad()(linear_shard_gradients)


IMPLEMENTATIONS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "vocab_shards.shard_rows": _shard_rows,
    "vocab_shards.shard_gradient": _shard_gradient,
    "vocab_shards.linear_shard_rows": _linear_shard_rows,
    "vocab_shards.linear_shard_gradients": _linear_shard_gradients,
}
