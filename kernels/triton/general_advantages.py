"""Advantages under any settings.

Program -> one sequence in tiles of 256 positions from the right, 2 a thread. The scan is that of advantages.py, twice
where the lambda of the returns is another, with maps of positions that also say where an episode ends and where a
masked position is a step. Bytes a token: those of advantages.py, and what else is given.
"""

# ruff: noqa: N803  (constants of a kernel are written in capitals, as everywhere in Triton)

import torch
from instructrl.kernels.triton.advantages import _added, _at, _bounds, _store_stats, _sum_stats
from instructrl.kernels.triton.kl import kl_estimate
from torch import Tensor

import triton
import triton.language as tl

_TILE = 256


@triton.jit
def _times(factor, x):
    """Where nothing passes, infinity and NaN do not either."""
    return tl.where(factor == 0.0, 0.0, factor * x)


@triton.jit
def _compose(b_right, a_right, d_right, w_right, k_right, b_left, a_left, d_left, w_left, k_left):
    """As in advantages.py."""
    return (
        b_left + _times(a_left, b_right) + _times(d_left, w_right),
        a_left * a_right,
        a_left * d_right + d_left * k_right,
        w_left + _times(k_left, w_right),
        k_left * k_right,
    )


@triton.jit
def _rates_of(rates, sequence, gamma, decay, value_decay):
    if rates is not None:
        gamma_of = tl.load(rates + 3 * sequence)
        decay = (gamma_of * tl.load(rates + 3 * sequence + 1)).to(tl.float32)
        value_decay = (gamma_of * tl.load(rates + 3 * sequence + 2)).to(tl.float32)
        gamma = gamma_of.to(tl.float32)
    return gamma, decay, value_decay


@triton.jit
def _kinds(mask, place, first, size, start, inside, seen, COUNT_GAPS: tl.constexpr, BEHIND: tl.constexpr):
    """Of a tile: counted, valued, taken, takes the score, and `seen` left of it. seen: 1 where a position counts to
    the right of the tile."""
    lane = place - first
    counted = inside & (tl.load(mask + start + place, mask=inside, other=0) != 0)
    here = tl.max(tl.where(counted, lane, -1), 0)
    # The last counted position, or beyond the tile.
    last = tl.where(seen > 0, 2147483647, here)
    valued = counted
    paid = counted & (lane == last)
    if BEHIND:
        before = inside & (place > 0)
        after_counted = tl.load(mask + start + place - 1, mask=before, other=0) != 0
        is_behind = inside & after_counted & (lane > last)
        valued = counted | is_behind
        paid = (paid & (place + 1 == size)) | is_behind
    taken = valued
    if COUNT_GAPS:
        taken = valued | (inside & (lane < last))
    return counted, valued, taken, paid, tl.maximum(seen, (here >= 0).to(tl.int32))


@triton.jit
def _load_where(data, place, where):
    return tl.load(data + place, mask=where, other=0.0).to(tl.float32)


@triton.jit
def _scanned(base, taken, cut, decay, passed, kept, advantage_carry, debt_carry):
    """Advantages of a tile, and what is owed left of each position. cut: nothing comes from the right. passed: 1 where
    the value to the right is wanted. kept: what of the value goes to the left."""
    maps = (
        tl.where(taken, base, 0.0),
        tl.where(taken, tl.where(cut, 0.0, decay), 1.0),
        tl.where(taken, tl.where(cut, 0.0, passed), 0.0),
        tl.where(taken, kept, 0.0),
        tl.where(taken, 0.0, 1.0),
    )
    b, a, d, w, k = tl.associative_scan(maps, 0, _compose, reverse=True)
    return b + _times(a, advantage_carry) + _times(d, debt_carry), w + _times(k, debt_carry)


@triton.jit
def _rewards_of(rewards, logprobs, ref_logprobs, place, counted, kl_numbers, ESTIMATOR: tl.constexpr):
    """Rewards without the score, and log-ratios."""
    negative_kl_coef, input_clamp, output_clamp = kl_numbers
    if rewards is not None:
        reward = _load_where(rewards, place, counted)
        log_ratio = tl.zeros_like(reward)
    else:
        log_ratio = _load_where(logprobs, place, counted) - _load_where(ref_logprobs, place, counted)
        reward = negative_kl_coef * kl_estimate(log_ratio, input_clamp, output_clamp, ESTIMATOR)
        reward = tl.where(counted, reward, 0.0)
    return reward, log_ratio


@triton.jit
def _behind(dones, next_values, place, counted, value, gamma):
    """What is known behind each position: a part of the reward, what of the value goes to the left, whether the value
    to the right is wanted, and whether nothing comes from there."""
    part, kept, passed = tl.zeros_like(value), gamma * value, 1.0
    if next_values is not None:
        part, kept, passed = gamma * _load_where(next_values, place, counted), tl.zeros_like(value), 0.0
    cut = place < 0
    if dones is not None:
        cut = counted & (tl.load(dones + place, mask=counted, other=0) != 0)
    return part, kept, passed, cut


