"""Paired comparisons with margins, weights, label smoothing and ties, and the Plackett-Luce loss.

Program -> a few prompts, tiles of responses x partners of each, as in ranking.py. Margins and weights are read by two
strides, so that a number which serves many pairs is one in memory; what is not given costs nothing. A program's choices
go through memory between the loss and the gradient: every response needs those of all that rank above it.
"""

# ruff: noqa: N803  (constants of a kernel are written in capitals, as everywhere in Triton)

import torch
from instructrl.kernels.triton.elementary import exp, log1p
from instructrl.kernels.triton.ranking import tile
from torch import Tensor

import triton
import triton.language as tl

_NUMBERS = [
    *("prompt_stride", "score_stride", "margin_prompt", "margin_pair", "weight_prompt", "weight_pair", "margin"),
    *("smoothing", "davidson", "tie_weight", "half_constant", "num_prompts", "num_responses"),
]


@triton.jit
def _comparison_term(x, tie, WITH_TIE: tl.constexpr):
    """log(1 + exp(-x) + tie exp(-x / 2)) and its derivative: `comparison_term` of csrc/formulas.h."""
    root = exp(-0.5 * tl.abs(x))
    rest = root * root
    numerator = tl.where(x >= 0, rest, 1.0)
    if WITH_TIE:
        middle = tie * root
        rest += middle
        numerator += 0.5 * middle
    # Exact division: a plain one is off by two bits on a GPU.
    return tl.where(x < 0, -x, 0.0) + log1p(rest), -tl.div_rn(numerator, 1.0 + rest)


@triton.jit
def _side(
    difference, won, tie, margins, weights, margin_at, weight_at, margin, smoothing, davidson, tie_weight,
    half_constant, WITH_DAVIDSON: tl.constexpr,
):  # fmt: skip
    """What a pair adds to the loss as its first response has it, and the derivative by the difference of the scores."""
    either = won | tie
    x = difference - margin
    if margins is not None:
        x -= tl.load(margins + margin_at, mask=either, other=0.0)
    weight = tl.full(difference.shape, 1.0, tl.float32)
    if weights is not None:
        weight = tl.load(weights + weight_at, mask=either, other=0.0)
    term, derivative = _comparison_term(x, davidson, WITH_DAVIDSON)
    strength = tl.where(won, weight, tie_weight * weight)
    # Selections, not products: a score that nothing is compared with may be NaN.
    loss = tl.where(either, strength * (term + smoothing * x), 0.0) - tl.where(tie, half_constant * weight, 0.0)
    return loss, tl.where(either, strength * (derivative + smoothing), 0.0)


@triton.jit(do_not_specialize=_NUMBERS)
def _comparisons(
    scores, preferred, tied, margins, weights, loss_sum, num_pairs, num_correct, num_ties, gradient,
    prompt_stride: tl.int64, score_stride: tl.int64,
    margin_prompt: tl.int64, margin_pair: tl.int64, weight_prompt: tl.int64, weight_pair: tl.int64,
    margin: tl.float32, smoothing: tl.float32, davidson: tl.float32, tie_weight: tl.float32, half_constant: tl.float32,
    num_prompts: tl.int64, num_responses: tl.int32,
    PROMPTS: tl.constexpr, RESPONSES: tl.constexpr, WITH_DAVIDSON: tl.constexpr,
):  # fmt: skip
    prompt = tl.program_id(0).to(tl.int64) * PROMPTS + tl.arange(0, PROMPTS)
    there = prompt < num_prompts
    rows, matrix = scores + (prompt * prompt_stride)[:, None], (prompt * num_responses * num_responses)[:, None, None]
    margins_of, weights_of = (prompt * margin_prompt)[:, None, None], (prompt * weight_prompt)[:, None, None]
    loss = tl.zeros([PROMPTS], tl.float32)
    pairs = tl.zeros([PROMPTS], tl.int64)
    correct = tl.zeros([PROMPTS], tl.int64)
    ties = tl.zeros([PROMPTS], tl.int64)
    for first in range(0, num_responses, RESPONSES):
        own = first + tl.arange(0, RESPONSES)[None, :]
        own_there = there[:, None] & (own < num_responses)
        own_scores = tl.load(rows + own * score_stride, mask=own_there, other=0.0).to(tl.float32)
        own_gradient = tl.zeros([PROMPTS, RESPONSES], tl.float32)
        own_loss = tl.zeros([PROMPTS, RESPONSES], tl.float32)
        for second in range(0, num_responses, RESPONSES):
            other = second + tl.arange(0, RESPONSES)[None, :]
            other_there = there[:, None] & (other < num_responses)
            other_scores = tl.load(rows + other * score_stride, mask=other_there, other=0.0).to(tl.float32)
            i, j = own[:, :, None], other[:, None, :]
            valid = own_there[:, :, None] & other_there[:, None, :] & (i != j)
            forth, back = i * num_responses + j, j * num_responses + i
            won = tl.load(preferred + matrix + forth, mask=valid, other=0) != 0
            lost = tl.load(preferred + matrix + back, mask=valid, other=0) != 0
            tie = won & ~won
            if tied is not None:
                tie = (tl.load(tied + matrix + forth, mask=valid, other=0) != 0) | (
                    tl.load(tied + matrix + back, mask=valid, other=0) != 0
                )
            difference = tl.where(won | lost | tie, own_scores[:, :, None] - other_scores[:, None, :], 0.0)
            margin_forth, margin_back = margins_of + forth * margin_pair, margins_of + back * margin_pair
            weight_forth, weight_back = weights_of + forth * weight_pair, weights_of + back * weight_pair
            mine = _side(
                difference, won, tie, margins, weights, margin_forth, weight_forth, margin, smoothing, davidson,
                tie_weight, half_constant, WITH_DAVIDSON,
            )  # fmt: skip
            theirs = _side(
                -difference, lost, tie, margins, weights, margin_back, weight_back, margin, smoothing, davidson,
                tie_weight, half_constant, WITH_DAVIDSON,
            )  # fmt: skip
            own_loss += tl.sum(mine[0], 2)
            own_gradient += tl.sum(mine[1] - theirs[1], 2)
            pairs += tl.sum(tl.sum(won.to(tl.int32), 2), 1)
            correct += tl.sum(tl.sum((won & (difference > 0)).to(tl.int32), 2), 1)
            ties += tl.sum(tl.sum((tie & (i < j)).to(tl.int32), 2), 1)
        loss += tl.sum(own_loss, 1)
        tl.store(gradient + (prompt * num_responses)[:, None] + own, own_gradient, mask=own_there)
    tl.store(loss_sum + prompt, loss, mask=there)
    tl.store(num_pairs + prompt, pairs, mask=there)
    tl.store(num_correct + prompt, correct, mask=there)
    tl.store(num_ties + prompt, ties, mask=there)


