"""PPO's losses: policy, value and KL to a reference in one pass, with their gradients and metrics.

Program -> a run of tiles of the flat tokens, as many tiles for each of at most 1,024 programs as the token count asks
for; a second launch of one program adds the programs' sums in float64. Bytes moved: every input once, the mask, and 4 a
token for each gradient, which is that of the sum: the denominator is applied behind. The ten running sums of a program
are kept in registers, one a vector of 16 bytes, so that a token costs no exchange between threads. A tile is 1,024
tokens, one vector a thread: for two, registers do not suffice. Which tokens a sum takes, and in which order, depends
on their number alone.

The arithmetic that decides which branch of a clipped loss wins is that of `instructrl/ops/ppo_terms.py`, bit by bit:
products and differences whose results are compared before anything is added to them, so that none can be fused.
"""

# ruff: noqa: N803, N806  (constants of a kernel are written in capitals, as everywhere in Triton)

from typing import NamedTuple

import torch
from instructrl.kernels.triton.elementary import exp, expm1, larger
from instructrl.kernels.triton.rows import vector_length
from torch import Tensor

import triton
import triton.language as tl

_TILE = 1024
MAX_PROGRAMS = 1024
LARGEST = tl.constexpr(3.4028234663852886e38)
# Places of a program's sums: the metrics of `ppo_terms.PPO_METRICS` in their order, then the losses.
_RATIO_MAX = tl.constexpr(4)
_REF_KL = tl.constexpr(7)
_POLICY_LOSS = tl.constexpr(8)
_VALUE_LOSS = tl.constexpr(9)
_NUM_SUMS = tl.constexpr(10)


@triton.jit
def clip_terms(ratio, slope, advantage, low, high):
    """Loss, derivative, clipped or not. slope: the derivative of the ratio by the log-probability."""
    unclipped = -advantage * ratio
    clipped = -advantage * tl.where(ratio < low, low, tl.where(ratio > high, high, ratio))
    wins = clipped > unclipped
    tie_outside = (unclipped == clipped) & ((ratio < low) | (ratio > high))
    by_ratio = -advantage * slope
    derivative = tl.where(wins, 0.0, tl.where(tie_outside, 0.5 * by_ratio, by_ratio))
    return larger(unclipped, clipped), derivative, wins


@triton.jit
def _policy(new, old, advantage, counted, low, high):
    """Loss, derivative, clipped or not, ratio: `ppo_terms.policy_terms` as published."""
    ratio = exp(new - old)
    # An infinite ratio would turn advantage 0 into NaN. NaN stays.
    ratio = tl.where(ratio > LARGEST, LARGEST, ratio)
    loss, derivative, wins = clip_terms(ratio, ratio, advantage, low, high)
    return loss, tl.where(counted, derivative, 0.0), wins & counted, tl.where(counted, ratio, 0.0)


@triton.jit
def value_terms(value, old, target, counted, cliprange_value):
    """Loss, derivative, clipped or not, squared error: `ppo_terms.value_terms`."""
    low = old - cliprange_value
    high = old + cliprange_value
    error = value - target
    squared = error * error
    inside = tl.where(value > high, high, value)
    inside = tl.where(inside < low, low, inside)
    clipped_error = inside - target
    clipped_squared = clipped_error * clipped_error
    wins = clipped_squared > squared
    tie_outside = (squared == clipped_squared) & ((value < low) | (value > high))
    derivative = tl.where(wins, 0.0, tl.where(tie_outside, 0.5 * error, error))
    return 0.5 * larger(squared, clipped_squared), tl.where(counted, derivative, 0.0), wins & counted, squared


@triton.jit
def counted_load(pointer, start, lane, inside, counted):
    """float32, and 0 where the mask does not count: what is there enters no arithmetic."""
    return tl.where(counted, tl.load(pointer + start + lane, mask=inside, other=0.0).to(tl.float32), 0.0)


