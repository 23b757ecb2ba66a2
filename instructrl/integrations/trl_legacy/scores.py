"""Scores in the measure of all that there were before."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class RunningScores:
    """Mean and variance of everything seen, a batch at a time (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.mean, self.squares, self.count = 0.0, 0.0, 0

    def scaled(self, scores: Tensor, *, centred: bool) -> Tensor:
        """Scores divided by the sample deviation of all so far, these included; centred: less their mean. [B]."""
        found = scores.double()
        count, mean = len(found), float(found.mean())
        change = mean - self.mean
        total = self.count + count
        self.squares += float((found - mean).square().sum()) + change**2 * self.count * count / total
        self.mean += change * count / total
        self.count = total
        deviation = math.sqrt(self.squares / max(total - 1, 1)) + torch.finfo(torch.float32).eps
        return ((found - self.mean if centred else found) / deviation).to(scores)

    def state(self) -> dict[str, float]:
        return {"mean": self.mean, "squares": self.squares, "count": self.count}

    def load(self, state: Mapping[str, float]) -> None:
        self.mean, self.squares, self.count = state["mean"], state["squares"], int(state["count"])
