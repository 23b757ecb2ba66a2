"""Sampling of the next token from given uniform numbers.

First launch: program -> 2,048 logits of one row, in order of their index; their largest, and the sum of exponentials
relative to it. Second launch: program -> one row; the sums of its tiles, brought to one scale, are accumulated in
float64, the tile that the uniform number falls into is found, and that tile is scanned once more. Bytes moved: the row
once and one tile; two launches, so that few rows occupy the whole GPU.

Tiles begin at multiples of 2,048 whatever the address of the row is, so a row that moves in the batch, or leaves it,
keeps its sample. Where all rows start at 16-byte boundaries the reads are 16 bytes wide.
"""

# ruff: noqa: N803  (constants of a kernel are written in capitals, as everywhere in Triton)

import torch
from instructrl.kernels.triton.elementary import LOG2_E
from instructrl.kernels.triton.logit_map import map_classes
from instructrl.kernels.triton.rows import BYTES
from torch import Tensor

import triton
import triton.language as tl

_TILE = 2048
_LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _row(logits, row, row_stride, ALIGNED: tl.constexpr):
    pointer = logits + row * row_stride
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


_NUMBERS = ["row_stride", "num_classes", "num_tiles", "allowed_stride", "rate", "tanh_slope"]


@triton.jit(do_not_specialize=_NUMBERS)
def _tile_sums(
    logits,
    allowed,
    largest,
    sums,
    row_stride: tl.int64,
    num_classes: tl.int32,
    num_tiles: tl.int32,
    allowed_stride: tl.int64,
    rate: tl.float32,
    tanh_slope: tl.float32,
    CAPPED: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    row = _row(logits, program // num_tiles, row_stride, ALIGNED)
    if allowed is not None:
        allowed += program // num_tiles * allowed_stride
    if ALIGNED:
        num_classes = num_classes // 8 * 8
    place = (program % num_tiles).to(tl.int32) * TILE + tl.arange(0, TILE)
    inside = place < num_classes
    x = tl.load(row + place, mask=inside, other=float("-inf")).to(tl.float32)
    x = map_classes(x, place, inside, allowed, tanh_slope, CAPPED)
    # Not below the lowest number: -inf minus -inf is NaN.
    tile_largest = tl.maximum(tl.max(x, 0), _LOWEST)
    tl.store(largest + program, tile_largest)
    tl.store(sums + program, tl.sum(tl.exp2((x - tile_largest) * rate), 0))


@triton.jit
def _tile_weights(largest, sums, first, num_tiles, row_largest, rate, LANES: tl.constexpr):
    """Sums of tiles `first` and after, relative to the largest logit of the row, in float64."""
    tile = first + tl.arange(0, LANES)
    there = tile < num_tiles
    tile_largest = tl.load(largest + tile, mask=there, other=_LOWEST)
    weight = tl.load(sums + tile, mask=there, other=0.0) * tl.exp2((tile_largest - row_largest) * rate)
    return tile, tl.where(there, weight, 0.0).to(tl.float64)


@triton.jit
def _tile_of(largest, sums, target, num_tiles, row_largest, rate, LANES: tl.constexpr):
    """The first tile whose end is past the target, and the weight in front of it; where rounding leaves none, the last
    that weighs something."""
    found = num_tiles
    fallback = tl.zeros([], tl.int32)
    before = tl.zeros([], tl.float64)
    fallback_before = tl.zeros([], tl.float64)
    running = tl.zeros([], tl.float64)
    for first in range(0, num_tiles, LANES):
        tile, weight = _tile_weights(largest, sums, first, num_tiles, row_largest, rate, LANES)
        end = running + tl.cumsum(weight, 0)
        passed = tl.min(tl.where((end > target) & (weight > 0), tile, num_tiles), 0)
        last = tl.max(tl.where(weight > 0, tile, -1), 0)
        passed_before = tl.sum(tl.where(tile == passed, end - weight, 0.0), 0)
        last_before = tl.sum(tl.where(tile == last, end - weight, 0.0), 0)
        before = tl.where(found < num_tiles, before, passed_before)
        found = tl.minimum(found, passed)
        fallback_before = tl.where(last >= 0, last_before, fallback_before)
        fallback = tl.maximum(fallback, last)
        running += tl.sum(weight, 0)
    before = tl.where(found < num_tiles, before, fallback_before)
    found = tl.where(found < num_tiles, found, fallback)
    return found, before


@triton.jit(do_not_specialize=_NUMBERS)
def _choose(
    logits,
    allowed,
    uniforms,
    largest,
    sums,
    chosen,
    row_stride: tl.int64,
    num_classes: tl.int32,
    num_tiles: tl.int32,
    allowed_stride: tl.int64,
    rate: tl.float32,
    tanh_slope: tl.float32,
    CAPPED: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    largest += n * num_tiles
    sums += n * num_tiles
    lane = tl.arange(0, LANES)
    highest = tl.full([LANES], _LOWEST, tl.float32)
    for first in range(0, num_tiles, LANES):
        tile = first + lane
        highest = tl.maximum(highest, tl.load(largest + tile, mask=tile < num_tiles, other=_LOWEST))
    row_largest = tl.max(highest, 0)
    total = tl.zeros([], tl.float64)
    for first in range(0, num_tiles, LANES):
        tile, weight = _tile_weights(largest, sums, first, num_tiles, row_largest, rate, LANES)
        total += tl.sum(weight, 0)
    target = tl.load(uniforms + n).to(tl.float64) * total
    found, before = _tile_of(largest, sums, target, num_tiles, row_largest, rate, LANES)
    row = _row(logits, n, row_stride, ALIGNED)
    if allowed is not None:
        allowed += n * allowed_stride
    if ALIGNED:
        num_classes = num_classes // 8 * 8
    place = found * TILE + tl.arange(0, TILE)
    inside = place < num_classes
    x = tl.load(row + place, mask=inside, other=float("-inf")).to(tl.float32)
    x = map_classes(x, place, inside, allowed, tanh_slope, CAPPED)
    weight = tl.exp2((x - row_largest) * rate).to(tl.float64)
    # A parallel cumulative sum need not rise with every term: a token of probability 0 is told by its own weight.
    past = (before + tl.cumsum(weight, 0) > target) & (weight > 0)
    token = tl.min(tl.where(past, place, num_classes), 0)
    last = tl.max(tl.where(weight > 0, place, 0), 0)
    tl.store(chosen + n, tl.where(token < num_classes, token, last).to(tl.int64))


def sample_tokens(
    logits: Tensor, uniforms: Tensor, allowed: Tensor | None, temperature: float, tanh_slope: float
) -> Tensor:
    num_rows, num_classes = logits.shape
    chosen = logits.new_empty(num_rows, dtype=torch.int64)
    if num_rows == 0:
        return chosen
    if num_classes > 1 and logits.stride(1) != 1:
        logits = logits.contiguous()
    num_tiles = triton.cdiv(num_classes, _TILE)
    largest, sums = logits.new_empty((2, num_rows, num_tiles), dtype=torch.float32).unbind()
    row_stride = logits.stride(0) if num_rows > 1 else num_classes
    row_bytes = row_stride * logits.element_size()
    aligned = logits.data_ptr() % BYTES == 0 and row_bytes % BYTES == 0 and num_classes % 8 == 0
    if allowed is not None:
        allowed = allowed.contiguous()
    allowed_stride = num_classes if allowed is not None and allowed.dim() == 2 else 0
    numbers = (row_stride, num_classes, num_tiles, allowed_stride, LOG2_E.value / temperature, tanh_slope)
    shape = {"CAPPED": tanh_slope != 0.0, "ALIGNED": aligned, "TILE": _TILE, "num_warps": 4}
    _tile_sums[(num_rows * num_tiles,)](logits, allowed, largest, sums, *numbers, **shape)
    _choose[(num_rows,)](logits, allowed, uniforms.contiguous(), largest, sums, chosen, *numbers, LANES=128, **shape)
    return chosen