@triton.jit
def _responses(scores, ranks, rows, dense, score_stride, first, num_responses, there, RESPONSES: tl.constexpr):
    """A tile of responses: their places, scores and ranks, -1 where there is none."""
    place = first + tl.arange(0, RESPONSES)[None, :]
    valid = there[:, None] & (place < num_responses)
    rank = tl.load(ranks + dense + place, mask=valid, other=-1)
    # An absent response may have any score.
    return place, tl.load(scores + rows + place * score_stride, mask=rank >= 0, other=0.0).to(tl.float32), rank


@triton.jit
def _others_left(place, rank, other_place, other_rank):
    """[P, K, K]: of which others each response of the first tile was chosen."""
    left = (rank >= 0)[:, :, None] & (other_rank[:, None, :] >= rank[:, :, None])
    return left & (place[:, :, None] != other_place[:, None, :])


@triton.jit
def _choice_gradients(
    scores, ranks, choices, gradient, rows, dense, score_stride, plane, num_responses, there, RESPONSES: tl.constexpr
):
    for first in range(0, num_responses, RESPONSES):
        own, score, rank = _responses(scores, ranks, rows, dense, score_stride, first, num_responses, there, RESPONSES)
        valid = there[:, None] & (own < num_responses)
        own_gradient = -tl.load(choices + 2 * plane + dense + own, mask=valid, other=0.0)
        for second in range(0, num_responses, RESPONSES):
            i, _, above = _responses(scores, ranks, rows, dense, score_stride, second, num_responses, there, RESPONSES)
            top = tl.load(choices + dense + i, mask=above >= 0, other=0.0)
            share = tl.load(choices + plane + dense + i, mask=above >= 0, other=0.0)
            below = (above >= 0)[:, None, :] & (rank[:, :, None] >= above[:, None, :])
            left = below & (own[:, :, None] != i[:, None, :])
            part = exp(score[:, :, None] - top[:, None, :]) * share[:, None, :]
            own_gradient += tl.sum(tl.where(left, part, 0.0), 2)
        tl.store(gradient + dense + own, own_gradient, mask=valid)


