"""Settings of how networks are run, and where their weights lie."""

from dataclasses import dataclass
from typing import Literal

from instructrl.settings import require_positive

Spread = Literal["ddp", "fsdp"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassConfig:
    """Speed and memory of the forward and backward passes."""

    # of the weights in every pass; the optimiser steps float32 masters of those in bfloat16, and masters are what is
    # averaged and saved. Unset it is bfloat16 on a GPU, float32 on a CPU; a run keeps what it began with
    weights: Precision | None = None
    # of the matrix products, bfloat16 by autocast; bfloat16 weights are multiplied so whatever this is. Moments, scores
    # and losses stay float32
    precision: Precision = "float32"
    # keep the inputs of each block alone and compute the rest again in the backward pass
    checkpoint_activations: bool = False
    # of the weights, moments and gradients over the processes of a job: a copy in each, or a part (FSDP2); the base of
    # adapters lies whole in each
    spread: Spread = "ddp"

    @property
    def products(self) -> Precision:
        """Of the matrix products, where it is settled what weights are."""
        return "bfloat16" if "bfloat16" in (self.precision, self.weights) else "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """LoRA (https://arxiv.org/abs/2106.09685): what trains is low-rank matrices beside a base that all roles share."""

    # of the matrices that are learned; None trains all weights
    rank: int | None = None
    # what they add is scaled by alpha / rank; None is twice the rank
    alpha: int | None = None
    # which linear layers get them: names as the network has them, such as q_proj, or "all-linear"
    targets: tuple[str, ...] = ("all-linear",)
    # of the base in memory; what is learned stays float32
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
