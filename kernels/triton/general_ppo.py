"""PPO's losses under any settings: weights of tokens, other surrogates and estimators, given log ratios, no critic.

Programs, tiles and sums are those of `ppo.py` for float32, whose kernel has the losses as they were published alone.
Bytes moved: every given input once, the mask, and 4 a token for each gradient and for losses of tokens that are asked
for. What a setting picks is a constant of the kernel (`Form`), as is what is absent, so that it costs nothing.

Formulas and derivatives at their kinks are those of `instructrl/ops/ppo_terms.py`.
"""

# ruff: noqa: N803, N806  (constants of a kernel are written in capitals, as everywhere in Triton)

import math
from typing import NamedTuple

import torch
from instructrl.kernels.triton.elementary import exp, expm1, larger
from instructrl.kernels.triton.ppo import LARGEST, MAX_PROGRAMS, clip_terms, counted_load, split, total_of, value_terms
from torch import Tensor

import triton
import triton.language as tl
from instructrl.ops.ppo_settings import IMPORTANCES, KL_ESTIMATORS, SURROGATES, Flat


class Form(NamedTuple):
    """What is compiled: names out of `ppo_settings`, and whether what can be bounded is."""

    surrogate: str
    dual_clip: bool
    clamped: bool
    estimator: str
    input_clamped: bool
    output_clamped: bool
    straight_through: bool
    importance: str
    kl_in_loss: bool

    @staticmethod
    def of(settings: Flat) -> "Form":
        return Form(
            surrogate=SURROGATES[int(settings.surrogate)],
            dual_clip=settings.dual_clip < math.inf,
            clamped=settings.log_ratio_clamp < math.inf,
            estimator=KL_ESTIMATORS[int(settings.estimator)],
            input_clamped=settings.input_clamp < math.inf,
            output_clamped=settings.output_clamp < math.inf,
            straight_through=settings.straight_through != 0.0,
            importance=IMPORTANCES[int(settings.importance)],
            kl_in_loss=settings.kl_coef != 0.0,
        )


# Places of a program's sums: the metrics of `ppo_terms.GENERAL_METRICS` in their order, then the weighted losses.
_RATIO_MAX = tl.constexpr(4)
_NUM_METRICS = tl.constexpr(9)
_NUM_SUMS = tl.constexpr(12)


@triton.jit
def _clamped(x, limit, CLAMPED: tl.constexpr):
    return tl.where(x > limit, limit, tl.where(x < -limit, -limit, x)) if CLAMPED else x


@triton.jit
def _where_within(x, limit, derivative, CLAMPED: tl.constexpr):
    return tl.where(tl.abs(x) <= limit, derivative, 0.0) if CLAMPED else derivative


@triton.jit
def _weighted(x, weight, WEIGHTED: tl.constexpr):
    # A weight of 0 leaves a token out, whatever its loss is.
    return tl.where(weight == 0, 0.0, weight * x) if WEIGHTED else x


@triton.jit
def _ratio(log_ratio, clamp, CLAMPED: tl.constexpr):
    """`ppo_terms.ratio_of`: the ratio and its derivative by the log-probability."""
    ratio = exp(_clamped(log_ratio, clamp, CLAMPED))
    # An infinite ratio would turn advantage 0 into NaN. NaN stays.
    ratio = tl.where(ratio > LARGEST, LARGEST, ratio)
    return ratio, _where_within(log_ratio, clamp, ratio, CLAMPED)


@triton.jit
def _dual_clip(loss, derivative, advantage, dual_clip):
    """Where the advantage is negative the loss is at most this bound: loss, derivative, whether it is the bound."""
    bound = -advantage * dual_clip
    bounded = (advantage < 0) & (loss > bound)
    tie = (advantage < 0) & (loss == bound)
    derivative = tl.where(bounded, 0.0, tl.where(tie, 0.5 * derivative, derivative))
    return tl.where(bounded, bound, loss), derivative, bounded


@triton.jit
def _sapo(ratio, slope, advantage, positive, negative):
    """Loss and derivative; both sides of the sigmoid by one exponential, never of a positive number."""
    temperature = tl.where(advantage > 0, positive, negative)
    gate = temperature * (ratio - 1.0)
    small = exp(-tl.abs(gate))
    large_share = tl.div_rn(tl.full(small.shape, 1.0, tl.float32), 1.0 + small)
    small_share = small * large_share
    share = tl.where(gate < 0, small_share, large_share)
    # Two quotients of numbers, not one a token.
    four = positive * 0.0 + 4.0
    factor = tl.where(advantage > 0, tl.div_rn(four, positive), tl.div_rn(four, negative))
    return -advantage * (share * factor), -advantage * (4.0 * large_share * small_share * slope)


