"""Implementations of `instructrl.ops.sampling` by private ops."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instructrl.ops import private_ops
from instructrl.ops.logit_settings import LogitSettings


def _sample_tokens(prefix: str) -> Callable[..., Tensor]:
    op = private_ops.get(prefix, "sample_tokens")

    @torch.no_grad()
    def sample_tokens(
        logits: Tensor, uniforms: Tensor, allowed: Tensor | None, temperature: float, settings: LogitSettings
    ) -> Tensor:
        return op(logits, uniforms, allowed, *settings.folded(temperature))

    return sample_tokens


IMPLEMENTATIONS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "sampling.sample_tokens": _sample_tokens,
}
