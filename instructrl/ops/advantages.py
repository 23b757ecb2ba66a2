"""Generalised advantage estimation, the KL-penalised rewards in front of it and the whitening behind it.

Nothing here carries a gradient: advantages and returns are targets.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from instructrl.ops import checks, dispatch


class Advantages(NamedTuple):
    """advantages, returns, rewards: as the inputs, float32 (float64 for float64), 0 where the mask is False.

    stats: [4] float64: sum of the advantages, sum of their squares, their count, sum of `logprobs - ref_logprobs` in
    nats. It adds up over micro-batches and ranks; `masked_whiten` takes the total.
    """

    advantages: Tensor
    returns: Tensor
    rewards: Tensor
    stats: Tensor


class _Neighbours(NamedTuple):
    """For each position of [R, L] rows: the index of the next counted position in its row, where its sequence ends
    (exclusive), and the index of its sequence."""

    following: Tensor
    end: Tensor
    sequence: Tensor


def _neighbours(mask: Tensor, cu_seqlens: Tensor | None) -> _Neighbours:
    num_rows, length = mask.shape
    position = torch.arange(length, device=mask.device).expand(num_rows, length)
    counted = torch.where(mask, position, length)
    from_here = counted.flip(1).cummin(1).values.flip(1)
    following = torch.cat([from_here[:, 1:], from_here.new_full((num_rows, min(length, 1)), length)], dim=1)
    if cu_seqlens is None:
        row = torch.arange(num_rows, device=mask.device).unsqueeze(1).expand(num_rows, length)
        return _Neighbours(following, torch.full_like(position, length), row)
    ends = cu_seqlens[1:].to(torch.int64)
    sequence = torch.searchsorted(ends, position.contiguous(), right=True)
    # Offsets that end early are a caller's error that is not read on an accelerator; the index stays in range.
    sequence = sequence.clamp(max=max(ends.shape[0] - 1, 0))
    return _Neighbours(following, ends[sequence], sequence)


def _reverse_affine_scan(factors: Tensor, terms: Tensor) -> Tensor:
    """`x[t] = terms[t] + factors[t] * x[t + 1]` along the last dimension, in log2(L) vectorised steps."""
    step, length = 1, terms.shape[1]
    while step < length:
        # Over the end of a sequence nothing comes, infinity and NaN included.
        passed = torch.where(factors[:, :-step] == 0, 0.0, factors[:, :-step] * terms[:, step:])
        reached = terms[:, :-step] + passed
        terms = torch.cat([reached, terms[:, -step:]], dim=1)
        factors = torch.cat([factors[:, :-step] * factors[:, step:], factors[:, -step:]], dim=1)
        step *= 2
    return terms


def _estimate(
    rewards: Tensor, values: Tensor, mask: Tensor, near: _Neighbours, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """GAE of [R, L] rows whose rewards and values are 0 where the mask is False."""
    length = values.shape[1]
    last_column = values.new_zeros((values.shape[0], 1))
    next_value = torch.cat([values, last_column], dim=1).gather(1, near.following)
    next_value = torch.where(near.following < near.end, next_value, 0.0)
    delta = torch.where(mask, rewards + gamma * next_value - values, 0.0)
    position = torch.arange(length, device=values.device)
    # A masked position passes the running sum on as it is; nothing crosses the end of a sequence.
    factors = torch.where(mask, torch.full_like(values, gamma * lam), 1.0)
    factors = torch.where(position + 1 < near.end, factors, 0.0)
    advantages = torch.where(mask, _reverse_affine_scan(factors, delta), 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def _as_rows(tensor: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    return tensor if cu_seqlens is None else tensor.unsqueeze(0)


@torch.no_grad()
def _reference_generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    dtype = checks.accumulation_dtype(rewards, values)
    rows = _as_rows(mask, cu_seqlens)
    row_rewards = torch.where(rows, _as_rows(rewards, cu_seqlens).to(dtype), 0.0)
    row_values = torch.where(rows, _as_rows(values, cu_seqlens).to(dtype), 0.0)
    near = _neighbours(rows, cu_seqlens)
    advantages, returns = _estimate(row_rewards, row_values, rows, near, gamma, lam)
    return advantages.view(mask.shape), returns.view(mask.shape)


@torch.no_grad()
def _reference_ppo_advantages(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    values: Tensor,
    scores: Tensor,
    mask: Tensor,
    kl_coef: float,
    gamma: float,
    lam: float,
    cu_seqlens: Tensor | None,
) -> Advantages:
    dtype = checks.accumulation_dtype(logprobs, ref_logprobs, values, scores)
    rows = _as_rows(mask, cu_seqlens)
    log_ratio = torch.where(rows, _as_rows(logprobs.to(dtype) - ref_logprobs.to(dtype), cu_seqlens), 0.0)
    row_values = torch.where(rows, _as_rows(values, cu_seqlens).to(dtype), 0.0)
    near = _neighbours(rows, cu_seqlens)
    is_last = rows & (near.following >= near.end)
    rewards = torch.where(rows, -kl_coef * log_ratio, 0.0)
    if scores.shape[0] > 0:
        rewards = torch.where(is_last, rewards + scores.to(dtype)[near.sequence], rewards)
    advantages, returns = _estimate(rewards, row_values, rows, near, gamma, lam)
    precise = advantages.to(torch.float64)
    stats = torch.stack(
        [precise.sum(), precise.square().sum(), rows.sum().to(torch.float64), log_ratio.sum(dtype=torch.float64)]
    )
    return Advantages(advantages.view(mask.shape), returns.view(mask.shape), rewards.view(mask.shape), stats)


@torch.no_grad()
def _reference_masked_whiten(x: Tensor, mask: Tensor, stats: Tensor | None) -> Tensor:
    x = torch.where(mask, x.to(checks.accumulation_dtype(x)), 0.0)
    if stats is None:
        count = mask.sum().to(torch.float64)
        mean = x.sum(dtype=torch.float64) / count.clamp(min=1)
        centred = torch.where(mask, x.to(torch.float64) - mean, 0.0)
        sum_of_squares = centred.square().sum()
    else:
        total, squares, count = stats.to(torch.float64)[:3].unbind()
        mean = total / count.clamp(min=1)
        centred = x.to(torch.float64) - mean
        sum_of_squares = (squares - total * mean).clamp(min=0)
    variance = torch.where(count > 1, sum_of_squares / (count - 1).clamp(min=1), 0.0)
    return torch.where(mask, centred * torch.rsqrt(variance + 1e-8), 0.0).to(x.dtype)


GENERALIZED_ADVANTAGES = dispatch.declare("advantages.generalized_advantages", _reference_generalized_advantages)
PPO_ADVANTAGES = dispatch.declare("advantages.ppo_advantages", _reference_ppo_advantages)
MASKED_WHITEN = dispatch.declare("advantages.masked_whiten", _reference_masked_whiten)


def _check_layout(name: str, tensor: Tensor, mask: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    checks.floating(name, tensor)
    mask = checks.mask_like("mask", mask, name, tuple(tensor.shape), tensor.device)
    if cu_seqlens is None:
        checks.dims(name, tensor, 2, "[B, T], or packed [N] with cu_seqlens")
    else:
        checks.dims(name, tensor, 1, "packed [N], because cu_seqlens is given")
        checks.sequence_offsets(cu_seqlens, tensor.shape[0], tensor.device)
    return mask


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float | Tensor = 1.0,
    lam: float | Tensor = 0.95,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16) over the counted positions.

    `delta[t] = rewards[t] + gamma * values[next] - values[t]`, `A[t] = delta[t] + gamma * lam * A[next]`, where `next`
    is the next counted position, the value after the last is 0, and `returns = advantages + values`.

    rewards, values: [B, T] floating, one per token; or packed [N] with cu_seqlens.
    mask: bool, or 0 and 1 of any dtype; True where a token counts, elsewhere nothing is read and the outputs are 0.
    gamma, lam: discount and trace decay, numbers or 0-dim tensors on the CPU, from 0 to 1.
    cu_seqlens: [B + 1] int; sequence b is `cu_seqlens[b]:cu_seqlens[b + 1]`.
    Returns: advantages and returns in the layout of the inputs, float32 (float64 for float64), without gradient.
    Raises: ValueError for other shapes, dtypes, devices or values.
    """
    mask = _check_layout("rewards", rewards, mask, cu_seqlens)
    checks.floating_like("values", values, "rewards", rewards)
    gamma, lam = checks.fraction("gamma", gamma), checks.fraction("lam", lam)
    return dispatch.run(GENERALIZED_ADVANTAGES, rewards, values, mask, gamma, lam, cu_seqlens)