@triton.jit
def _policy(new, ratio, slope, advantage, settings, FORM: tl.constexpr):
    """`ppo_terms.SURROGATE_LOSSES`: loss, derivative, clipped or not, bounded by the dual clip or not."""
    low, high, dual_clip, positive, negative = settings
    clipped = (ratio < low) | (ratio > high)
    nowhere = clipped & False
    bounded = nowhere
    if FORM.surrogate == "clip":
        loss, derivative, clipped = clip_terms(ratio, slope, advantage, low, high)
        if FORM.dual_clip:
            loss, derivative, bounded = _dual_clip(loss, derivative, advantage, dual_clip)
    elif FORM.surrogate == "cispo":
        derivative = -advantage * tl.where(ratio < low, low, tl.where(ratio > high, high, ratio))
        loss = derivative * new
    elif FORM.surrogate == "reinforce":
        derivative, clipped = -advantage, nowhere
        loss = derivative * new
    else:
        tl.static_assert(FORM.surrogate == "sapo")
        loss, derivative = _sapo(ratio, slope, advantage, positive, negative)
        clipped = nowhere
    return loss, derivative, clipped, bounded


@triton.jit
def _estimate(d, FORM: tl.constexpr):
    """`ppo_terms.KL_ESTIMATES`: the estimate of the KL and its derivative."""
    if FORM.estimator == "k1":
        estimate, derivative = d, tl.full(d.shape, 1.0, tl.float32)
    elif FORM.estimator == "k2":
        estimate, derivative = 0.5 * (d * d), d
    elif FORM.estimator == "k3":
        growth = expm1(-d)
        estimate, derivative = growth + d, -growth
    else:
        tl.static_assert(FORM.estimator == "abs")
        estimate, derivative = tl.abs(d), tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
    return estimate, derivative


@triton.jit
def _kl(d, ratio, slope, input_clamp, output_clamp, FORM: tl.constexpr):
    """`ppo_terms.kl_terms`: the KL to the reference before its coefficient, and its derivative."""
    estimate, own = _estimate(_clamped(d, input_clamp, FORM.input_clamped), FORM)
    derivative = d if FORM.straight_through else _where_within(d, input_clamp, own, FORM.input_clamped)
    weighed = 0.5 * (d * d) if FORM.straight_through else estimate
    if FORM.importance == "score":
        derivative += weighed
    elif FORM.importance != "none":
        derivative = ratio * derivative + (0.0 if FORM.importance == "constant" else slope * weighed)
        estimate = ratio * estimate
    if not FORM.straight_through:
        derivative = _where_within(estimate, output_clamp, derivative, FORM.output_clamped)
    return _clamped(estimate, output_clamp, FORM.output_clamped), derivative


@triton.jit
def _tile(
    inputs, outputs, policy_settings, log_ratio_clamp, other_settings, start, lane, inside, sums, FORM: tl.constexpr
):  # fmt: skip
    """Adds a tile [vectors, elements] to the sums [vectors], and writes its gradients and losses."""
    logprobs, old_logprobs, log_ratios, advantages, values, old_values, returns, mask, ref_logprobs, weights = inputs
    cliprange_value, vf_coef, kl_coef, input_clamp, output_clamp = other_settings
    count, clipped, kl, ratio_sum, ratio_max, value_clipped, squared_sum, ref_kl, bounded, policy, value, kl_loss = sums
    WEIGHTED: tl.constexpr = weights is not None
    counted = inside & (tl.load(mask + start + lane, mask=inside, other=0) != 0)
    count += tl.sum(counted.to(tl.float32), 1)
    losses = tl.zeros(lane.shape, tl.float32)
    by_logprob, log_ratio, weight = losses, losses, losses
    if WEIGHTED:
        weight = counted_load(weights, start, lane, inside, counted)
    if logprobs is not None:
        new = counted_load(logprobs, start, lane, inside, counted)
        if old_logprobs is not None:
            log_ratio = new - counted_load(old_logprobs, start, lane, inside, counted)
        if advantages is not None:
            given = log_ratio if log_ratios is None else counted_load(log_ratios, start, lane, inside, counted)
            ratio, slope = _ratio(given, log_ratio_clamp, FORM.clamped)
            advantage = counted_load(advantages, start, lane, inside, counted)
            loss, derivative, wins, over = _policy(new, ratio, slope, advantage, policy_settings, FORM)
            losses = _weighted(loss, weight, WEIGHTED)
            by_logprob = tl.where(counted, _weighted(derivative, weight, WEIGHTED), 0.0)
            policy += tl.sum(losses, 1)
            clipped += tl.sum((wins & counted).to(tl.float32), 1)
            bounded += tl.sum((over & counted).to(tl.float32), 1)
            kl += tl.sum(0.5 * log_ratio * log_ratio, 1)
            ratio = tl.where(counted, ratio, 0.0)
            ratio_sum += tl.sum(ratio, 1)
            ratio_max = larger(ratio_max, tl.reduce(ratio, 1, larger))
        if ref_logprobs is not None:
            ratio, slope = _ratio(log_ratio, log_ratio_clamp, FORM.clamped)
            d = new - counted_load(ref_logprobs, start, lane, inside, counted)
            loss, derivative = _kl(d, ratio, slope, input_clamp, output_clamp, FORM)
            ref_kl += tl.sum(loss, 1)
            if FORM.kl_in_loss:
                loss = _weighted(loss, weight, WEIGHTED)
                kl_loss += tl.sum(loss, 1)
                losses += kl_coef * loss
                by_logprob += tl.where(counted, kl_coef * _weighted(derivative, weight, WEIGHTED), 0.0)
        tl.store(outputs[0] + start + lane, by_logprob, mask=inside)
    if values is not None:
        of_value = counted_load(values, start, lane, inside, counted)
        of_old = counted_load(old_values, start, lane, inside, counted)
        target = counted_load(returns, start, lane, inside, counted)
        loss, derivative, wins, squared = value_terms(of_value, of_old, target, counted, cliprange_value)
        loss = _weighted(loss, weight, WEIGHTED)
        value += tl.sum(loss, 1)
        value_clipped += tl.sum(wins.to(tl.float32), 1)
        squared_sum += tl.sum(squared, 1)
        losses += vf_coef * loss
        tl.store(outputs[1] + start + lane, vf_coef * _weighted(derivative, weight, WEIGHTED), mask=inside)
    if outputs[2] is not None:
        tl.store(outputs[2] + start + lane, losses, mask=inside)
    return count, clipped, kl, ratio_sum, ratio_max, value_clipped, squared_sum, ref_kl, bounded, policy, value, kl_loss


