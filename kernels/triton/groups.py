"""Advantages of scores within their group.

Program -> a group, which goes through all scores three times in tiles of 1,024: for the mean, for the deviations, and
to write its results. Sums are float64 and in one order; the scores of a batch stay in the first-level cache.
"""

# ruff: noqa: N803  (constants of a kernel are written in capitals, as everywhere in Triton)

import torch
from torch import Tensor

import triton
import triton.language as tl

_TILE = 1024


@triton.jit
def _members(scores, groups, first, num_scores, group, TILE: tl.constexpr):
    """Places, ids, and scores in float64 of a tile; which are of the group."""
    place = first + tl.arange(0, TILE)
    inside = place < num_scores
    own = tl.load(groups + place, mask=inside, other=0)
    score = tl.load(scores + place, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
    return place, own, score, inside & (own == group)


@triton.jit(do_not_specialize=["num_scores", "num_groups", "ddof", "epsilon"])
def _group_advantages(
    scores,
    groups,
    advantages,
    num_scores: tl.int64,
    num_groups: tl.int64,
    ddof: tl.int32,
    epsilon: tl.float32,
    BASELINE: tl.constexpr,
    SCALED: tl.constexpr,
    TILE: tl.constexpr,
):
    group = tl.program_id(0)
    count = tl.zeros([], tl.float64)
    total = tl.zeros([], tl.float64)
    squares = tl.zeros([], tl.float64)
    for first in range(0, num_scores, TILE):
        place, own, score, member = _members(scores, groups, first, num_scores, group, TILE)
        count += tl.sum(member.to(tl.int32), 0)
        total += tl.sum(tl.where(member, score, 0.0), 0)
    mean = total / tl.maximum(count, 1.0)
    for first in range(0, num_scores, TILE):
        place, own, score, member = _members(scores, groups, first, num_scores, group, TILE)
        deviation = tl.where(member, score - mean, 0.0)
        squares += tl.sum(deviation * deviation, 0)
    variance = tl.where(count > ddof, squares / tl.maximum(count - ddof, 1.0), 0.0)
    for first in range(0, num_scores, TILE):
        place, own, score, member = _members(scores, groups, first, num_scores, group, TILE)
        found = score
        if BASELINE == 0:
            found = score - mean
        elif BASELINE == 1:
            found = tl.where(count > 1.0, (score - mean) * (count / tl.maximum(count - 1.0, 1.0)), 0.0)
        if SCALED:
            found = found / (tl.sqrt(variance) + epsilon)
        tl.store(advantages + place, found.to(tl.float32), mask=member)
        if group == 0:
            outside = (place < num_scores) & ((own < 0) | (own >= num_groups))
            tl.store(advantages + place, tl.full([TILE], float("nan"), tl.float32), mask=outside)


def group_advantages(
    scores: Tensor, groups: Tensor, num_groups: int, baseline: int, scaled: bool, ddof: int, epsilon: float
) -> Tensor:
    advantages = scores.new_empty(scores.shape, dtype=torch.float32)
    if scores.numel() > 0:
        _group_advantages[(num_groups,)](
            scores.contiguous(), groups.contiguous(), advantages, scores.numel(), num_groups, ddof, epsilon,
            BASELINE=baseline, SCALED=scaled, TILE=_TILE, num_warps=4,
        )  # fmt: skip
    return advantages
