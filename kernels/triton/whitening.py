"""Whitening of what a mask counts, by its own mean and variance or by given sums.

Program -> a run of tiles of 1,024 of the flat elements, as many tiles for each of at most 512 programs as the element
count asks for. By its own statistics: a first launch makes count, mean and sum of squared deviations of each run, in
float64 and about the run's own mean so that nothing cancels; in a second every program combines all of them in one
order and writes its run. By given sums: the second launch alone. Bytes moved: the elements once or twice, the mask with
them, and 4 out an element. By group: a program a row makes its moments, one a group combines them in the order of rows,
and one a row writes it.
"""

# ruff: noqa: N803  (constants of a kernel are written in capitals, as everywhere in Triton)

import torch
from instructrl.kernels.triton.rows import vector_length
from torch import Tensor

import triton
import triton.language as tl

_TILE = 1024
_MAX_PROGRAMS = 512


@triton.jit
def _tile_moments(x, counted):
    """Count, sum, and sum of squares about the mean, of a tile [vectors, elements] in float64."""
    x = tl.where(counted, x, 0.0).to(tl.float64)
    count = tl.sum(tl.sum(counted.to(tl.int32), 1), 0).to(tl.float64)
    total = tl.sum(tl.sum(x, 1), 0)
    deviation = tl.where(counted, x - total / tl.maximum(count, 1.0), 0.0)
    return count, total, tl.sum(tl.sum(deviation * deviation, 1), 0)


@triton.jit
def _merge(count, total, squares, other_count, other_total, other_squares):
    """Moments of both of two disjoint parts (Chan, Golub and LeVeque 1979)."""
    distance = total / tl.maximum(count, 1.0) - other_total / tl.maximum(other_count, 1.0)
    both = count + other_count
    between = distance * distance * (count * other_count / tl.maximum(both, 1.0))
    return both, total + other_total, squares + other_squares + between


@triton.jit
def _load(x, mask, start, lane, inside):
    counted = inside & (tl.load(mask + start + lane, mask=inside, other=0) != 0)
    return tl.load(x + start + lane, mask=inside, other=0.0).to(tl.float32), counted