@triton.jit
def _tile(
    inputs, gradients, settings, start, lane, inside, sums,
    POLICY: tl.constexpr, VALUE: tl.constexpr, REFERENCE: tl.constexpr, KL_IN_LOSS: tl.constexpr,
):  # fmt: skip
    """Adds a tile [vectors, elements] to the sums [vectors] and writes its gradients."""
    logprobs, old_logprobs, advantages, values, old_values, returns, mask, ref_logprobs = inputs
    low, high, cliprange_value, vf_coef, kl_coef = settings
    count, clipped, kl, ratio_sum, ratio_max, value_clipped, squared_sum, ref_kl, policy_loss, value_loss = sums
    counted = inside & (tl.load(mask + start + lane, mask=inside, other=0) != 0)
    count += tl.sum(counted.to(tl.float32), 1)
    if POLICY:
        new = counted_load(logprobs, start, lane, inside, counted)
        old = counted_load(old_logprobs, start, lane, inside, counted)
        advantage = counted_load(advantages, start, lane, inside, counted)
        loss, derivative, wins, ratio = _policy(new, old, advantage, counted, low, high)
        policy_loss += tl.sum(loss, 1)
        clipped += tl.sum(wins.to(tl.float32), 1)
        kl += tl.sum(0.5 * (new - old) * (new - old), 1)
        ratio_sum += tl.sum(ratio, 1)
        ratio_max = larger(ratio_max, tl.reduce(ratio, 1, larger))
        if REFERENCE:
            difference = counted_load(ref_logprobs, start, lane, inside, counted) - new
            growth = expm1(difference)
            ref_kl += tl.sum(growth - difference, 1)
            if KL_IN_LOSS:
                derivative -= kl_coef * growth
        tl.store(gradients[0] + start + lane, derivative, mask=inside)
    if VALUE:
        value = counted_load(values, start, lane, inside, counted)
        old_value = counted_load(old_values, start, lane, inside, counted)
        target = counted_load(returns, start, lane, inside, counted)
        loss, derivative, wins, squared = value_terms(value, old_value, target, counted, cliprange_value)
        value_loss += tl.sum(loss, 1)
        value_clipped += tl.sum(wins.to(tl.float32), 1)
        squared_sum += tl.sum(squared, 1)
        tl.store(gradients[1] + start + lane, vf_coef * derivative, mask=inside)
    return count, clipped, kl, ratio_sum, ratio_max, value_clipped, squared_sum, ref_kl, policy_loss, value_loss


_NUMBERS = ["num_elements", "tiles_each", "low", "high", "cliprange_value", "vf_coef", "kl_coef", "num_programs"]


