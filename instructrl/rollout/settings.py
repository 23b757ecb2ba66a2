"""Settings of the rollout."""

import math
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


@dataclass(frozen=True, slots=True, kw_only=True)
class VLLMConfig:
    """How vLLM is opened. Raises ValueError for other numbers than the comments say."""

    # GiB, in each process, for the keys and values of unfinished responses; those that find no room wait
    kv_cache_gib: float = 4.0
    # processes that hold one copy of the network together, each a part of it
    tensor_parallel: int = 1
    # run the network as it is written: slower, but nothing is compiled when the engine opens
    enforce_eager: bool = False
    # address of a vLLM server that samples instead, as http://gpu2:8000
    server: str | None = None
    # where the weights are written for the server before each rollout: a folder that it sees by the same path
    weights_folder: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.kv_cache_gib) and self.kv_cache_gib > 0):
            raise ValueError(f"kv_cache_gib: found {self.kv_cache_gib}, accepted are positive numbers")
        if self.tensor_parallel < 1:
            raise ValueError(f"tensor_parallel: found {self.tensor_parallel}, accepted are whole numbers from 1")
        if self.server is not None and not self.server.startswith(("http://", "https://")):
            raise ValueError(
                f"server: found {self.server!r}, accepted are addresses that begin with http:// or https://"
            )
        if (self.server is None) != (self.weights_folder is None):
            found = f"{self.weights_folder} with server {self.server}"
            raise ValueError(f"weights_folder: found {found}, accepted is both, or neither")