_NUMBERS = [
    "num_elements", "tiles_each", "low", "high", "dual_clip", "log_ratio_clamp", "positive_temperature",
    "negative_temperature", "cliprange_value", "vf_coef", "kl_coef", "input_clamp", "output_clamp",
]  # fmt: skip


@triton.jit(do_not_specialize=_NUMBERS)
def _general_terms(
    logprobs,
    old_logprobs,
    log_ratios,
    advantages,
    values,
    old_values,
    returns,
    mask,
    ref_logprobs,
    weights,
    grad_logprobs,
    grad_values,
    token_losses,
    partials,
    num_elements: tl.int64,
    tiles_each: tl.int32,
    low: tl.float32,
    high: tl.float32,
    dual_clip: tl.float32,
    log_ratio_clamp: tl.float32,
    positive_temperature: tl.float32,
    negative_temperature: tl.float32,
    cliprange_value: tl.float32,
    vf_coef: tl.float32,
    kl_coef: tl.float32,
    input_clamp: tl.float32,
    output_clamp: tl.float32,
    FORM: tl.constexpr,
    VECTORS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    inputs = (logprobs, old_logprobs, log_ratios, advantages, values, old_values, returns, mask, ref_logprobs, weights)
    outputs = (grad_logprobs, grad_values, token_losses)
    policy_settings = (low, high, dual_clip, positive_temperature, negative_temperature)
    others = (cliprange_value, vf_coef, kl_coef, input_clamp, output_clamp)
    program = tl.program_id(0).to(tl.int64)
    zero = tl.zeros([VECTORS], tl.float32)
    sums = (zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)
    # 64 bits to the start of a tile, 32 from there.
    vector = tl.arange(0, VECTORS)[:, None]
    lane = vector * VECTOR + tl.arange(0, VECTOR)[None, :]
    num_vectors = num_elements // VECTOR
    for step in range(0, tiles_each):
        first = (program * tiles_each + step) * VECTORS
        inside = tl.broadcast_to(vector < num_vectors - first, [VECTORS, VECTOR])
        sums = _tile(
            inputs, outputs, policy_settings, log_ratio_clamp, others, first * VECTOR, lane, inside, sums, FORM
        )  # fmt: skip
    if program == tl.num_programs(0) - 1:
        # The elements behind the last whole vector, one by one.
        start = num_vectors * VECTOR
        inside = lane < num_elements - start
        sums = _tile(inputs, outputs, policy_settings, log_ratio_clamp, others, start, lane, inside, sums, FORM)
    # Losses of either sign may add up to little: what is left of them is not that of float32.
    for index in tl.static_range(_NUM_SUMS):
        numbers = sums[index].to(tl.float64)
        total = tl.reduce(numbers, 0, larger) if index == _RATIO_MAX else tl.sum(numbers, 0)
        tl.store(partials + index * tl.num_programs(0) + program, total)


@triton.jit(do_not_specialize=["num_programs", "vf_coef", "kl_coef"])
def _finish(
    partials,
    num_tokens,
    losses,
    metrics,
    num_programs: tl.int32,
    vf_coef: tl.float32,
    kl_coef: tl.float32,
    KL_IN_LOSS: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    for index in tl.static_range(_NUM_METRICS):
        if index == _RATIO_MAX:
            lane = tl.arange(0, PROGRAMS)
            ratios = tl.load(partials + index * num_programs + lane, mask=lane < num_programs, other=0.0)
            tl.store(metrics + index, tl.reduce(ratios, 0, larger).to(tl.float32))
        else:
            tl.store(metrics + index, total_of(partials, index, num_programs, PROGRAMS).to(tl.float32))
    count = total_of(partials, 0, num_programs, PROGRAMS)
    if num_tokens is not None:
        count = tl.load(num_tokens)
    denominator = tl.where(count > 0, count, 1.0)
    policy_loss = total_of(partials, _NUM_METRICS, num_programs, PROGRAMS)
    value_loss = total_of(partials, _NUM_METRICS + 1, num_programs, PROGRAMS)
    loss = policy_loss + vf_coef * value_loss
    if KL_IN_LOSS:
        loss += kl_coef * total_of(partials, _NUM_METRICS + 2, num_programs, PROGRAMS)
    tl.store(losses, (loss / denominator).to(tl.float32))
    tl.store(losses + 1, (policy_loss / denominator).to(tl.float32))
    tl.store(losses + 2, (value_loss / denominator).to(tl.float32))
    tl.store(losses + 3, (1.0 / denominator).to(tl.float32))


def _finished(
    partials: Tensor, num_tokens: Tensor | None, vf_coef: float, kl_coef: float, kl_in_loss: bool
) -> tuple[Tensor, Tensor]:
    """Losses and metrics."""
    losses, metrics = (partials.new_empty(n, dtype=torch.float32) for n in (4, _NUM_METRICS.value))
    _finish[(1,)](
        partials,
        num_tokens,
        losses,
        metrics,
        partials.shape[1],
        vf_coef,
        kl_coef,
        KL_IN_LOSS=kl_in_loss,
        PROGRAMS=MAX_PROGRAMS,
        num_warps=4,
    )
    return losses, metrics


def general_ppo_loss(
    logprobs: Tensor | None,
    old_logprobs: Tensor | None,
    log_ratios: Tensor | None,
    advantages: Tensor | None,
    values: Tensor | None,
    old_values: Tensor | None,
    returns: Tensor | None,
    mask: Tensor,
    ref_logprobs: Tensor | None,
    weights: Tensor | None,
    num_tokens: Tensor | None,
    settings: list[float],
    unreduced: bool,
) -> tuple[Tensor, ...]:
    numbers = Flat(*settings)
    form = Form.of(numbers)
    # Absent outputs are empty, and absent to the kernel.
    model = (logprobs, values, mask if unreduced else None)
    outputs = [mask.new_empty((0,) if x is None else x.shape, dtype=torch.float32) for x in model]
    written = [None if x is None else output for x, output in zip(model, outputs, strict=True)]
    if mask.numel() == 0:
        losses, metrics = (mask.new_zeros(n, dtype=torch.float32) for n in (4, _NUM_METRICS.value))
        return losses, *outputs[:2], metrics, outputs[2]
    policy, critic = (logprobs, old_logprobs, log_ratios, advantages), (values, old_values, returns)
    inputs = [None if x is None else x.contiguous() for x in (*policy, *critic, mask, ref_logprobs, weights)]
    # Four tokens a thread in every dtype: for eight of bfloat16 with all that can be given, registers do not suffice.
    grid = split(mask.numel(), torch.float32)
    partials = mask.new_empty((_NUM_SUMS.value, grid.num_programs), dtype=torch.float64)
    _general_terms[(grid.num_programs,)](
        *inputs,
        *written,
        partials,
        mask.numel(),
        grid.tiles_each,
        1.0 - numbers.clip_low,
        1.0 + numbers.clip_high,
        numbers.dual_clip,
        numbers.log_ratio_clamp,
        numbers.positive_temperature,
        numbers.negative_temperature,
        numbers.cliprange_value,
        numbers.vf_coef,
        numbers.kl_coef,
        numbers.input_clamp,
        numbers.output_clamp,
        FORM=form,
        VECTORS=grid.vectors,
        VECTOR=grid.vector,
        num_warps=grid.num_warps,
    )
    kl_in_loss = form.kl_in_loss and ref_logprobs is not None
    losses, metrics = _finished(partials, num_tokens, numbers.vf_coef, numbers.kl_coef, kl_in_loss)
    return losses, *outputs[:2], metrics, outputs[2]
