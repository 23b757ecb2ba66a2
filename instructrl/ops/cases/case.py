"""What a case is, and what the makers of cases share."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One set of inputs of one operation.

    make: from a dtype to the keyword arguments, on the CPU. gradients: arguments that are differentiated.
    large: for benchmarks; too slow for a test on one core.
    """

    op: str
    name: str
    make: Callable[[torch.dtype], Arguments]
    gradients: tuple[str, ...] = ()
    large: bool = False

    def bytes_moved(self, arguments: Arguments) -> int:
        """Bytes of what `make` gave, and of the gradients once more: the floor for forward and backward."""
        size = {key: x.numel() * x.element_size() for key, x in arguments.items() if isinstance(x, Tensor)}
        return sum(size.values()) + sum(size[key] for key in self.gradients)


def seeded(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(index * ord(letter) for index, letter in enumerate(name, start=1)))


def random_mask(shape: tuple[int, ...], generator: torch.Generator, kept: float) -> Tensor:
    return torch.rand(shape, generator=generator) < kept


def poisoned(x: Tensor, mask: Tensor) -> Tensor:
    """NaN and infinity, by turns, wherever the mask is False."""
    garbage = torch.full(x.shape, math.nan, dtype=x.dtype)
    garbage.view(-1)[::2] = math.inf
    return torch.where(mask.view(*mask.shape, *[1] * (x.dim() - mask.dim())), x, garbage)
