"""Settings of how networks are run, and where their weights lie."""

from dataclasses import dataclass
from typing import Literal

from instructrl.settings import require_positive

Spread = Literal["ddp", "fsdp"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassConfig:
    """Speed and memory of the forward and backward passes."""

    # dtype of the weights in every pass. For bfloat16 weights, the optimiser steps float32 masters, which are also what
    # is averaged and saved. None is bfloat16 on a GPU, float32 on a CPU; a run keeps what it began with
    weights: Precision | None = None
    # dtype of the matrix products, bfloat16 by autocast; with bfloat16 weights they are always in bfloat16. Moments,
    # scores and losses stay float32
    precision: Precision = "float32"
    # save memory: keep only the inputs of each block, and compute the rest again in the backward pass
    checkpoint_activations: bool = False
    # weights, moments and gradients in a job of several processes: a copy in each, or a part (FSDP2). The base of
    # adapters is whole in each
    spread: Spread = "ddp"

    @property
    def products(self) -> Precision:
        """Of the matrix products, where it is settled what weights are."""
        return "bfloat16" if "bfloat16" in (self.precision, self.weights) else "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """LoRA (https://arxiv.org/abs/2106.09685): what trains is low-rank matrices beside a base that all roles share."""

    # rank of the adapter; None trains all weights
    rank: int | None = None
    # what the adapter adds is scaled by alpha / rank; None is twice the rank
    alpha: int | None = None
    # which linear layers get an adapter: their names in the network, such as q_proj, or "all-linear"
    targets: tuple[str, ...] = ("all-linear",)
    # dtype of the base in memory; what is trained stays float32
    base_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        require_positive(self, "rank", "alpha")
        if not self.targets or not all(self.targets):
            raise ValueError(f"targets: found {list(self.targets)}, accepted are names of linear layers, or all-linear")

    @property
    def scale(self) -> int:
        """Alpha as it is used."""
        assert self.rank is not None
        return 2 * self.rank if self.alpha is None else self.alpha