@triton.jit(do_not_specialize=_NUMBERS)
def _choices(
    scores, ranks, choices, loss_sum, num_choices, num_correct, gradient,
    prompt_stride: tl.int64, score_stride: tl.int64, num_prompts: tl.int64, num_responses: tl.int32,
    PROMPTS: tl.constexpr, RESPONSES: tl.constexpr,
):  # fmt: skip
    """choices: [3, P, K] of every response's choice: the largest score that it was chosen from, one over the sum of the
    exponentials of differences to it, and the probability that another one is chosen.
    """
    prompt = tl.program_id(0).to(tl.int64) * PROMPTS + tl.arange(0, PROMPTS)
    there = prompt < num_prompts
    rows, dense = (prompt * prompt_stride)[:, None], (prompt * num_responses)[:, None]
    plane = num_prompts * num_responses
    loss = tl.zeros([PROMPTS], tl.float32)
    chosen_from_others = tl.zeros([PROMPTS], tl.int64)
    correct = tl.zeros([PROMPTS], tl.int64)
    for first in range(0, num_responses, RESPONSES):
        own, score, rank = _responses(scores, ranks, rows, dense, score_stride, first, num_responses, there, RESPONSES)
        best_other = tl.full([PROMPTS, RESPONSES], -float("inf"), tl.float32)
        num_others = tl.zeros([PROMPTS, RESPONSES], tl.int32)
        for second in range(0, num_responses, RESPONSES):
            j, other, below = _responses(
                scores, ranks, rows, dense, score_stride, second, num_responses, there, RESPONSES
            )
            left = _others_left(own, rank, j, below)
            num_others += tl.sum(left.to(tl.int32), 2)
            best_other = tl.maximum(best_other, tl.max(tl.where(left, other[:, None, :], -float("inf")), 2))
        chosen = num_others > 0
        top = tl.where(chosen, tl.maximum(best_other, score), 0.0)
        others = tl.zeros([PROMPTS, RESPONSES], tl.float32)
        for second in range(0, num_responses, RESPONSES):
            j, other, below = _responses(
                scores, ranks, rows, dense, score_stride, second, num_responses, there, RESPONSES
            )
            left = _others_left(own, rank, j, below)
            others += tl.sum(tl.where(left, exp(other[:, None, :] - top[:, :, None]), 0.0), 2)
        mine = exp(score - top)
        share = tl.div_rn(tl.full([PROMPTS, RESPONSES], 1.0, tl.float32), mine + others)
        rest = tl.where(score == top, others, (mine + others) - 1.0)
        loss += tl.sum(tl.where(chosen, (top - score) + log1p(rest), 0.0), 1)
        chosen_from_others += tl.sum(chosen.to(tl.int32), 1)
        correct += tl.sum((chosen & (score > best_other)).to(tl.int32), 1)
        at, valid = choices + dense + own, there[:, None] & (own < num_responses)
        tl.store(at, top, mask=valid)
        tl.store(at + plane, share, mask=valid)
        tl.store(at + 2 * plane, tl.where(chosen, others * share, 0.0), mask=valid)
    tl.store(loss_sum + prompt, loss, mask=there)
    tl.store(num_choices + prompt, chosen_from_others, mask=there)
    tl.store(num_correct + prompt, correct, mask=there)
    # What other threads of this program stored is read.
    tl.debug_barrier()
    _choice_gradients(
        scores, ranks, choices, gradient, rows, dense, score_stride, plane, num_responses, there, RESPONSES
    )


def _pair_strides(numbers: Tensor | None) -> tuple[Tensor | None, int, int]:
    """The numbers with two strides: from prompt to prompt, and from pair to pair."""
    if numbers is None:
        return None, 0, 0
    if numbers.stride(1) == numbers.stride(2) == 0:
        return numbers, numbers.stride(0), 0
    return numbers.contiguous(), numbers.shape[1] * numbers.shape[2], 1


def _outputs(scores: Tensor, num_counts: int) -> tuple[Tensor, ...]:
    num_prompts, num_responses = scores.shape
    # Nothing is launched without responses.
    new = scores.new_empty if scores.numel() > 0 else scores.new_zeros
    counts = [new(num_prompts, dtype=torch.int64) for _ in range(num_counts)]
    return new(num_prompts, dtype=torch.float32), *counts, new((num_prompts, num_responses), dtype=torch.float32)


def paired_comparison_loss(
    scores: Tensor, preferred: Tensor, tied: Tensor | None, margins: Tensor | None, weights: Tensor | None,
    margin: float, label_smoothing: float, davidson: float, tie_weight: float, tie_constant: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    outputs = _outputs(scores, 3)
    if scores.numel() == 0:
        return outputs
    margins, *margin_strides = _pair_strides(margins)
    weights, *weight_strides = _pair_strides(weights)
    prompts, responses, num_warps = tile(scores.shape[1])
    _comparisons[(triton.cdiv(scores.shape[0], prompts),)](
        scores, preferred.contiguous(), None if tied is None else tied.contiguous(), margins, weights, *outputs,
        *scores.stride(), *margin_strides, *weight_strides,
        margin, label_smoothing, davidson, tie_weight, 0.5 * tie_constant, *scores.shape,
        # Two pairs a thread: with four, registers spill.
        PROMPTS=prompts, RESPONSES=responses, WITH_DAVIDSON=davidson > 0, num_warps=2 * num_warps,
    )  # fmt: skip
    return outputs


def plackett_luce_loss(scores: Tensor, ranks: Tensor) -> tuple[Tensor, ...]:
    outputs = _outputs(scores, 2)
    if scores.numel() == 0:
        return outputs
    prompts, responses, num_warps = tile(scores.shape[1])
    prompts = max(1, prompts // 2)  # With all of them, 8 bytes of a thread are in local memory on sm_80.
    choices = scores.new_empty((3, *scores.shape), dtype=torch.float32)
    _choices[(triton.cdiv(scores.shape[0], prompts),)](
        scores, ranks.contiguous(), choices, *outputs, *scores.stride(), *scores.shape,
        PROMPTS=prompts, RESPONSES=responses, num_warps=num_warps,
    )  # fmt: skip
    return outputs
