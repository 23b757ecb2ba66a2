"""What is logged of rows of logits beside log-probabilities, from the normalizers that those left.

Program -> one row, which is read once, in tiles of 1,024: V elements in, 12 bytes out. Sums of tiles are added up in
float64: they go into no gradient, and are made as rarely as somebody looks at them.
"""

# ruff: noqa: N803  (constants of a kernel are written in capitals, as everywhere in Triton)

import torch
from instructrl.kernels.triton import rows
from instructrl.kernels.triton.elementary import LOG2_E
from instructrl.kernels.triton.logit_map import map_classes
from instructrl.kernels.triton.rows import row_offset
from torch import Tensor

import triton
import triton.language as tl

_TILE = 1024
_NUMBERS = ["inner", "outer_stride", "inner_stride", "num_classes", "rate", "tanh_slope"]


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=["logits"])
def _row_statistics(
    logits,
    tokens,
    mask,
    allowed,
    normalizers,
    statistics,
    inner: tl.int64,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    num_classes: tl.int32,
    rate: tl.float32,
    tanh_slope: tl.float32,
    CAPPED: tl.constexpr,
    TILE: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    counted = n >= 0
    if mask is not None:
        counted = tl.load(mask + n) != 0
    mean = 0.0
    squares = 0.0
    is_largest = 0.0
    if counted:
        row = logits + row_offset(n, inner, outer_stride, inner_stride)
        token = tl.load(tokens + n)
        in_range = (token >= 0) & (token < num_classes)
        k = tl.where(in_range, token, 0)
        chosen = tl.load(row + k).to(tl.float32)
        largest = tl.load(normalizers + 2 * n)
        z_sum = tl.zeros([], tl.float64)
        square_sum = tl.zeros([], tl.float64)
        num_possible = tl.zeros([], tl.int32)
        num_larger = tl.zeros([], tl.int32)
        for first in range(0, num_classes, TILE):
            place = first + tl.arange(0, TILE)
            inside = place < num_classes
            x = tl.load(row + place, mask=inside, other=float("-inf")).to(tl.float32)
            z = map_classes(x, place, inside, allowed, tanh_slope, CAPPED)
            possible = z != float("-inf")
            p = tl.where(possible, tl.exp2((z - largest) * rate), 0.0)
            z_sum += tl.sum(tl.where(possible, z, 0.0), 0).to(tl.float64)
            square_sum += tl.sum(p * p, 0).to(tl.float64)
            num_possible += tl.sum(possible.to(tl.int32), 0)
            num_larger += tl.sum((possible & (x > chosen)).to(tl.int32), 0)
        own = map_classes(chosen, k, in_range, allowed, tanh_slope, CAPPED)
        share = tl.exp2(tl.load(normalizers + 2 * n + 1) * (-2.0 * LOG2_E))
        mean = tl.where(in_range, (z_sum / num_possible).to(tl.float32), float("nan"))
        squares = tl.where(in_range, square_sum.to(tl.float32) * share, float("nan"))
        is_largest = tl.where((num_larger == 0) & (own != float("-inf")), 1.0, 0.0)
        is_largest = tl.where(in_range, is_largest, float("nan"))
    tl.store(statistics + 3 * n, mean)
    tl.store(statistics + 3 * n + 1, squares)
    tl.store(statistics + 3 * n + 2, is_largest)


def row_statistics(
    logits: Tensor,
    tokens: Tensor,
    mask: Tensor | None,
    allowed: Tensor | None,
    normalizers: Tensor,
    temperature: float,
    tanh_slope: float,
) -> Tensor:
    statistics = logits.new_empty((*tokens.shape, 3), dtype=torch.float32)
    if tokens.numel() > 0:
        logits, layout = rows.as_rows(logits)
        dense = [None if x is None else x.contiguous() for x in (tokens, mask, allowed, normalizers)]
        numbers = (logits.shape[-1], LOG2_E.value / temperature, tanh_slope)
        shape = {"CAPPED": tanh_slope != 0.0, "TILE": _TILE, "num_warps": 4}
        _row_statistics[(tokens.numel(),)](logits, *dense, statistics, *layout, *numbers, **shape)
    return statistics