@triton.jit(do_not_specialize=["length", "num_elements", "negative_kl_coef", "input_clamp", "output_clamp", "gamma",
                               "decay", "value_decay"])  # fmt: skip
def _general(
    values, mask, rewards, logprobs, ref_logprobs, scores, dones, next_values, bootstrap, rates, cu_seqlens,
    advantages, returns, made, partials, length: tl.int64, num_elements: tl.int64, negative_kl_coef: tl.float32,
    input_clamp: tl.float32, output_clamp: tl.float32, gamma: tl.float32, decay: tl.float32, value_decay: tl.float32,
    ESTIMATOR: tl.constexpr, COUNT_GAPS: tl.constexpr, BEHIND: tl.constexpr, TWO: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0).to(tl.int64)
    start, size = _bounds(sequence, length, cu_seqlens, num_elements, False)
    gamma, decay, value_decay = _rates_of(rates, sequence, gamma, decay, value_decay)
    score, debt_carry, advantage_carry, value_carry = 0.0, 0.0, 0.0, 0.0
    if scores is not None:
        score = tl.load(scores + sequence)
    if bootstrap is not None:
        debt_carry = gamma * tl.load(bootstrap + sequence)
    lane, seen = tl.arange(0, TILE), tl.zeros([], tl.int32)
    kl_numbers = (negative_kl_coef, input_clamp, output_clamp)
    total, squares = tl.zeros([], tl.float64), tl.zeros([], tl.float64)
    count, kl = tl.zeros([], tl.float64), tl.zeros([], tl.float64)
    num_tiles = tl.cdiv(size, TILE)
    for step in range(0, num_tiles):
        first = (num_tiles - 1 - step) * TILE
        place = first + lane
        inside = place < size
        kinds = _kinds(mask, place, first, size, start, inside, seen, COUNT_GAPS, BEHIND)
        counted, valued, taken, paid, seen = kinds
        place += start
        value = _load_where(values, place, valued)
        reward, log_ratio = _rewards_of(rewards, logprobs, ref_logprobs, place, counted, kl_numbers, ESTIMATOR)
        if rewards is None:
            reward += tl.where(paid, score, 0.0)
            tl.store(made + place, reward, mask=inside)
        part, kept, passed, cut = _behind(dones, next_values, place, counted, value, gamma)
        base = reward + part - value
        advantage, debt = _scanned(base, taken, cut, decay, passed, kept, advantage_carry, debt_carry)
        target = advantage
        if TWO:
            target = _scanned(base, taken, cut, value_decay, passed, kept, value_carry, debt_carry)[0]
        tl.store(advantages + place, tl.where(counted, advantage, 0.0), mask=inside)
        tl.store(returns + place, tl.where(valued, target + value, 0.0), mask=inside)
        total, squares, count, kl = _added(total, squares, count, kl, counted, advantage, log_ratio)
        advantage_carry, debt_carry = _at(advantage, lane, 0), _at(debt, lane, 0)
        value_carry = _at(target, lane, 0)
    _store_stats(partials + 4 * sequence, total, squares, count, kl)


def general_advantages(
    values: Tensor,
    mask: Tensor,
    rewards: Tensor | None,
    logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    scores: Tensor | None,
    dones: Tensor | None,
    next_values: Tensor | None,
    bootstrap: Tensor | None,
    rates: Tensor | None,
    cu_seqlens: Tensor | None,
    kl_coef: float,
    kl_estimator: int,
    kl_input_clamp: float,
    kl_output_clamp: float,
    gamma: float,
    lam: float,
    value_lam: float,
    count_gaps: bool,
    score_behind: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    advantages, returns = (values.new_empty(values.shape, dtype=torch.float32) for _ in range(2))
    made = values.new_empty(values.shape if rewards is None else 0, dtype=torch.float32)
    if values.numel() == 0:
        return advantages, returns, made, values.new_zeros(4, dtype=torch.float64)
    given = (values, mask, rewards, logprobs, ref_logprobs, scores, dones, next_values, bootstrap, rates, cu_seqlens)
    inputs = [None if x is None else x.contiguous() for x in given]
    num_sequences, length = mask.shape if cu_seqlens is None else (cu_seqlens.shape[0] - 1, mask.shape[0])
    partials = values.new_empty(4 * num_sequences, dtype=torch.float64)
    stats = values.new_empty(4, dtype=torch.float64)
    _general[(num_sequences,)](
        *inputs, advantages, returns, made if rewards is None else None, partials, length, mask.numel(),
        -kl_coef, kl_input_clamp, kl_output_clamp, gamma, gamma * lam, gamma * value_lam, ESTIMATOR=kl_estimator,
        COUNT_GAPS=count_gaps, BEHIND=score_behind, TWO=rates is not None or value_lam != lam, TILE=_TILE, num_warps=4,
    )  # fmt: skip
    _sum_stats[(1,)](partials, stats, num_sequences, PARTIALS=1024, num_warps=4)
    return advantages, returns, made, stats
