"""Rows of logits: where they are, and how they are read 16 bytes at a time from any address.

A row of an odd vocabulary starts anywhere between two 16-byte boundaries. Vector g of a row is the 16 bytes that begin
g times 16 after the boundary at or before its start, so that its address is known to be a multiple of 16 whatever the
row's is. Vectors that lie inside of the row are read whole; the elements of the two that it only cuts, at most 15 of 2
bytes, are its edges and read one by one. Triton vectorises what it can prove: the boundary by `multiple_of`, the mask
because it is one number a vector, broadcast along the last dimension.
"""

# ruff: noqa: N803  (constants of a kernel are written in capitals, as everywhere in Triton)

from typing import NamedTuple

import torch
from torch import Tensor

import triton
import triton.language as tl

BYTES = 16
_BYTES = tl.constexpr(BYTES)


class RowLayout(NamedTuple):
    """Rows of `[..., V]`: row n starts `(n // inner) * outer_stride + (n % inner) * inner_stride` elements in."""

    inner: int
    outer_stride: int
    inner_stride: int


def row_layout(logits: Tensor) -> RowLayout | None:
    """The layout of `[..., V]` with at least one row, None where two strides do not describe it."""
    if logits.shape[-1] > 1 and logits.stride(-1) != 1:
        return None
    merged: list[tuple[int, int]] = []
    for size, stride in zip(logits.shape[:-1], logits.stride()[:-1], strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    if len(merged) > 2:
        return None
    inner, inner_stride = merged[-1] if merged else (1, logits.shape[-1])
    return RowLayout(inner, merged[0][1] if len(merged) == 2 else inner * inner_stride, inner_stride)


def as_rows(logits: Tensor) -> tuple[Tensor, RowLayout]:
    """The logits, copied only where two strides do not describe them, and their layout."""
    layout = row_layout(logits)
    if layout is None:
        logits = logits.contiguous()
        layout = row_layout(logits)
        assert layout is not None
    return logits, layout


def aligned_alike(a: Tensor, a_layout: RowLayout, b: Tensor, b_layout: RowLayout) -> bool:
    """Whether each row of `a` starts as far after a 16-byte boundary as the same row of `b`."""
    if a.data_ptr() == b.data_ptr() and a_layout == b_layout:
        return True
    pairs = zip((a.data_ptr(), *a_layout[1:]), (b.data_ptr(), *b_layout[1:]), strict=True)
    sizes = (1, a.element_size(), a.element_size())
    alike = all((x - y) * size % BYTES == 0 for size, (x, y) in zip(sizes, pairs, strict=True))
    return alike and a_layout.inner == b_layout.inner


def contiguous_layout(layout: RowLayout, num_classes: int) -> RowLayout:
    """That of a contiguous tensor, split into outer and inner rows as another is."""
    return RowLayout(layout.inner, layout.inner * num_classes, num_classes)


def vector_length(dtype: torch.dtype) -> int:
    """Elements of 16 bytes."""
    return BYTES // dtype.itemsize


def tile(num_classes: int, dtype: torch.dtype, capped: bool = False) -> tuple[int, int]:
    """Vectors of a tile and warps of a program: by the vocabulary alone, so that a row never depends on the batch.

    capped: a tanh a class takes registers, so a thread has half of the classes.
    """
    vector = vector_length(dtype)
    if num_classes <= 512:
        return 512 // vector, 2
    return (2048 if capped else 4096) // vector, 8


@triton.jit
def row_offset(row, inner, outer_stride, inner_stride):
    return (row // inner) * outer_stride + (row % inner) * inner_stride


@triton.jit
def elements_after_boundary(row):
    """How many elements after the last 16-byte boundary a row starts."""
    itemsize: tl.constexpr = row.dtype.element_ty.primitive_bitwidth // 8
    return ((row.to(tl.int64) % _BYTES) // itemsize).to(tl.int32)


@triton.jit
def whole_vectors(first, shift, num_classes, VECTORS: tl.constexpr, VECTOR: tl.constexpr):
    """Places of the tile that begins with vector `first`, counted from the boundary, and which of them to read.

    Both [VECTORS, VECTOR]; the second is the same along a vector.
    """
    vector = (first + tl.arange(0, VECTORS))[:, None]
    place = vector * VECTOR + tl.arange(0, VECTOR)[None, :]
    inside = (vector * VECTOR >= shift) & (vector * VECTOR + VECTOR <= shift + num_classes)
    return place, tl.broadcast_to(inside, [VECTORS, VECTOR])


@triton.jit
def edges(shift, num_classes, VECTOR: tl.constexpr):
    """Places of the elements that no whole vector holds, and which of the [2 * VECTOR] there are."""
    lane = tl.arange(0, 2 * VECTOR)
    end = shift + num_classes
    last = end // VECTOR * VECTOR
    place = tl.where(lane < VECTOR, lane, last + lane - VECTOR)
    # The first half is the first vector where that is cut. A row inside of one vector is all in there.
    end_of_first = tl.where(shift > 0, VECTOR, 0)
    start_of_last = tl.where((last > 0) | (shift == 0), VECTOR, 2 * VECTOR)
    cut = (lane < end_of_first) | (lane >= start_of_last)
    return place, cut & (place >= shift) & (place < end)
