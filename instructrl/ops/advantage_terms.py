"""The references of `instructrl.ops.advantages`, in PyTorch: rewards, generalised advantage estimation, whitening."""

from typing import NamedTuple

import torch
from torch import Tensor

from instructrl.ops import checks
from instructrl.ops.advantage_settings import GAESettings, RewardSettings, WhitenSettings
from instructrl.ops.groups import group_sums, in_range
from instructrl.ops.ppo_terms import kl_term
from instructrl.ops.precision import widest


class _Neighbours(NamedTuple):
    """For each position of [R, L] rows: the index of the next marked position in its row, where its sequence ends
    (exclusive), and the index of its sequence."""

    following: Tensor
    end: Tensor
    sequence: Tensor

    @property
    def last(self) -> Tensor:
        """Whether no marked position follows in the sequence."""
        return self.following >= self.end


def _neighbours(marked: Tensor, cu_seqlens: Tensor | None) -> _Neighbours:
    num_rows, length = marked.shape
    position = torch.arange(length, device=marked.device).expand(num_rows, length)
    counted = torch.where(marked, position, length)
    from_here = counted.flip(1).cummin(1).values.flip(1)
    following = torch.cat([from_here[:, 1:], from_here.new_full((num_rows, min(length, 1)), length)], dim=1)
    if cu_seqlens is None:
        row = torch.arange(num_rows, device=marked.device).unsqueeze(1).expand(num_rows, length)
        return _Neighbours(following, torch.full_like(position, length), row)
    ends = cu_seqlens[1:].to(torch.int64)
    sequence = torch.searchsorted(ends, position.contiguous(), right=True)
    # Offsets that end early are a caller's error that is not read on an accelerator; the index stays in range.
    sequence = sequence.clamp(max=max(ends.shape[0] - 1, 0))
    return _Neighbours(following, ends[sequence], sequence)


class _Steps(NamedTuple):
    """Which positions of [R, L] rows do what, bool. counted: reward and advantage. valued: value and return, at the
    counted ones and at one behind them. taken: steps of the recurrence, gaps that count included. near: the neighbours
    among those."""

    counted: Tensor
    valued: Tensor
    taken: Tensor
    near: _Neighbours


def _steps(mask: Tensor, cu_seqlens: Tensor | None, gaps: str, behind: bool) -> _Steps:
    near, valued, taken = _neighbours(mask, cu_seqlens), mask, mask
    if behind:
        ends_here = mask & near.last
        position = torch.arange(mask.shape[1], device=mask.device)
        valued = mask.clone()
        valued[:, 1:] |= (ends_here & (position + 1 < near.end))[:, :-1]
        taken = valued
    if gaps == "count":
        # Before the first counted position as well: nobody is there to read it.
        taken = valued | ~near.last
    return _Steps(mask, valued, taken, near if taken is mask else _neighbours(taken, cu_seqlens))


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


class Ends(NamedTuple):
    """What is known of the states that tokens lead to. Nothing is read where the mask is False.

    dones: bool, as the mask; the episode ends with this token: its trace is cut, and the value behind it is 0 unless
    next_values has one. next_values: as the values; of the state behind each token, in place of the next counted
    token's value. bootstrap: [B] floating; the value behind the last counted token of each sequence, otherwise 0.
    """

    dones: Tensor | None = None
    next_values: Tensor | None = None
    bootstrap: Tensor | None = None


def _of_sequences(x: Tensor, near: _Neighbours, dtype: torch.dtype) -> Tensor:
    """[B] numbers at the positions of their sequences."""
    return x.to(dtype)[near.sequence] if x.shape[0] > 0 else torch.zeros_like(near.sequence, dtype=dtype)


def _next_values(values: Tensor, steps: _Steps, ends: Ends) -> Tensor:
    near = steps.near
    if ends.next_values is not None:
        return torch.where(steps.counted, ends.next_values.to(values.dtype), 0.0)
    last_column = values.new_zeros((values.shape[0], 1))
    found = torch.cat([values, last_column], dim=1).gather(1, near.following)
    beyond = 0.0 if ends.bootstrap is None else _of_sequences(ends.bootstrap, near, values.dtype)
    found = torch.where(near.last, beyond, found)
    return found if ends.dones is None else torch.where(ends.dones & steps.counted, 0.0, found)


