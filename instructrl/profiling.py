"""Where the time of a step goes: seconds by phase, and tokens, collected wherever the work is done.

A trainer's loop collects around each step; below it, whoever does a piece of work names it with `phase` and says with
`count_tokens` how much of what it computed was padding. Where nobody collects, both do nothing.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

PHASES = (
    "generate",
    "logprobs",
    "values",
    "score",
    "advantages",
    "update",
    "pretraining",
    "average",
    "checkpoint",
)
"""What a phase may be called, in the order of a PPO iteration."""


class Profile:
    """seconds: by phase; a phase inside another counts for itself alone. tokens: read by the networks that train or
    score, with gradient or without; computed: the same with padding. failed_in: the innermost phase out of which an
    exception came.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.computed = 0
        self._tokens: list[Tensor | int] = []
        self.failed_in = ""
        self._open: list[str] = []
        self._since = 0.0

    @property
    def tokens(self) -> int:
        return sum(int(count) for count in self._tokens)

    def add(self, other: "Profile") -> None:
        """Take another's seconds and tokens in."""
        for name, seconds in other.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.computed += other.computed
        self._tokens.append(other.tokens)

    def _switch(self) -> None:
        """Give the time since the last switch to the phase that was running."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        elif torch.backends.mps.is_available():
            torch.mps.synchronize()
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


_current: ContextVar[Profile | None] = ContextVar("profile", default=None)


@contextmanager
def collect() -> Iterator[Profile]:
    """Everything that is named inside goes into the profile that this gives."""
    profile = Profile()
    token = _current.set(profile)
    try:
        yield profile
    finally:
        _current.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """The time inside belongs to this phase, one of `PHASES`. With a GPU its borders wait for the GPU."""
    assert name in PHASES, name
    profile = _current.get()
    if profile is None:
        yield
        return
    profile._switch()
    profile._open.append(name)
    finished = False
    try:
        yield
        finished = True
    finally:
        if not finished:
            profile.failed_in = profile.failed_in or name
        profile._switch()
        profile._open.pop()


def count_tokens(mask: Tensor) -> None:
    """A network reads these tokens. mask: bool, True at real ones."""
    profile = _current.get()
    if profile is not None:
        profile.computed += mask.numel()
        profile._tokens.append(mask.sum())
