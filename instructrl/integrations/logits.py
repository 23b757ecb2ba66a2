"""What adapters of several hosts need around the operations on logits and heads."""

import torch
from torch import Tensor

from instructrl.ops import logprobs


def nothing_chosen(logits: Tensor) -> Tensor:
    """An id for each row of [..., V], for what does not depend on it: [...] int64."""
    return torch.zeros(logits.shape[:-1], dtype=torch.long, device=logits.device)


def entropy_of(logits: Tensor) -> Tensor:
    """[...] of [..., V], in float32 or float64."""
    return logprobs.token_logprobs_and_entropy(logits, nothing_chosen(logits))[1]


def as_computed(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """A head in the dtype in which the host multiplies: autocast's where that is on, else that of the states."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
