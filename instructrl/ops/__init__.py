"""Operations that can be accelerated: a public function and a reference for each, one module a family.

    from instructrl.ops import logprobs, ppo

`use_backend` forces a backend, `validate` switches on checks of values on accelerators, `usability` lists what can run
here.
"""

from instructrl import kernels
from instructrl.ops import (
    advantages,
    aggregation,
    candidates,
    dispatch,
    groups,
    likelihood,
    logprobs,
    ppo,
    ranking,
    sampling,
    statistics,
    vocab_parallel,
)
from instructrl.ops.dispatch import usability, use_backend, validate

# Last, because backends import the families that they implement.
kernels.load()
dispatch.check_forced()

__all__ = [
    "advantages",
    "aggregation",
    "candidates",
    "groups",
    "likelihood",
    "logprobs",
    "ppo",
    "ranking",
    "sampling",
    "statistics",
    "usability",
    "use_backend",
    "validate",
    "vocab_parallel",
]