def ppo_advantages(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    values: Tensor,
    scores: Tensor,
    mask: Tensor,
    *,
    kl_coef: float,
    gamma: float | Tensor = 1.0,
    lam: float | Tensor = 0.95,
    cu_seqlens: Tensor | None = None,
) -> Advantages:
    """Rewards with the per-token KL penalty, then GAE, in one pass (InstructGPT, equation 2 and section 3.5).

    `rewards = -kl_coef * (logprobs - ref_logprobs)`, plus the score at the last counted token of each sequence.

    logprobs, ref_logprobs, values: [B, T] floating, log-probabilities in nats; or packed [N] with cu_seqlens.
    scores: [B] floating; the reward model's. A sequence without a counted token does not use its score.
    mask: bool, or 0 and 1 of any dtype; True where a token counts, elsewhere nothing is read and the outputs are 0.
    kl_coef: finite, the beta of the paper. gamma, lam, cu_seqlens: as in `generalized_advantages`.
    Returns: `Advantages`, not whitened, without gradient.
    Raises: ValueError for other shapes, dtypes, devices or values.
    """
    mask = _check_layout("logprobs", logprobs, mask, cu_seqlens)
    checks.floating_like("ref_logprobs", ref_logprobs, "logprobs", logprobs)
    checks.floating_like("values", values, "logprobs", logprobs)
    checks.floating("scores", scores)
    num_sequences = logprobs.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    checks.like("scores", scores, "the number of sequences", (num_sequences,), logprobs.device)
    checks.finite("kl_coef", kl_coef)
    gamma, lam = checks.fraction("gamma", gamma), checks.fraction("lam", lam)
    return dispatch.run(PPO_ADVANTAGES, logprobs, ref_logprobs, values, scores, mask, kl_coef, gamma, lam, cu_seqlens)


