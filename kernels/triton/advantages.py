"""Generalised advantage estimation, with the KL-penalised rewards in front of it where they are asked for.

Program -> one sequence, or a chunk of a long one, in tiles of up to 1,024 positions from the right, 4 to 8 a thread.
Every input is read once and every output written once: 16 bytes a token and the mask in float32, 24 with the rewards.

From the right, a counted position turns (A, W) into (r - v + gamma * lam * A + W, gamma * v), and a masked one leaves
them as they are. A is the advantage of the next counted position and W what that position's successor still owes it:
gamma times its value or, at the end of the sequence, the score. Any run of positions is such a map, `A' = b + a * A + d
* W`, `W' = w + k * W`, and maps compose, so a tile is a scan over five numbers and the carry between tiles is two.

Rows longer than 8,192 positions are cut into chunks, so that few long rows occupy the whole GPU: a first launch makes
the map of each chunk, and a second composes those to the right of a chunk before it does what it does for short rows.
Where the cut is made depends on the length alone. Packed sequences are not cut: their lengths are not known on the
host.
"""

# ruff: noqa: N803, N806  (constants of a kernel are written in capitals, as everywhere in Triton)

import torch
from torch import Tensor

import triton
import triton.language as tl

_CHUNK = 4096
_UNCUT = 8192
_MAX_CHUNKS = 256


@triton.jit
def _compose(b_right, a_right, d_right, w_right, k_right, b_left, a_left, d_left, w_left, k_left):
    """The map of a run of positions, from those of its right and left parts; the right one acts first."""
    return (
        b_left + a_left * b_right + d_left * w_right,
        a_left * a_right,
        a_left * d_right + d_left * k_right,
        w_left + k_left * w_right,
        k_left * k_right,
    )


@triton.jit
def _bounds(sequence, length, cu_seqlens, num_elements, ALIGNED: tl.constexpr):
    """Where a sequence starts, and its length; inside of the tensor whatever the offsets are."""
    start = sequence * length
    size = length
    if cu_seqlens is not None:
        first = tl.load(cu_seqlens + sequence).to(tl.int64)
        last = tl.load(cu_seqlens + sequence + 1).to(tl.int64)
        start = tl.minimum(tl.maximum(first, 0), num_elements)
        size = tl.minimum(tl.maximum(last, start), num_elements) - start
    if ALIGNED:
        # Products of 16, as the compiler has to see for loads of 16 bytes: hints on arguments are lost.
        start = start // 16 * 16
        size = size // 16 * 16
    return start, size