def _in_double(rate: float | Tensor) -> float | Tensor:
    return rate.to(widest(rate.device)) if isinstance(rate, Tensor) else rate


def _decays(gamma: float | Tensor, lam: float | Tensor, near: _Neighbours, like: Tensor) -> Tensor:
    """`gamma * lam` at each position."""
    if not isinstance(gamma, Tensor) and not isinstance(lam, Tensor):
        return torch.full_like(like, gamma * lam)
    product = _in_double(gamma) * _in_double(lam)
    assert isinstance(product, Tensor)
    return _of_sequences(product, near, like.dtype) if product.dim() == 1 else product.to(like.dtype).expand_as(like)


def _estimate(
    rewards: Tensor,
    values: Tensor,
    steps: _Steps,
    gamma: float | Tensor,
    lam: float | Tensor,
    ends: Ends,
    value_lam: float | None,
) -> tuple[Tensor, Tensor]:
    """GAE of [R, L] rows whose rewards and values are 0 where they are not read."""
    near, position = steps.near, torch.arange(values.shape[1], device=values.device)
    # 0-dim float64 numbers take part in float32 arithmetic as Python's do.
    delta = torch.where(steps.taken, rewards + gamma * _next_values(values, steps, ends) - values, 0.0)
    # Nothing crosses the end of a sequence or of an episode.
    passes = position + 1 < near.end
    if ends.dones is not None:
        passes = passes & ~(ends.dones & steps.counted)

    def trace(decay: float | Tensor) -> Tensor:
        # A position that is no step passes the running sum on as it is.
        factors = torch.where(steps.taken, _decays(gamma, decay, near, values), 1.0)
        return _reverse_affine_scan(torch.where(passes, factors, 0.0), delta)

    advantages = trace(lam)
    for_returns = advantages if value_lam is None else trace(value_lam)
    return torch.where(steps.counted, advantages, 0.0), torch.where(steps.valued, for_returns + values, 0.0)


def _as_rows(tensor: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    return tensor if cu_seqlens is None else tensor.unsqueeze(0)


def _ends_as_rows(ends: Ends, cu_seqlens: Tensor | None) -> Ends:
    dones, next_values = (None if x is None else _as_rows(x, cu_seqlens) for x in ends[:2])
    return Ends(dones, next_values, ends.bootstrap)


@torch.no_grad()
def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float | Tensor,
    lam: float | Tensor,
    cu_seqlens: Tensor | None,
    dones: Tensor | None = None,
    next_values: Tensor | None = None,
    bootstrap: Tensor | None = None,
    settings: GAESettings = GAESettings(),
) -> tuple[Tensor, Tensor]:
    given = [x for x in (next_values, bootstrap) if x is not None]
    dtype = checks.accumulation_dtype(rewards, values, *given)
    rows = _as_rows(mask, cu_seqlens)
    steps = _steps(rows, cu_seqlens, settings.gaps, behind=False)
    row_rewards = torch.where(rows, _as_rows(rewards, cu_seqlens).to(dtype), 0.0)
    row_values = torch.where(rows, _as_rows(values, cu_seqlens).to(dtype), 0.0)
    ends = _ends_as_rows(Ends(dones, next_values, bootstrap), cu_seqlens)
    advantages, returns = _estimate(row_rewards, row_values, steps, gamma, lam, ends, settings.value_lam)
    return advantages.view(mask.shape), returns.view(mask.shape)


