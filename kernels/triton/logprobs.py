"""Log-probabilities and entropy of given tokens, and the gradient of the logits.

Program -> one row of V logits, in tiles of 4,096 elements: 16 a thread, in flight while other programs of the processor
compute. Forward moves 2V bytes a row (bfloat16) and keeps three numbers a vector lane in registers: the largest logit
so far, the sum of exponentials relative to it and, for the entropy, the sum of those times their distance from it.
Lanes are merged once, after the row. Within a vector the largest is found first, so an element costs one exponential.
Backward reads and writes 4V bytes a row and needs nothing but the two normalizers of the forward.

The bits of a row depend on where it starts relative to a 16-byte boundary, never on other rows.
"""

# ruff: noqa: N803  (constants of a kernel are written in capitals, as everywhere in Triton)

import torch
from instructrl.kernels.triton import rows
from instructrl.kernels.triton.elementary import LOG2_E
from instructrl.kernels.triton.logit_map import map_classes, map_slope
from instructrl.kernels.triton.rows import RowLayout, edges, elements_after_boundary, row_offset, whole_vectors
from torch import Tensor

import triton
import triton.language as tl

# The largest so far before there is one: unlike -inf it can be subtracted from -inf.
LOWEST = tl.constexpr(-3.4028234663852886e38)
_LAYOUT = ["inner", "outer_stride", "inner_stride", "num_classes", "rate", "temperature", "tanh_slope"]
# Where a row starts is found in the kernel: other alignments of the same pointers need no other code.
_POINTERS = [
    "logits",
    "gradient",
    "tokens",
    "mask",
    "allowed",
    "logprobs",
    "entropy",
    "normalizers",
    "grad_logprobs",
    "grad_entropy",
]


@triton.jit
def _surprise(x, largest, rate, WITH_ENTROPY: tl.constexpr):
    """Exponentials relative to the largest, and those times the distance (0 for -inf, which is 0 times infinity)."""
    distance = x - largest
    exponential = tl.exp2(distance * rate)
    weighted = exponential * tl.maximum(distance, LOWEST) if WITH_ENTROPY else exponential
    return exponential, weighted


@triton.jit
def _lowered(weighted, total, difference, decay):
    """A weighted sum when its maximum rises; of nothing it is 0, though the difference may be -inf."""
    return tl.where(decay > 0.0, decay * (weighted + total * difference), 0.0)