@triton.jit(do_not_specialize=["num_elements", "tiles_each"])
def _moments(
    x,
    mask,
    partials,
    num_elements: tl.int64,
    tiles_each: tl.int32,
    VECTORS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    vector = tl.arange(0, VECTORS)[:, None]
    lane = vector * VECTOR + tl.arange(0, VECTOR)[None, :]
    num_vectors = num_elements // VECTOR
    # The elements behind the last whole vector are in a tile of their own, empty for all programs but the last.
    start = num_vectors * VECTOR
    is_last = tl.where(program == tl.num_programs(0) - 1, 1, 0)
    values, counted = _load(x, mask, start, lane, lane < (num_elements - start) * is_last)
    count, total, squares = _tile_moments(values, counted)
    for step in range(0, tiles_each):
        first = (program * tiles_each + step) * VECTORS
        inside = tl.broadcast_to(vector < num_vectors - first, [VECTORS, VECTOR])
        values, counted = _load(x, mask, first * VECTOR, lane, inside)
        part = _tile_moments(values, counted)
        count, total, squares = _merge(count, total, squares, part[0], part[1], part[2])
    tl.store(partials + program, count)
    tl.store(partials + tl.num_programs(0) + program, total)
    tl.store(partials + 2 * tl.num_programs(0) + program, squares)


@triton.jit
def _combined(partials, PROGRAMS: tl.constexpr):
    """Count, sum and sum of squares about the mean of everything."""
    lane = tl.arange(0, PROGRAMS)
    there = lane < tl.num_programs(0)
    counts = tl.load(partials + lane, mask=there, other=0.0)
    totals = tl.load(partials + tl.num_programs(0) + lane, mask=there, other=0.0)
    squares = tl.load(partials + 2 * tl.num_programs(0) + lane, mask=there, other=0.0)
    count = tl.sum(counts, 0)
    total = tl.sum(totals, 0)
    distance = totals / tl.maximum(counts, 1.0) - total / tl.maximum(count, 1.0)
    return count, total, tl.sum(squares + counts * distance * distance, 0)


@triton.jit
def _whitened(x, counted, mean_high, mean_low, scale):
    """The mean comes in two float32, because x minus its rounding would cancel to that rounding's error."""
    return tl.where(counted, ((x - mean_high) - mean_low) * scale, 0.0)


@triton.jit
def _rule(count, mean, squares, ddof, epsilon, CENTER: tl.constexpr, EPSILON_AT: tl.constexpr):
    """What is taken from each element, and what the rest is multiplied by; EPSILON_AT is a place in EPSILON_PLACES."""
    variance = tl.where(count > ddof, squares / tl.maximum(count - ddof, 1.0), 0.0)
    if EPSILON_AT == 0:
        deviation = tl.sqrt(variance + epsilon)
    elif EPSILON_AT == 1:
        deviation = tl.sqrt(tl.maximum(variance, epsilon, propagate_nan=tl.PropagateNan.ALL))
    else:
        deviation = tl.sqrt(variance) + epsilon
    if not CENTER:
        # The mean put back is another mean taken away.
        mean = mean - mean * deviation
    return mean, 1.0 / deviation


@triton.jit
def _split(mean):
    """float64 as two float32."""
    high = mean.to(tl.float32)
    return high, (mean - high.to(tl.float64)).to(tl.float32)


@triton.jit(do_not_specialize=["num_elements", "tiles_each", "ddof", "epsilon"])
def _whiten(
    x,
    mask,
    partials,
    stats,
    out,
    num_elements: tl.int64,
    tiles_each: tl.int32,
    ddof: tl.int32,
    epsilon: tl.float64,
    PROGRAMS: tl.constexpr,
    CENTER: tl.constexpr,
    EPSILON_AT: tl.constexpr,
    VECTORS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    if stats is not None:
        total = tl.load(stats).to(tl.float64)
        count = tl.load(stats + 2).to(tl.float64)
        squares = tl.load(stats + 1).to(tl.float64) - total * (total / tl.maximum(count, 1.0))
        squares = tl.where(squares < 0.0, 0.0, squares)
    else:
        count, total, squares = _combined(partials, PROGRAMS)
    mean = total / tl.maximum(count, 1.0)
    mean, scale = _rule(count, mean, squares, ddof, epsilon, CENTER, EPSILON_AT)
    scale = scale.to(tl.float32)
    mean_high, mean_low = _split(mean)
    vector = tl.arange(0, VECTORS)[:, None]
    lane = vector * VECTOR + tl.arange(0, VECTOR)[None, :]
    num_vectors = num_elements // VECTOR
    for step in range(0, tiles_each):
        first = (program * tiles_each + step) * VECTORS
        start = first * VECTOR
        inside = tl.broadcast_to(vector < num_vectors - first, [VECTORS, VECTOR])
        values, counted = _load(x, mask, start, lane, inside)
        tl.store(out + start + lane, _whitened(values, counted, mean_high, mean_low, scale), mask=inside)
    if program == tl.num_programs(0) - 1:
        start = num_vectors * VECTOR
        inside = lane < num_elements - start
        values, counted = _load(x, mask, start, lane, inside)
        tl.store(out + start + lane, _whitened(values, counted, mean_high, mean_low, scale), mask=inside)


def masked_whiten(
    x: Tensor, mask: Tensor, stats: Tensor | None, center: bool, ddof: int, epsilon: float, epsilon_at: int
) -> Tensor:
    out = x.new_empty(x.shape, dtype=torch.float32)
    num_elements = x.numel()
    if num_elements == 0:
        return out
    x, mask = x.contiguous(), mask.contiguous()
    vector = vector_length(x.dtype)
    num_tiles = triton.cdiv(num_elements, _TILE)
    tiles_each = triton.cdiv(num_tiles, _MAX_PROGRAMS)
    num_programs = triton.cdiv(num_tiles, tiles_each)
    shape = {"VECTORS": _TILE // vector, "VECTOR": vector, "num_warps": 4}
    partials = None
    if stats is None:
        partials = x.new_empty((3, num_programs), dtype=torch.float64)
        _moments[(num_programs,)](x, mask, partials, num_elements, tiles_each, **shape)
    else:
        stats = stats.contiguous()
    data = (x, mask, partials, stats, out, num_elements, tiles_each, ddof, epsilon)
    _whiten[(num_programs,)](*data, PROGRAMS=_MAX_PROGRAMS, CENTER=center, EPSILON_AT=epsilon_at, **shape)
    return out


@triton.jit(do_not_specialize=["length"])
def _row_moments(x, mask, rows, length: tl.int64, TILE: tl.constexpr):
    """[3] of a row, behind one another by the number of programs: count, sum, squares about the mean."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, TILE)[None, :]
    count = tl.zeros([], tl.float64)
    total = tl.zeros([], tl.float64)
    squares = tl.zeros([], tl.float64)
    for first in range(0, length, TILE):
        values, counted = _load(x, mask, row * length + first, lane, lane < length - first)
        part = _tile_moments(values, counted)
        count, total, squares = _merge(count, total, squares, part[0], part[1], part[2])
    num_rows = tl.num_programs(0).to(tl.int64)
    tl.store(rows + row, count)
    tl.store(rows + num_rows + row, total)
    tl.store(rows + 2 * num_rows + row, squares)


@triton.jit
def _rows_of_group(rows, groups, first, num_rows, group, TILE: tl.constexpr):
    """Count, sum and squares of a tile of rows, 0 where a row is of another group."""
    row = first + tl.arange(0, TILE)
    inside = row < num_rows
    member = inside & (tl.load(groups + row, mask=inside, other=-1) == group)
    count = tl.load(rows + row, mask=member, other=0.0)
    total = tl.load(rows + num_rows + row, mask=member, other=0.0)
    return count, total, tl.load(rows + 2 * num_rows + row, mask=member, other=0.0)


@triton.jit(do_not_specialize=["num_rows", "ddof", "epsilon"])
def _group_rules(
    rows,
    groups,
    rules,
    num_rows: tl.int64,
    ddof: tl.int32,
    epsilon: tl.float64,
    CENTER: tl.constexpr,
    EPSILON_AT: tl.constexpr,
    TILE: tl.constexpr,
):
    """A program a group, which looks at every row: mean and scale."""
    group = tl.program_id(0).to(tl.int64)
    count = tl.zeros([], tl.float64)
    total = tl.zeros([], tl.float64)
    squares = tl.zeros([], tl.float64)
    for first in range(0, num_rows, TILE):
        part = _rows_of_group(rows, groups, first, num_rows, group, TILE)
        count += tl.sum(part[0], 0)
        total += tl.sum(part[1], 0)
    mean = total / tl.maximum(count, 1.0)
    for first in range(0, num_rows, TILE):
        part = _rows_of_group(rows, groups, first, num_rows, group, TILE)
        distance = tl.where(part[0] > 0.0, part[1] / tl.maximum(part[0], 1.0) - mean, 0.0)
        squares += tl.sum(part[2] + part[0] * distance * distance, 0)
    mean, scale = _rule(count, mean, squares, ddof, epsilon, CENTER, EPSILON_AT)
    tl.store(rules + 2 * group, mean)
    tl.store(rules + 2 * group + 1, scale)


@triton.jit(do_not_specialize=["length", "num_groups"])
def _whiten_by_group(x, mask, groups, rules, out, length: tl.int64, num_groups: tl.int64, TILE: tl.constexpr):
    """A program a row; NaN in rows without a group."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.load(groups + row).to(tl.int64)
    known = (group >= 0) & (group < num_groups)
    mean = tl.load(rules + 2 * group, mask=known, other=float("nan"))
    scale = tl.load(rules + 2 * group + 1, mask=known, other=float("nan")).to(tl.float32)
    mean_high, mean_low = _split(mean)
    lane = tl.arange(0, TILE)
    for first in range(0, length, TILE):
        inside = lane < length - first
        values, counted = _load(x, mask, row * length + first, lane, inside)
        place = row * length + first + lane
        tl.store(out + place, _whitened(values, counted, mean_high, mean_low, scale), mask=inside)


def group_whiten(
    x: Tensor,
    mask: Tensor,
    groups: Tensor,
    num_groups: int,
    center: bool,
    ddof: int,
    epsilon: float,
    epsilon_at: int,
) -> Tensor:
    out = x.new_empty(x.shape, dtype=torch.float32)
    if x.numel() == 0:
        return out
    x, mask, groups = x.contiguous(), mask.contiguous(), groups.contiguous()
    num_rows, length = x.shape[0], x.numel() // x.shape[0]
    rows = x.new_empty((3, num_rows), dtype=torch.float64)
    rules = x.new_empty((num_groups, 2), dtype=torch.float64)
    _row_moments[(num_rows,)](x, mask, rows, length, TILE=_TILE, num_warps=4)
    how = {"CENTER": center, "EPSILON_AT": epsilon_at, "TILE": _TILE, "num_warps": 4}
    _group_rules[(num_groups,)](rows, groups, rules, num_rows, ddof, epsilon, **how)
    _whiten_by_group[(num_rows,)](x, mask, groups, rules, out, length, num_groups, TILE=_TILE, num_warps=4)
    return out