@torch.no_grad()
def ppo_advantages(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    values: Tensor,
    scores: Tensor,
    mask: Tensor,
    kl_coef: float,
    gamma: float | Tensor,
    lam: float | Tensor,
    cu_seqlens: Tensor | None,
    dones: Tensor | None = None,
    next_values: Tensor | None = None,
    bootstrap: Tensor | None = None,
    settings: RewardSettings = RewardSettings(),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = [x for x in (next_values, bootstrap) if x is not None]
    dtype = checks.accumulation_dtype(logprobs, ref_logprobs, values, scores, *given)
    rows = _as_rows(mask, cu_seqlens)
    steps = _steps(rows, cu_seqlens, settings.gae.gaps, behind=settings.score_at == "behind")
    log_ratio = torch.where(rows, _as_rows(logprobs.to(dtype) - ref_logprobs.to(dtype), cu_seqlens), 0.0)
    row_values = torch.where(steps.valued, _as_rows(values, cu_seqlens).to(dtype), 0.0)
    rewards = torch.where(rows, -kl_coef * kl_term(log_ratio, settings.kl), 0.0)
    takes_score = steps.valued & _neighbours(steps.valued, cu_seqlens).last
    rewards = torch.where(takes_score, rewards + _of_sequences(scores, steps.near, dtype), rewards)
    ends = _ends_as_rows(Ends(dones, next_values, bootstrap), cu_seqlens)
    advantages, returns = _estimate(rewards, row_values, steps, gamma, lam, ends, settings.gae.value_lam)
    precise = advantages.to(widest(advantages.device))
    stats = torch.stack(
        [precise.sum(), precise.square().sum(), rows.sum().to(precise.dtype), log_ratio.sum(dtype=precise.dtype)]
    )
    return advantages.view(mask.shape), returns.view(mask.shape), rewards.view(mask.shape), stats


def _scale(sum_of_squares: Tensor, count: Tensor, settings: WhitenSettings) -> Tensor:
    """What deviations are multiplied by; a variance of too few is 0."""
    divisor = count - settings.ddof
    variance = torch.where(divisor > 0, sum_of_squares / divisor.clamp(min=1), 0.0)
    if settings.epsilon_at == "deviation":
        return 1.0 / (variance.sqrt() + settings.epsilon)
    return torch.rsqrt(
        variance + settings.epsilon if settings.epsilon_at == "variance" else variance.clamp(min=settings.epsilon)
    )


def _rows_of_groups(x: Tensor, mask: Tensor, groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, sum of squared deviations and count of the group of each row: [B, 1] float64, NaN without a group."""
    rows = x.to(widest(x.device))
    own = groups.clamp(min=0, max=max(num_groups - 1, 0))
    count = group_sums(mask.sum(1).to(rows.dtype), groups, num_groups)
    mean = group_sums(rows.sum(1), groups, num_groups) / count.clamp(min=1)
    centred = torch.where(mask, rows - mean[own].unsqueeze(1), 0.0)
    squares = group_sums(centred.square().sum(1), groups, num_groups)
    mean = torch.where(in_range(groups, num_groups), mean[own], torch.nan)
    return mean.unsqueeze(1), squares[own].unsqueeze(1), count[own].unsqueeze(1)


@torch.no_grad()
def masked_whiten(
    x: Tensor,
    mask: Tensor,
    stats: Tensor | None,
    groups: Tensor | None = None,
    num_groups: int = 0,
    settings: WhitenSettings = WhitenSettings(),
) -> Tensor:
    shape = x.shape
    x, wide = torch.where(mask, x.to(checks.accumulation_dtype(x)), 0.0), widest(x.device)
    if groups is not None and x.numel() > 0:
        x, mask = x.reshape(shape[0], -1), mask.reshape(shape[0], -1)
        mean, sum_of_squares, count = _rows_of_groups(x, mask, groups, num_groups)
        centred = x.to(wide) - mean
    elif stats is None:
        count = mask.sum().to(wide)
        mean = x.sum(dtype=wide) / count.clamp(min=1)
        centred = torch.where(mask, x.to(wide) - mean, 0.0)
        sum_of_squares = centred.square().sum()
    else:
        total, squares, count = stats.to(wide)[:3].unbind()
        mean = total / count.clamp(min=1)
        centred = x.to(wide) - mean
        sum_of_squares = (squares - total * mean).clamp(min=0)
    whitened = centred * _scale(sum_of_squares, count, settings)
    whitened = whitened if settings.center else whitened + mean
    return torch.where(mask, whitened, 0.0).to(x.dtype).view(shape)
