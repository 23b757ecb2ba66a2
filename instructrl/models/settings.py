"""Settings of how networks are run, and where their weights lie."""

from dataclasses import dataclass
from typing import Literal

Spread = Literal["ddp", "fsdp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassConfig:
    """Speed and memory of the forward and backward passes."""

    # of the matrix products; bfloat16 is autocast: weights, moments, scores and losses stay float32
    precision: Literal["float32", "bfloat16"] = "float32"
    # keep the inputs of each block alone and compute the rest again in the backward pass
    checkpoint_activations: bool = False
    # of the weights, moments and gradients over the processes of a job: a copy in each, or a part (FSDP2)
    spread: Spread = "ddp"