def masked_whiten(x: Tensor, mask: Tensor, *, stats: Tensor | None = None) -> Tensor:
    """Shift and scale to zero mean and unit sample variance (n - 1) over the counted elements.

    `(x - mean) * rsqrt(var + 1e-8)`; the variance is 0 when fewer than two elements count.

    x: any shape, floating. mask: the same shape, bool, or 0 and 1; elsewhere nothing is read and the output is 0.
    stats: [3] or [4] float64: sum, sum of squares and count to whiten by, such as `Advantages.stats` summed over
        micro-batches and ranks. None: those of x.
    Returns: the shape of x, float32 (float64 for float64), without gradient.
    Raises: ValueError for other shapes, dtypes or devices.
    """
    checks.floating("x", x)
    mask = checks.mask_like("mask", mask, "x", tuple(x.shape), x.device)
    if stats is not None:
        checks.is_tensor("stats", stats)
    if stats is not None and (stats.dim() != 1 or stats.shape[0] not in (3, 4) or not stats.dtype.is_floating_point):
        found = f"shape {tuple(stats.shape)}, dtype {stats.dtype}"
        raise ValueError(f"stats: found {found}, accepted is [3] or [4] floating (sum, sum of squares, count, ...)")
    if stats is not None and stats.device != x.device:
        raise ValueError(f"stats: found device {stats.device}, accepted is {x.device}, where x is")
    return dispatch.run(MASKED_WHITEN, x, mask, stats)
