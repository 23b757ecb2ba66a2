"""Experience in which the network reads more positions of a response than the policy learns from."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instructrl.types import Experience


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes(Experience):
    """counted: [B, T] bool; what the policy learns from, where the mask of the sequences has more."""

    counted: Tensor

    def uncounted(self) -> "Episodes":
        return replace(self, sequences=self.sequences.uncounted(), counted=torch.zeros_like(self.counted))

    def trim(self) -> "Episodes":
        trimmed = Experience.trim(self)
        assert isinstance(trimmed, Episodes)
        return replace(trimmed, counted=self.counted[:, : trimmed.logprobs.shape[1]])