@triton.jit(do_not_specialize=_NUMBERS)
def _terms(
    logprobs,
    old_logprobs,
    advantages,
    values,
    old_values,
    returns,
    mask,
    ref_logprobs,
    grad_logprobs,
    grad_values,
    partials,
    num_elements: tl.int64,
    tiles_each: tl.int32,
    low: tl.float32,
    high: tl.float32,
    cliprange_value: tl.float32,
    vf_coef: tl.float32,
    kl_coef: tl.float32,
    KL_IN_LOSS: tl.constexpr,
    VECTORS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    POLICY: tl.constexpr = logprobs is not None
    VALUE: tl.constexpr = values is not None
    REFERENCE: tl.constexpr = ref_logprobs is not None
    inputs = (logprobs, old_logprobs, advantages, values, old_values, returns, mask, ref_logprobs)
    gradients = (grad_logprobs, grad_values)
    settings = (low, high, cliprange_value, vf_coef, kl_coef)
    program = tl.program_id(0).to(tl.int64)
    zero = tl.zeros([VECTORS], tl.float32)
    sums = (zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)
    # 64 bits to the start of a tile, 32 from there.
    vector = tl.arange(0, VECTORS)[:, None]
    lane = vector * VECTOR + tl.arange(0, VECTOR)[None, :]
    num_vectors = num_elements // VECTOR
    for step in range(0, tiles_each):
        first = (program * tiles_each + step) * VECTORS
        inside = tl.broadcast_to(vector < num_vectors - first, [VECTORS, VECTOR])
        sums = _tile(
            inputs, gradients, settings, first * VECTOR, lane, inside, sums,
            POLICY, VALUE, REFERENCE, KL_IN_LOSS,
        )  # fmt: skip
    if program == tl.num_programs(0) - 1:
        # The elements behind the last whole vector, one by one.
        start = num_vectors * VECTOR
        sums = _tile(
            inputs, gradients, settings, start, lane, lane < num_elements - start, sums,
            POLICY, VALUE, REFERENCE, KL_IN_LOSS,
        )  # fmt: skip
    for index in tl.static_range(_NUM_SUMS):
        total = tl.reduce(sums[index], 0, larger) if index == _RATIO_MAX else tl.sum(sums[index], 0)
        tl.store(partials + index * tl.num_programs(0) + program, total)


@triton.jit
def total_of(partials, index, num_programs, PROGRAMS: tl.constexpr):
    lane = tl.arange(0, PROGRAMS)
    parts = tl.load(partials + index * num_programs + lane, mask=lane < num_programs, other=0.0)
    return tl.sum(parts.to(tl.float64), 0)


@triton.jit(do_not_specialize=["num_programs", "vf_coef", "kl_coef"])
def _finish(
    partials,
    num_tokens,
    losses,
    metrics,
    num_programs: tl.int32,
    vf_coef: tl.float32,
    kl_coef: tl.float32,
    POLICY: tl.constexpr,
    VALUE: tl.constexpr,
    KL_IN_LOSS: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    count = total_of(partials, 0, num_programs, PROGRAMS)
    tl.store(metrics, count.to(tl.float32))
    if num_tokens is not None:
        count = tl.load(num_tokens)
    denominator = tl.where(count > 0, count, 1.0)
    if POLICY:
        for index in tl.static_range(1, _RATIO_MAX):
            tl.store(metrics + index, total_of(partials, index, num_programs, PROGRAMS).to(tl.float32))
        lane = tl.arange(0, PROGRAMS)
        ratios = tl.load(partials + _RATIO_MAX * num_programs + lane, mask=lane < num_programs, other=0.0)
        tl.store(metrics + _RATIO_MAX, tl.reduce(ratios, 0, larger))
    if VALUE:
        # Behind the policy's metrics, or behind the count.
        first: tl.constexpr = _RATIO_MAX + 1 if POLICY else 1
        for index in tl.static_range(2):
            total = total_of(partials, _RATIO_MAX + 1 + index, num_programs, PROGRAMS)
            tl.store(metrics + first + index, total.to(tl.float32))
    policy_loss = total_of(partials, _POLICY_LOSS, num_programs, PROGRAMS)
    value_loss = total_of(partials, _VALUE_LOSS, num_programs, PROGRAMS)
    loss = policy_loss + value_loss
    scale = losses + 1
    if POLICY and VALUE:
        ref_kl = total_of(partials, _REF_KL, num_programs, PROGRAMS)
        tl.store(metrics + _REF_KL, ref_kl.to(tl.float32))
        loss = policy_loss + vf_coef * value_loss
        if KL_IN_LOSS:
            loss += kl_coef * ref_kl
        tl.store(losses + 1, (policy_loss / denominator).to(tl.float32))
        tl.store(losses + 2, (value_loss / denominator).to(tl.float32))
        scale = losses + 3
    tl.store(losses, (loss / denominator).to(tl.float32))
    tl.store(scale, (1.0 / denominator).to(tl.float32))


class Split(NamedTuple):
    """The split of tokens over programs, and of a tile over threads: a vector of 16 bytes for each."""

    num_programs: int
    tiles_each: int
    vectors: int
    vector: int
    num_warps: int


def split(num_elements: int, dtype: torch.dtype) -> Split:
    vector, num_tiles = vector_length(dtype), triton.cdiv(num_elements, _TILE)
    tiles_each = triton.cdiv(num_tiles, MAX_PROGRAMS)
    vectors = _TILE // vector
    return Split(triton.cdiv(num_tiles, tiles_each), tiles_each, vectors, vector, vectors // 32)


def _run(
    policy: tuple[Tensor | None, ...],
    value: tuple[Tensor | None, ...],
    mask: Tensor,
    ref_logprobs: Tensor | None,
    num_tokens: Tensor | None,
    settings: tuple[float, float, float, float, float],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Losses, the gradients of log-probabilities and of values, metrics. settings: those of `ppo_loss`."""
    clip_low, clip_high, cliprange_value, vf_coef, kl_coef = settings
    with_policy, with_value = policy[0] is not None, value[0] is not None
    num_losses = 4 if with_policy and with_value else 2
    num_metrics = (5 if with_policy else 1) + (2 if with_value else 0) + (1 if num_losses == 4 else 0)
    gradients = [None if x is None else x.new_empty(x.shape, dtype=torch.float32) for x in (policy[0], value[0])]
    num_elements = mask.numel()
    if num_elements == 0:
        losses, metrics = (mask.new_zeros(n, dtype=torch.float32) for n in (num_losses, num_metrics))
        return losses, *gradients, metrics
    losses, metrics = (mask.new_empty(n, dtype=torch.float32) for n in (num_losses, num_metrics))
    inputs = [None if x is None else x.contiguous() for x in (*policy, *value, mask, ref_logprobs)]
    model = policy[0] if policy[0] is not None else value[0]
    assert model is not None
    grid = split(num_elements, model.dtype)
    partials = mask.new_empty((_NUM_SUMS.value, grid.num_programs), dtype=torch.float32)
    _terms[(grid.num_programs,)](
        *inputs,
        *gradients,
        partials,
        num_elements,
        grid.tiles_each,
        1.0 - clip_low,
        1.0 + clip_high,
        cliprange_value,
        vf_coef,
        kl_coef,
        KL_IN_LOSS=kl_coef != 0.0,
        VECTORS=grid.vectors,
        VECTOR=grid.vector,
        num_warps=grid.num_warps,
    )
    _finish[(1,)](
        partials,
        num_tokens,
        losses,
        metrics,
        grid.num_programs,
        vf_coef,
        kl_coef,
        POLICY=with_policy,
        VALUE=with_value,
        KL_IN_LOSS=kl_coef != 0.0,
        PROGRAMS=MAX_PROGRAMS,
        num_warps=4,
    )
    return losses, *gradients, metrics


_ABSENT = (None, None, None)


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    num_tokens: Tensor | None,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, Tensor, Tensor]:
    policy = (logprobs, old_logprobs, advantages)
    settings = (clip_low, clip_high, 0.0, 1.0, 0.0)
    losses, gradient, _, metrics = _run(policy, _ABSENT, mask, None, num_tokens, settings)
    assert gradient is not None
    return losses, gradient, metrics


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    num_tokens: Tensor | None,
    cliprange_value: float,
) -> tuple[Tensor, Tensor, Tensor]:
    value = (values, old_values, returns)
    settings = (0.0, 0.0, cliprange_value, 1.0, 0.0)
    losses, _, gradient, metrics = _run(_ABSENT, value, mask, None, num_tokens, settings)
    assert gradient is not None
    return losses, gradient, metrics


def ppo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    ref_logprobs: Tensor | None,
    num_tokens: Tensor | None,
    clip_low: float,
    clip_high: float,
    cliprange_value: float,
    vf_coef: float,
    kl_coef: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    policy, value = (logprobs, old_logprobs, advantages), (values, old_values, returns)
    settings = (clip_low, clip_high, cliprange_value, vf_coef, kl_coef)
    losses, grad_logprobs, grad_values, metrics = _run(policy, value, mask, ref_logprobs, num_tokens, settings)
    assert grad_logprobs is not None
    assert grad_values is not None
    return losses, grad_logprobs, grad_values, metrics
