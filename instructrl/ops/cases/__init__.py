"""Inputs for every operation, which tests and benchmarks enumerate.

A case makes the keyword arguments of the public function. Its numbers come from a seed, are rounded to the dtype asked
for, and stay away from the kinks of clipped losses, so that rounding never decides which branch is taken.
"""

from instructrl.ops.cases import (
    advantages,
    candidates,
    groups,
    likelihood,
    logprobs,
    ppo,
    ranking,
    sampling,
    statistics,
    vocab_shards,
)
from instructrl.ops.cases.case import Arguments, Case

CASES: tuple[Case, ...] = (
    *ranking.cases(),
    *logprobs.cases(),
    *candidates.cases(),
    *statistics.cases(),
    *vocab_shards.cases(),
    *likelihood.cases(),
    *advantages.cases(),
    *groups.cases(),
    *ppo.cases(),
    *sampling.cases(),
)

__all__ = ["CASES", "Arguments", "Case"]