@triton.jit
def _position_maps(inputs, numbers, start, place, inside, FUSED: tl.constexpr):
    """Of a tile: reward without the score, value, log-ratio, counted, and the maps of its positions."""
    rewards, values, logprobs, ref_logprobs, mask = inputs
    negative_kl_coef, gamma, decay = numbers
    counted = inside & (tl.load(mask + start + place, mask=inside, other=0) != 0)
    value = tl.load(values + start + place, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(counted, value, 0.0)
    log_ratio = tl.zeros_like(value)
    if FUSED:
        new = tl.load(logprobs + start + place, mask=inside, other=0.0).to(tl.float32)
        ref = tl.load(ref_logprobs + start + place, mask=inside, other=0.0).to(tl.float32)
        log_ratio = tl.where(counted, new - ref, 0.0)
        reward = negative_kl_coef * log_ratio
    else:
        reward = tl.load(rewards + start + place, mask=inside, other=0.0).to(tl.float32)
        reward = tl.where(counted, reward, 0.0)
    maps = (
        reward - value,
        tl.where(counted, decay, 1.0),
        tl.where(counted, 1.0, 0.0),
        gamma * value,
        tl.where(counted, 0.0, 1.0),
    )
    return reward, value, log_ratio, counted, maps


@triton.jit
def _at(x, lane, index):
    """Element `index` of a tile."""
    return tl.sum(tl.where(lane == index, x, tl.zeros_like(x)), 0)


_NUMBERS = ["length", "num_elements", "negative_kl_coef", "gamma", "decay", "num_chunks", "tiles_each"]


@triton.jit(do_not_specialize=_NUMBERS)
def _chunk_maps(
    rewards,
    values,
    logprobs,
    ref_logprobs,
    mask,
    maps,
    length: tl.int64,
    num_chunks: tl.int32,
    tiles_each: tl.int32,
    negative_kl_coef: tl.float32,
    gamma: tl.float32,
    decay: tl.float32,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
):
    """The map of one chunk: [5] at `maps`, behind one another by the number of programs."""
    program = tl.program_id(0).to(tl.int64)
    start, size = _bounds(program // num_chunks, length, None, 0, ALIGNED)
    first_tile = (program % num_chunks) * tiles_each
    inputs = (rewards, values, logprobs, ref_logprobs, mask)
    numbers = (negative_kl_coef, gamma, decay)
    lane = tl.arange(0, TILE)
    b = 0.0
    a = 1.0
    d = 0.0
    w = 0.0
    k = 1.0
    for step in range(0, tiles_each):
        place = (first_tile + tiles_each - 1 - step) * TILE + lane
        part = _position_maps(inputs, numbers, start, place, place < size, logprobs is not None)
        b_tile, a_tile, d_tile, w_tile, k_tile = tl.associative_scan(part[4], 0, _compose, reverse=True)
        b, a, d, w, k = _compose(
            b, a, d, w, k, _at(b_tile, lane, 0), _at(a_tile, lane, 0), _at(d_tile, lane, 0), _at(w_tile, lane, 0),
            _at(k_tile, lane, 0),
        )  # fmt: skip
    total = tl.num_programs(0)
    tl.store(maps + program, b)
    tl.store(maps + total + program, a)
    tl.store(maps + 2 * total + program, d)
    tl.store(maps + 3 * total + program, w)
    tl.store(maps + 4 * total + program, k)


@triton.jit
def _from_the_right(maps, row, chunk, num_chunks, score, CHUNKS: tl.constexpr):
    """(A, W) left of all chunks to the right of this one, and whether nothing counted in them."""
    lane = tl.arange(0, CHUNKS)
    right = (lane > chunk) & (lane < num_chunks)
    total = tl.num_programs(0).to(tl.int64)
    place = maps + row * num_chunks + lane
    b = tl.load(place, mask=right, other=0.0)
    a = tl.load(place + total, mask=right, other=1.0)
    d = tl.load(place + 2 * total, mask=right, other=0.0)
    w = tl.load(place + 3 * total, mask=right, other=0.0)
    k = tl.load(place + 4 * total, mask=right, other=1.0)
    b, a, d, w, k = tl.associative_scan((b, a, d, w, k), 0, _compose, reverse=True)
    nothing = _at(k, lane, 0)
    return _at(b, lane, 0) + _at(d, lane, 0) * score, _at(w, lane, 0) + nothing * score, nothing


@triton.jit
def _added(total, squares, count, kl, counted, advantage, log_ratio):
    """Stats with those of a tile: sum and sum of squares of the advantages, positions that count, sum of log-ratios."""
    precise = tl.where(counted, advantage, 0.0).to(tl.float64)
    total += tl.sum(precise, 0)
    squares += tl.sum(precise * precise, 0)
    count += tl.sum(counted.to(tl.int32), 0)
    kl += tl.sum(log_ratio.to(tl.float64), 0)
    return total, squares, count, kl


@triton.jit
def _store_stats(stats, total, squares, count, kl):
    tl.store(stats, total)
    tl.store(stats + 1, squares)
    tl.store(stats + 2, count)
    tl.store(stats + 3, kl)


@triton.jit
def _paid(reward, score, counted, lane, nothing):
    """Rewards with the score on the last position that counts, if nothing counts to the right; and nothing, left of
    the tile."""
    last = tl.max(tl.where(counted, lane, -1), 0)
    bonus = tl.where(lane == tl.where(nothing > 0, last, -1), score, 0.0)
    return reward + bonus, tl.where(last >= 0, 0.0, nothing)


@triton.jit
def _tiles(size, chunk, tiles_each, IN_CHUNKS: tl.constexpr, TILE: tl.constexpr):
    """The first tile of a chunk, and how many it has; a sequence that is not cut is one chunk."""
    first = chunk.to(tl.int64) * tiles_each
    count = tl.cdiv(size, TILE) - first
    if IN_CHUNKS:
        count = tl.minimum(count, tiles_each)
    return first, count


@triton.jit(do_not_specialize=_NUMBERS)
def _estimate(
    rewards,
    values,
    logprobs,
    ref_logprobs,
    scores,
    mask,
    cu_seqlens,
    advantages,
    returns,
    rewards_out,
    partials,
    maps,
    length: tl.int64,
    num_elements: tl.int64,
    num_chunks: tl.int32,
    tiles_each: tl.int32,
    negative_kl_coef: tl.float32,
    gamma: tl.float32,
    decay: tl.float32,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    FUSED: tl.constexpr = logprobs is not None
    program = tl.program_id(0).to(tl.int64)
    sequence, chunk = program // num_chunks, (program % num_chunks).to(tl.int32)
    start, size = _bounds(sequence, length, cu_seqlens, num_elements, ALIGNED)
    lane = tl.arange(0, TILE)
    inputs, numbers = (rewards, values, logprobs, ref_logprobs, mask), (negative_kl_coef, gamma, decay)
    score = 0.0
    if FUSED:
        score = tl.load(scores + sequence)
    # The advantage and the debt to the right of the tile, and 1.0 as long as nothing counted there.
    advantage_carry, debt_carry, nothing = 0.0, score, 1.0
    if maps is not None:
        advantage_carry, debt_carry, nothing = _from_the_right(maps, sequence, chunk, num_chunks, score, CHUNKS)
    first_tile, num_tiles = _tiles(size, chunk, tiles_each, maps is not None, TILE)
    total = tl.zeros([], tl.float64)
    squares = tl.zeros([], tl.float64)
    count = tl.zeros([], tl.float64)
    kl = tl.zeros([], tl.float64)
    for step in range(0, num_tiles):
        place = (first_tile + num_tiles - 1 - step) * TILE + lane
        inside = place < size
        reward, value, log_ratio, counted, part = _position_maps(inputs, numbers, start, place, inside, FUSED)
        b, a, d, w, k = tl.associative_scan(part, 0, _compose, reverse=True)
        advantage = b + a * advantage_carry + d * debt_carry
        place += start
        tl.store(advantages + place, tl.where(counted, advantage, 0.0), mask=inside)
        tl.store(returns + place, tl.where(counted, advantage + value, 0.0), mask=inside)
        if FUSED:
            reward, nothing = _paid(reward, score, counted, lane, nothing)
            tl.store(rewards_out + place, reward, mask=inside)
            total, squares, count, kl = _added(total, squares, count, kl, counted, advantage, log_ratio)
        advantage_carry = _at(advantage, lane, 0)
        debt_carry = _at(w + k * debt_carry, lane, 0)
    if FUSED:
        _store_stats(partials + 4 * program, total, squares, count, kl)


@triton.jit(do_not_specialize=["num_partials"])
def _sum_stats(partials, stats, num_partials: tl.int64, PARTIALS: tl.constexpr):
    """Sums over programs of four numbers each, in an order that their number decides."""
    lane = tl.arange(0, PARTIALS)[:, None]
    column = tl.arange(0, 4)[None, :]
    sums = tl.zeros([PARTIALS, 4], tl.float64)
    for first in range(0, num_partials, PARTIALS):
        sums += tl.load(partials + (first + lane) * 4 + column, mask=first + lane < num_partials, other=0.0)
    tl.store(stats + tl.arange(0, 4), tl.sum(sums, 0))


def _tile(length: int, aligned: bool) -> tuple[int, int]:
    """Positions of a tile and warps of a program."""
    for size, num_warps in ((128, 1), (512, 2)):
        if length <= size and (aligned or size == 128):
            return size, num_warps
    # Read one by one, the positions of a thread are far apart: a scan over 8 of them each needs too many registers.
    return (1024, 4) if aligned else (512, 4)


def _launch(
    inputs: tuple[Tensor | None, ...],
    mask: Tensor,
    cu_seqlens: Tensor | None,
    outputs: tuple[Tensor | None, ...],
    numbers: tuple[float, float, float],
) -> Tensor | None:
    """inputs: rewards, values, logprobs, ref_logprobs, scores. outputs: advantages, returns, rewards.

    Returns the stats, or None without log-probabilities. numbers: minus kl_coef, gamma, gamma * lam.
    """
    rewards, values, logprobs, ref_logprobs, scores = (None if x is None else x.contiguous() for x in inputs)
    mask = mask.contiguous()
    num_sequences, length = mask.shape if cu_seqlens is None else (cu_seqlens.shape[0] - 1, mask.shape[0])
    # Sequences that are packed or odd start anywhere, and are read element by element.
    aligned = cu_seqlens is None and length % 16 == 0
    size, num_warps = _tile(length, aligned)
    shape = {"ALIGNED": aligned, "TILE": size, "num_warps": num_warps}
    num_chunks, tiles_each, maps = 1, triton.cdiv(length, size), None
    if cu_seqlens is None and length > _UNCUT:
        tiles_each = triton.cdiv(max(_CHUNK, triton.cdiv(length, _MAX_CHUNKS)), size)
        num_chunks = triton.cdiv(length, tiles_each * size)
        maps = mask.new_empty((5, num_sequences * num_chunks), dtype=torch.float32)
    grid = (num_sequences * num_chunks,)
    if maps is not None:
        data = (rewards, values, logprobs, ref_logprobs, mask, maps)
        _chunk_maps[grid](*data, length, num_chunks, tiles_each, *numbers, **shape)
    partials = None if logprobs is None else mask.new_empty(4 * grid[0], dtype=torch.float64)
    data = (rewards, values, logprobs, ref_logprobs, scores, mask, cu_seqlens, *outputs, partials, maps)
    sizes = (length, mask.numel(), num_chunks, tiles_each)
    _estimate[grid](*data, *sizes, *numbers, CHUNKS=_MAX_CHUNKS, **shape)
    if partials is None:
        return None
    stats = mask.new_empty(4, dtype=torch.float64)
    _sum_stats[(1,)](partials, stats, grid[0], PARTIALS=1024, num_warps=4)
    return stats


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    advantages, returns = (values.new_empty(values.shape, dtype=torch.float32) for _ in range(2))
    if values.numel() > 0:
        inputs, outputs = (rewards, values, None, None, None), (advantages, returns, None)
        _launch(inputs, mask, cu_seqlens, outputs, (0.0, gamma, gamma * lam))
    return advantages, returns


def ppo_advantages(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    values: Tensor,
    scores: Tensor,
    mask: Tensor,
    kl_coef: float,
    gamma: float,
    lam: float,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = tuple(values.new_empty(values.shape, dtype=torch.float32) for _ in range(3))
    if values.numel() == 0:
        return *outputs, values.new_zeros(4, dtype=torch.float64)
    inputs = (None, values, logprobs, ref_logprobs, scores)
    stats = _launch(inputs, mask, cu_seqlens, outputs, (-kl_coef, gamma, gamma * lam))
    assert stats is not None
    return *outputs, stats
