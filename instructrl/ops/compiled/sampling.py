"""Implementations of `instructrl.ops.sampling` by private ops."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instructrl.ops import private_ops


def _sample_tokens(prefix: str) -> Callable[..., Tensor]:
    return torch.no_grad()(private_ops.get(prefix, "sample_tokens"))


IMPLEMENTATIONS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "sampling.sample_tokens": _sample_tokens,
}