@triton.jit
def _normalize(
    row, num_classes, rate, allowed, tanh_slope,
    WITH_ENTROPY: tl.constexpr, CAPPED: tl.constexpr, VECTORS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Largest of a row, and relative to it the sum of exponentials and of exponentials times distances."""
    shift = elements_after_boundary(row)
    boundary = tl.multiple_of(row - shift, 16)
    largest = tl.full([VECTORS], LOWEST, tl.float32)
    total = tl.zeros([VECTORS], tl.float32)
    weighted = tl.zeros([VECTORS], tl.float32)
    for first in range(0, (shift + num_classes) // VECTOR, VECTORS):
        place, inside = whole_vectors(first, shift, num_classes, VECTORS, VECTOR)
        x = tl.load(boundary + place, mask=inside, other=float("-inf")).to(tl.float32)
        x = map_classes(x, place - shift, inside, allowed, tanh_slope, CAPPED)
        before = largest
        largest = tl.maximum(before, tl.max(x, 1))
        decay = tl.exp2((before - largest) * rate)
        exponential, surprise = _surprise(x, largest[:, None], rate, WITH_ENTROPY)
        if WITH_ENTROPY:
            weighted = _lowered(weighted, total, before - largest, decay) + tl.sum(surprise, 1)
        total = total * decay + tl.sum(exponential, 1)
    place, inside = edges(shift, num_classes, VECTOR)
    x = tl.load(boundary + place, mask=inside, other=float("-inf")).to(tl.float32)
    x = map_classes(x, place - shift, inside, allowed, tanh_slope, CAPPED)
    row_largest = tl.maximum(tl.max(largest, 0), tl.max(x, 0))
    exponential, surprise = _surprise(x, row_largest, rate, WITH_ENTROPY)
    decay = tl.exp2((largest - row_largest) * rate)
    row_weighted = tl.sum(surprise, 0)
    if WITH_ENTROPY:
        row_weighted += tl.sum(_lowered(weighted, total, largest - row_largest, decay), 0)
    return row_largest, tl.sum(total * decay, 0) + tl.sum(exponential, 0), row_weighted


@triton.jit(do_not_specialize=_LAYOUT, do_not_specialize_on_alignment=_POINTERS)
def _forward(
    logits,
    tokens,
    mask,
    allowed,
    logprobs,
    entropy,
    normalizers,
    inner: tl.int64,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    num_classes: tl.int32,
    rate: tl.float32,
    temperature: tl.float32,
    tanh_slope: tl.float32,
    WITH_ENTROPY: tl.constexpr,
    CAPPED: tl.constexpr,
    VECTORS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    counted = n >= 0
    if mask is not None:
        counted = tl.load(mask + n) != 0
    largest = 0.0
    log_total = 0.0
    logprob = 0.0
    row_entropy = 0.0
    if counted:
        row = logits + row_offset(n, inner, outer_stride, inner_stride)
        token = tl.load(tokens + n)
        in_range = (token >= 0) & (token < num_classes)
        k = tl.where(in_range, token, 0)
        chosen = map_classes(tl.load(row + k).to(tl.float32), k, in_range, allowed, tanh_slope, CAPPED)
        largest, total, weighted = _normalize(
            row, num_classes, rate, allowed, tanh_slope, WITH_ENTROPY, CAPPED, VECTORS, VECTOR
        )
        log_total = tl.log(total)
        logprob = tl.where(in_range, tl.div_rn(chosen - largest, temperature) - log_total, float("nan"))
        if WITH_ENTROPY:
            row_entropy = log_total - tl.div_rn(tl.div_rn(weighted, total), temperature)
            row_entropy = tl.where(in_range, row_entropy, float("nan"))
    tl.store(logprobs + n, logprob)
    tl.store(normalizers + 2 * n, largest)
    tl.store(normalizers + 2 * n + 1, log_total)
    if WITH_ENTROPY:
        tl.store(entropy + n, row_entropy)


@triton.jit
def _derivative(x, is_token, saved, rate, inverse_temperature, WITH_ENTROPY: tl.constexpr):
    """The gradient of logits in float32: the token's own column is rounded once, with the others."""
    largest, log_total, row_entropy, by_logprob, by_entropy = saved
    distance = x - largest
    probability = tl.exp2(distance * rate - log_total * LOG2_E)
    derivative = by_logprob * (tl.where(is_token, 1.0, 0.0) - probability)
    if WITH_ENTROPY:
        # Where the probability is 0 its logarithm may be -inf, and their product is 0.
        log_probability = tl.maximum(distance * inverse_temperature - log_total, LOWEST)
        derivative -= by_entropy * probability * (log_probability + row_entropy)
    return derivative * inverse_temperature


@triton.jit
def _write_row(
    source, out, shift, token, num_classes, saved, rate, inverse_temperature, allowed, tanh_slope,
    WITH_ENTROPY: tl.constexpr, CAPPED: tl.constexpr, VECTORS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    dtype = out.dtype.element_ty
    for first in range(0, (shift + num_classes) // VECTOR, VECTORS):
        place, inside = whole_vectors(first, shift, num_classes, VECTORS, VECTOR)
        x = tl.load(source + place, mask=inside, other=float("-inf")).to(tl.float32)
        z = map_classes(x, place - shift, inside, allowed, tanh_slope, CAPPED)
        y = _derivative(z, place == token + shift, saved, rate, inverse_temperature, WITH_ENTROPY)
        if CAPPED or allowed is not None:
            y *= map_slope(x, place - shift, inside, allowed, tanh_slope, CAPPED)
        tl.store(out + place, y.to(dtype), mask=inside)
    place, inside = edges(shift, num_classes, VECTOR)
    x = tl.load(source + place, mask=inside, other=float("-inf")).to(tl.float32)
    z = map_classes(x, place - shift, inside, allowed, tanh_slope, CAPPED)
    y = _derivative(z, place == token + shift, saved, rate, inverse_temperature, WITH_ENTROPY)
    if CAPPED or allowed is not None:
        y *= map_slope(x, place - shift, inside, allowed, tanh_slope, CAPPED)
    tl.store(out + place, y.to(dtype), mask=inside)


@triton.jit
def _write_zeros(out, shift, num_classes, VECTORS: tl.constexpr, VECTOR: tl.constexpr):
    dtype = out.dtype.element_ty
    for first in range(0, (shift + num_classes) // VECTOR, VECTORS):
        place, inside = whole_vectors(first, shift, num_classes, VECTORS, VECTOR)
        tl.store(out + place, tl.zeros([VECTORS, VECTOR], dtype), mask=inside)
    place, inside = edges(shift, num_classes, VECTOR)
    tl.store(out + place, tl.zeros([2 * VECTOR], dtype), mask=inside)


@triton.jit(
    do_not_specialize=[*_LAYOUT, "outer_stride_out", "inner_stride_out", "inverse_temperature"],
    do_not_specialize_on_alignment=_POINTERS,
)
def _backward(
    logits,
    gradient,
    tokens,
    mask,
    allowed,
    normalizers,
    entropy,
    grad_logprobs,
    grad_entropy,
    inner: tl.int64,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    outer_stride_out: tl.int64,
    inner_stride_out: tl.int64,
    num_classes: tl.int32,
    rate: tl.float32,
    inverse_temperature: tl.float32,
    tanh_slope: tl.float32,
    ALIKE: tl.constexpr,
    CAPPED: tl.constexpr,
    VECTORS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    row_out = gradient + row_offset(n, inner, outer_stride_out, inner_stride_out)
    # Vectors are those of the gradient: a scattered write costs more than a scattered read, which the cache serves.
    shift = elements_after_boundary(row_out)
    out = tl.multiple_of(row_out - shift, 16)
    token = tl.load(tokens + n)
    live = (token >= 0) & (token < num_classes)
    if mask is not None:
        live = live & (tl.load(mask + n) != 0)
    if live:
        source = logits + row_offset(n, inner, outer_stride, inner_stride) - shift
        if ALIKE:
            source = tl.multiple_of(source, 16)
        by_logprob = 0.0
        if grad_logprobs is not None:
            by_logprob = tl.load(grad_logprobs + n)
        row_entropy = 0.0
        by_entropy = 0.0
        if grad_entropy is not None:
            row_entropy = tl.load(entropy + n)
            by_entropy = tl.load(grad_entropy + n)
        saved = (tl.load(normalizers + 2 * n), tl.load(normalizers + 2 * n + 1), row_entropy, by_logprob, by_entropy)
        _write_row(
            source, out, shift, token.to(tl.int32), num_classes, saved, rate, inverse_temperature, allowed, tanh_slope,
            grad_entropy is not None, CAPPED, VECTORS, VECTOR,
        )  # fmt: skip
    else:
        _write_zeros(out, shift, num_classes, VECTORS, VECTOR)


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def token_logprobs(
    logits: Tensor,
    tokens: Tensor,
    mask: Tensor | None,
    allowed: Tensor | None,
    temperature: float,
    tanh_slope: float,
    with_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape, num_classes = tokens.shape, logits.shape[-1]
    logprobs = logits.new_empty(shape, dtype=torch.float32)
    entropy = logits.new_empty(shape if with_entropy else (0,), dtype=torch.float32)
    normalizers = logits.new_empty((*shape, 2), dtype=torch.float32)
    if tokens.numel() > 0:
        logits, layout = rows.as_rows(logits)
        vectors, num_warps = rows.tile(num_classes, logits.dtype, tanh_slope != 0.0)
        _forward[(tokens.numel(),)](
            logits,
            tokens.contiguous(),
            _dense(mask),
            _dense(allowed),
            logprobs,
            entropy,
            normalizers,
            *layout,
            num_classes,
            LOG2_E.value / temperature,
            temperature,
            tanh_slope,
            WITH_ENTROPY=with_entropy,
            CAPPED=tanh_slope != 0.0,
            VECTORS=vectors,
            VECTOR=rows.vector_length(logits.dtype),
            num_warps=num_warps,
        )
    return logprobs, entropy, normalizers


def _write_gradient(
    logits: Tensor, layout: RowLayout, gradient: Tensor, layout_out: RowLayout, saved: tuple[Tensor | None, ...],
    temperature: float, tanh_slope: float,
) -> None:  # fmt: skip
    num_classes = logits.shape[-1]
    vectors, num_warps = rows.tile(num_classes, logits.dtype, tanh_slope != 0.0)
    _backward[(logits.numel() // num_classes,)](
        logits,
        gradient,
        *[_dense(tensor) for tensor in saved],
        *layout,
        *layout_out[1:],
        num_classes,
        LOG2_E.value / temperature,
        1.0 / temperature,
        tanh_slope,
        CAPPED=tanh_slope != 0.0,
        ALIKE=rows.aligned_alike(logits, layout, gradient, layout_out),
        VECTORS=vectors,
        VECTOR=rows.vector_length(logits.dtype),
        num_warps=num_warps,
    )


def token_logprobs_backward(
    logits: Tensor,
    tokens: Tensor,
    mask: Tensor | None,
    allowed: Tensor | None,
    normalizers: Tensor,
    entropy: Tensor | None,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: float,
    tanh_slope: float,
) -> Tensor:
    gradient = logits.new_empty(logits.shape)
    if logits.numel() > 0:
        logits, layout = rows.as_rows(logits)
        layout_out = rows.contiguous_layout(layout, logits.shape[-1])
        saved = (tokens, mask, allowed, normalizers, entropy, grad_logprobs, grad_entropy)
        _write_gradient(logits, layout, gradient, layout_out, saved, temperature, tanh_slope)
    return gradient


def token_logprobs_backward_(
    logits: Tensor,
    tokens: Tensor,
    mask: Tensor | None,
    allowed: Tensor | None,
    normalizers: Tensor,
    entropy: Tensor | None,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: float,
    tanh_slope: float,
) -> None:
    if logits.numel() == 0:
        return
    saved = (tokens, mask, allowed, normalizers, entropy, grad_logprobs, grad_entropy)
    layout = rows.row_layout(logits)
    if layout is None:
        # Strides that no kernel addresses: the gradient is made beside the logits and copied.
        logits.copy_(token_logprobs_backward(logits, *saved, temperature, tanh_slope))
    else:
        _write_gradient(logits, layout, logits, layout, saved, temperature, tanh_slope)
