"""Settings of the rollout."""

from dataclasses import dataclass
from typing import Literal

EngineName = Literal["builtin", "vllm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """Which tokens responses are drawn from, and texts at which they end; by default all and none.

    See `rollout.truncation.allowed_tokens`. Raises ValueError for other numbers than the comments say.
    """

    # sample from this many likeliest tokens; 0 is all
    top_k: int = 0
    # of these, sample from the fewest whose probabilities add up to this share
    top_p: float = 1.0
    # of these, sample from those with at least this fraction of the likeliest token's probability
    min_p: float = 0.0
    # texts at which a response ends; they are not part of it
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise ValueError(f"top_k: found {self.top_k}, accepted are whole numbers from 0, which is all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: found {self.top_p}, accepted are numbers above 0 up to 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p: found {self.min_p}, accepted are numbers from 0 to 1")
        if "" in self.stop:
            raise ValueError("stop: found an empty text, accepted are texts of at least one character")

    @property
    def truncates(self) -> bool:
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0
