"""The language-model head in token chunks: what the references of the `linear_*` operations share.

`[N, V]` is never held: the logits of a chunk are made, used and dropped, and a chunk is as long as the workspace
allows.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from instructrl.ops import checks
from instructrl.ops.autograd import first_order
from instructrl.ops.logit_settings import PLAIN, LogitSettings
from instructrl.ops.softmax_rows import by_logits, shaped_logits

CPU_WORKSPACE_BYTES = 96 * 2**20
# A loss has its gradients when it returns, and keeps no workspace for them.
CPU_LOSS_WORKSPACE_BYTES = 128 * 2**20
ACCELERATOR_WORKSPACE_BYTES = 2**30


class LinearHead(NamedTuple):
    """A language-model head in the accumulation dtype, with what is done to its logits.

    weight: [V, D]. bias: [V] or None.
    """

    weight: Tensor
    bias: Tensor | None
    temperature: float
    settings: LogitSettings = PLAIN

    def logits(self, hidden: Tensor) -> Tensor:
        """What is under the softmax: `shaped_logits(hidden @ weight.T + bias)`. hidden: [n, D] -> [n, V]."""
        transposed = self.weight.t()
        logits = hidden @ transposed if self.bias is None else torch.addmm(self.bias, hidden, transposed)
        return shaped_logits(logits, self.temperature, self.settings)


class HeadGradients:
    """Gradients of hidden, weight and bias, summed chunk by chunk; None for those that are not wanted."""

    def __init__(self, head: LinearHead, hidden: Tensor, wanted: tuple[bool, bool, bool]) -> None:
        wants_hidden, wants_weight, wants_bias = wanted
        self.head = head
        self.any_wanted = any(wanted)
        self.hidden = torch.empty_like(hidden, dtype=head.weight.dtype) if wants_hidden else None
        self.weight: Tensor | None = None
        self._wants_weight = wants_weight
        self.bias = torch.zeros_like(head.bias) if wants_bias and head.bias is not None else None

    def add(self, rows: slice, hidden: Tensor, gradient: Tensor, logits: Tensor) -> None:
        """hidden: [n, D], the rows of this chunk. logits: [n, V], the head's. gradient: [n, V], by temperature times
        those; it may be overwritten.
        """
        gradient = by_logits(gradient, logits, self.head.temperature, self.head.settings)
        if self.hidden is not None:
            self.hidden[rows] = gradient @ self.head.weight
        if self._wants_weight:
            # The first chunk writes, which saves filling [V, D] with zeros and reading it back.
            transposed = gradient.t()
            self.weight = transposed @ hidden if self.weight is None else self.weight.addmm_(transposed, hidden)
        if self.bias is not None:
            self.bias.add_(gradient.sum(0))


@torch.compiler.assume_constant_result
def _has_autocast(device_type: str) -> bool:
    """A question that torch.compile cannot trace before torch 2.11."""
    return torch.amp.is_autocast_available(device_type)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Matrix products in the dtype of their arguments, whatever autocast the caller is under."""
    if _has_autocast(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def chunks(num_rows: int, num_classes: int, dtype: torch.dtype, max_workspace_bytes: int) -> Iterator[slice]:
    """Slices of rows whose logits, with one temporary of their size, fit the workspace."""
    length = max(1, max_workspace_bytes // (2 * num_classes * dtype.itemsize))
    # No rows are one empty chunk, so that callers need no case for them.
    for start in range(0, max(num_rows, 1), length):
        yield slice(start, min(start + length, num_rows))


def workspace_bytes(max_workspace_bytes: int | None, weight: Tensor, cpu_default: int = CPU_WORKSPACE_BYTES) -> int:
    """The workspace to use; raises ValueError where it does not hold one token's logits."""
    num_classes = weight.shape[0]
    if max_workspace_bytes is None:
        return cpu_default if weight.device.type == "cpu" else ACCELERATOR_WORKSPACE_BYTES
    max_workspace_bytes = checks.count("max_workspace_bytes", max_workspace_bytes)
    needed = 16 * num_classes
    if max_workspace_bytes < needed:
        raise ValueError(
            f"max_workspace_bytes: found {max_workspace_bytes}, accepted is at least {needed} for V = {num_classes}"
        )
    return max_workspace_bytes


def check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Shapes, dtypes and devices of `[..., D]`, `[V, D]` and `[V]`."""
    checks.floating("hidden", hidden)
    checks.floating("weight", weight)
    checks.dims("weight", weight, 2, "[V, D]")
    if weight.shape[0] == 0:
        raise ValueError("weight: found a vocabulary of 0 tokens, accepted is at least 1")
    if hidden.dim() == 0:
        raise ValueError("hidden: found shape (), accepted is [..., D]")
    checks.like("weight", weight, "hidden (last dimension)", (weight.shape[0], hidden.shape[-1]), hidden.device)
    if bias is not None:
        checks.floating("bias", bias)
        checks.like("bias", bias, "weight (first dimension)", (weight.shape[0],), hidden.device)


def check_tokens(
    name: str, model: Tensor, tokens: Tensor, temperature: float, mask: Tensor | None, num_classes: int
) -> tuple[Tensor, Tensor | None]:
    """Tokens, mask and temperature against a tensor of one more dimension.

    Returns the tokens as int64, and the mask as `checks.token_ids` gives it.
    """
    checks.like("tokens", tokens, f"{name} without its last dimension", tuple(model.shape[:-1]), model.device)
    if mask is not None:
        mask = checks.mask_like("mask", mask, "tokens", tuple(tokens.shape), tokens.device)
    checks.temperature(temperature)
    mask = checks.token_ids(tokens, mask, num_classes)
    return tokens.to(torch.int64), mask


class _AttachGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, num_inputs: int, *tensors: Tensor) -> Tensor:
        ctx.dtypes = [tensor.dtype for tensor in tensors[:num_inputs]]
        ctx.save_for_backward(*tensors[num_inputs:])
        return loss.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        stored = ctx.saved_tensors
        scaled = [(grad_outputs[0] * g).to(dtype) for g, dtype in zip(stored, ctx.dtypes, strict=True)]
        return (None, None, *scaled, *([None] * len(stored)))


def attach_gradients(loss: Tensor, gradients: list[tuple[Tensor, Tensor]]) -> Tensor:
    """A 0-dim loss whose gradients were computed with it.

    gradients: pairs of an input and the derivative of the loss by it, of the same shape.
    """
    differentiable = [(value, gradient) for value, gradient in gradients if value.requires_grad]
    if not differentiable:
        return loss
    inputs, stored = zip(*differentiable, strict=True)
    return _AttachGradients.apply(loss, len(inputs), *inputs, *stored)  # pyright: ignore[reportReturnType]
