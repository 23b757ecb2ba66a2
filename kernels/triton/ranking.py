"""The K-wise ranking loss: each prompt's pairs in registers.

Program -> a few prompts, tiles of winners x losers of each; K up to 32 is one tile. Bytes moved: scores and preferences
once (the transposed preferences of a tile hit the first-level cache), loss, counts and gradient out. Every pair is
evaluated from both sides, so that a response sums its own gradient and nothing is exchanged: one exponential serves the
loss and both derivatives. A tile holds 512 pairs (1,024 of 32 responses), 4 a thread: with 16, registers spill.
"""

# ruff: noqa: N803  (constants of a kernel are written in capitals, as everywhere in Triton)

import torch
from instructrl.kernels.triton.elementary import exp, log1p
from torch import Tensor

import triton
import triton.language as tl


@triton.jit
def _pair_tile(own_scores, other_scores, won, lost):
    """Loss and correctness of own where it won, and the gradient of its score.

    own_scores: [P, K, 1]. other_scores: [P, 1, K]. won, lost: [P, K, K], own preferred to the other and the reverse.
    """
    difference = other_scores - own_scores
    decay = exp(-tl.abs(difference))
    # sigmoid(difference) and sigmoid(-difference) from the exponential that does not overflow.
    # Exact division: a plain one is off by two bits on a GPU.
    share = tl.div_rn(tl.full(decay.shape, 1.0, tl.float32), 1.0 + decay)
    rest = decay * share
    by_winning = tl.where(difference > 0, share, rest)
    by_losing = tl.where(difference > 0, rest, share)
    # Selections, not products: a score that nothing is compared with may be NaN.
    loss = tl.where(won, tl.where(difference > 0, difference, 0.0) + log1p(decay), 0.0)
    gradient = tl.where(lost, by_losing, 0.0) - tl.where(won, by_winning, 0.0)
    return loss, (won & (difference < 0)).to(tl.int32), gradient


@triton.jit(do_not_specialize=["prompt_stride", "score_stride", "num_prompts", "num_responses"])
def _ranking(
    scores,
    preferred,
    loss_sum,
    num_pairs,
    num_correct,
    gradient,
    prompt_stride: tl.int64,
    score_stride: tl.int64,
    num_prompts: tl.int64,
    num_responses: tl.int32,
    PROMPTS: tl.constexpr,
    RESPONSES: tl.constexpr,
):
    # 64-bit offsets to the first prompt of the program; from there on 32 bits, which halves the registers of a pair.
    first_prompt = tl.program_id(0).to(tl.int64) * PROMPTS
    scores += first_prompt * prompt_stride
    preferred += first_prompt * num_responses * num_responses
    gradient += first_prompt * num_responses
    prompt = tl.arange(0, PROMPTS)
    there = prompt < num_prompts - first_prompt
    rows = scores + prompt[:, None] * prompt_stride
    responses = tl.arange(0, RESPONSES)
    loss = tl.zeros([PROMPTS], tl.float32)
    pairs = tl.zeros([PROMPTS], tl.int64)
    correct = tl.zeros([PROMPTS], tl.int64)
    for first in range(0, num_responses, RESPONSES):
        own = first + responses[None, :]
        own_there = there[:, None] & (own < num_responses)
        own_scores = tl.load(rows + own * score_stride, mask=own_there, other=0.0).to(tl.float32)
        own_gradient = tl.zeros([PROMPTS, RESPONSES], tl.float32)
        own_loss = tl.zeros([PROMPTS, RESPONSES], tl.float32)
        for second in range(0, num_responses, RESPONSES):
            other = second + responses[None, :]
            other_there = there[:, None] & (other < num_responses)
            other_scores = tl.load(rows + other * score_stride, mask=other_there, other=0.0).to(tl.float32)
            valid = own_there[:, :, None] & other_there[:, None, :] & (own[:, :, None] != other[:, None, :])
            matrix = (prompt * num_responses * num_responses)[:, None, None]
            won_at = matrix + own[:, :, None] * num_responses + other[:, None, :]
            lost_at = matrix + other[:, None, :] * num_responses + own[:, :, None]
            won = tl.load(preferred + won_at, mask=valid, other=0) != 0
            lost = tl.load(preferred + lost_at, mask=valid, other=0) != 0
            part = _pair_tile(own_scores[:, :, None], other_scores[:, None, :], won, lost)
            own_loss += tl.sum(part[0], 2)
            own_gradient += tl.sum(part[2], 2)
            pairs += tl.sum(tl.sum(won.to(tl.int32), 2), 1)
            correct += tl.sum(tl.sum(part[1], 2), 1)
        loss += tl.sum(own_loss, 1)
        tl.store(gradient + prompt[:, None] * num_responses + own, own_gradient, mask=own_there)
    tl.store(loss_sum + first_prompt + prompt, loss, mask=there)
    tl.store(num_pairs + first_prompt + prompt, pairs, mask=there)
    tl.store(num_correct + first_prompt + prompt, correct, mask=there)


def tile(num_responses: int) -> tuple[int, int, int]:
    """Prompts of a program, responses of a tile and warps."""
    responses = 4
    while responses < min(num_responses, 32):
        responses *= 2
    prompts = max(1, 512 // (responses * responses))
    return prompts, responses, prompts * responses * responses // 128


def pairwise_ranking_loss(scores: Tensor, preferred: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_prompts, num_responses = scores.shape
    new = scores.new_empty
    gradient = new((num_prompts, num_responses), dtype=torch.float32)
    if gradient.numel() == 0:
        counts = scores.new_zeros((2, num_prompts), dtype=torch.int64)
        return scores.new_zeros(num_prompts, dtype=torch.float32), counts[0], counts[1].clone(), gradient
    loss_sum = new(num_prompts, dtype=torch.float32)
    num_pairs, num_correct = new(num_prompts, dtype=torch.int64), new(num_prompts, dtype=torch.int64)
    prompts, responses, num_warps = tile(num_responses)
    _ranking[(triton.cdiv(num_prompts, prompts),)](
        scores,
        preferred.contiguous(),
        loss_sum,
        num_pairs,
        num_correct,
        gradient,
        *scores.stride(),
        num_prompts,
        num_responses,
        PROMPTS=prompts,
        RESPONSES=responses,
        num_warps=num_warps,
    )
    return loss_sum, num_pairs, num_correct, gradient
