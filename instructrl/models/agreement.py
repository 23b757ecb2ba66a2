"""Whether a network computes what it should, and the refusal of one that does not."""

import torch
from torch import Tensor

# Half of float32's digits: rounding, which is float32's inside of many networks whatever their weights are, stays a
# hundred times below it; a window or a position that is off moves states of such weights by tenths.
TOLERANCE = torch.finfo(torch.float32).eps ** 0.5
ACCEPTED = "accepted are causal attention models whose logits are a projection of their states, scaled or softly capped"


class UnsuitableError(ValueError):
    """A network that cannot be run here."""


def agree(found: Tensor, truth: Tensor) -> bool:
    """Whether two results are the same but for rounding."""
    if found.shape != truth.shape:
        return False
    scale = truth.abs().amax(dim=-1, keepdim=True)  # a token: trained networks have some that are far larger
    return bool(((found - truth).abs() <= TOLERANCE * scale).all())
