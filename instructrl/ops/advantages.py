"""Generalised advantage estimation, the KL-penalised rewards before it and the whitening after it.

Nothing here carries a gradient: advantages and returns are targets.
"""

from typing import Any, NamedTuple

from torch import Tensor

from instructrl.ops import advantage_terms, checks, dispatch
from instructrl.ops.advantage_settings import GAESettings, RewardSettings, WhitenSettings
from instructrl.ops.advantage_terms import Ends


class Advantages(NamedTuple):
    """advantages, returns, rewards: as the inputs, float32 (float64 for float64), 0 where the mask is False.

    stats: [4] float64: sum of the advantages, sum of their squares, their count, sum of `logprobs - ref_logprobs` in
    nats. It adds up over micro-batches and ranks; `masked_whiten` takes the total.
    """

    advantages: Tensor
    returns: Tensor
    rewards: Tensor
    stats: Tensor


def _reference_ppo_advantages(*args: Any) -> Advantages:
    return Advantages(*advantage_terms.ppo_advantages(*args))


GENERALIZED_ADVANTAGES = dispatch.declare("advantages.generalized_advantages", advantage_terms.generalized_advantages)
PPO_ADVANTAGES = dispatch.declare("advantages.ppo_advantages", _reference_ppo_advantages)
MASKED_WHITEN = dispatch.declare("advantages.masked_whiten", advantage_terms.masked_whiten)


def _check_layout(name: str, tensor: Tensor, mask: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    checks.floating(name, tensor)
    mask = checks.mask_like("mask", mask, name, tuple(tensor.shape), tensor.device)
    if cu_seqlens is None:
        checks.dims(name, tensor, 2, "[B, T], or packed [N] with cu_seqlens")
    else:
        checks.dims(name, tensor, 1, "packed [N], because cu_seqlens is given")
        checks.sequence_offsets(cu_seqlens, tensor.shape[0], tensor.device)
    return mask


def _check_ends(ends: Ends | None, values: Tensor, num_sequences: int, gaps: str) -> Ends:
    if ends is None:
        return Ends()
    if not isinstance(ends, Ends):
        raise TypeError(f"ends: found {type(ends).__name__}, accepted is Ends, or None")
    shape, device = tuple(values.shape), values.device
    if ends.dones is not None:
        ends = ends._replace(dones=checks.mask_like("dones", ends.dones, "values", shape, device))
    if ends.next_values is not None:
        checks.floating_like("next_values", ends.next_values, "values", values)
        if gaps == "count":
            raise ValueError("next_values: found a tensor where gaps count, accepted is None there")
    if ends.bootstrap is not None:
        checks.floating("bootstrap", ends.bootstrap)
        checks.like("bootstrap", ends.bootstrap, "the number of sequences", (num_sequences,), device)
        if ends.next_values is not None:
            raise ValueError("bootstrap: found a tensor beside next_values, accepted is one of the two")
    return ends


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float | Tensor = 1.0,
    lam: float | Tensor = 0.95,
    cu_seqlens: Tensor | None = None,
    ends: Ends | None = None,
    settings: GAESettings = GAESettings(),
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16) over the counted positions.

    `delta[t] = rewards[t] + gamma * values[next] - values[t]`, `A[t] = delta[t] + gamma * lam * A[next]`, where `next`
    is the next counted position, the value after the last is 0, and `returns = advantages + values`. Returns have
    another lambda if `settings.value_lam` is given.

    rewards, values: [B, T] floating, one per token; or packed [N] with cu_seqlens.
    mask: bool, or 0 and 1 of any dtype; True where a token counts; masked elements are ignored, even NaN, and the
        outputs there are 0.
    gamma, lam: discount and trace decay, from 0 to 1; numbers, or 0-dim tensors on the device of the other arguments.
        lam may be [B], one for each sequence.
    cu_seqlens: [B + 1] int; sequence b is `cu_seqlens[b]:cu_seqlens[b + 1]`.
    ends: episodes that end inside a sequence, and values after tokens; see `Ends`.
    Returns: advantages and returns in the layout of the inputs, float32 (float64 for float64), without gradient.
    Raises: ValueError or TypeError for other shapes, dtypes, devices or values.
    """
    mask = _check_layout("rewards", rewards, mask, cu_seqlens)
    checks.floating_like("values", values, "rewards", rewards)
    checks.settings("settings", settings, GAESettings)
    num_sequences = rewards.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    gamma = checks.fraction("gamma", gamma, rewards.device)
    lam = checks.fraction("lam", lam, rewards.device, num_sequences)
    known = _check_ends(ends, values, num_sequences, settings.gaps)
    return dispatch.run(GENERALIZED_ADVANTAGES, rewards, values, mask, gamma, lam, cu_seqlens, *known, settings)


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
    ends: Ends | None = None,
    settings: RewardSettings = RewardSettings(),
) -> Advantages:
    """Rewards with the per-token KL penalty, then GAE, in one pass (InstructGPT, equation 2 and section 3.5).

    `rewards = -kl_coef * (logprobs - ref_logprobs)`, plus the score at the last counted token of each sequence.

    logprobs, ref_logprobs, values: [B, T] floating, log-probabilities in nats; or packed [N] with cu_seqlens.
    scores: [B] floating; the reward model's. A sequence without a counted token does not use its score.
    mask: bool, or 0 and 1 of any dtype; True where a token counts; masked elements are ignored, even NaN, and the
        outputs there are 0.
    kl_coef: finite, the beta of the paper. gamma, lam, cu_seqlens, ends: as in `generalized_advantages`; no ends if the
        score is paid after the last token.
    settings: the estimator of the KL, where the score is paid, and how advantages are estimated.
    Returns: `Advantages`, not whitened, without gradient.
    Raises: ValueError or TypeError for other shapes, dtypes, devices or values.
    """
    mask = _check_layout("logprobs", logprobs, mask, cu_seqlens)
    checks.floating_like("ref_logprobs", ref_logprobs, "logprobs", logprobs)
    checks.floating_like("values", values, "logprobs", logprobs)
    checks.floating("scores", scores)
    checks.settings("settings", settings, RewardSettings)
    num_sequences = logprobs.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    checks.like("scores", scores, "the number of sequences", (num_sequences,), logprobs.device)
    checks.finite("kl_coef", kl_coef)
    gamma = checks.fraction("gamma", gamma, logprobs.device)
    lam = checks.fraction("lam", lam, logprobs.device, num_sequences)
    known = _check_ends(ends, values, num_sequences, settings.gae.gaps)
    if ends is not None and settings.score_at == "behind":
        raise ValueError("ends: found Ends where the score is behind the last token, accepted is None there")
    if settings.score_clip is not None:
        scores = scores.clamp(-settings.score_clip, settings.score_clip)
    others = (kl_coef, gamma, lam, cu_seqlens, *known, settings)
    return dispatch.run(PPO_ADVANTAGES, logprobs, ref_logprobs, values, scores, mask, *others)


def masked_whiten(
    x: Tensor,
    mask: Tensor,
    *,
    stats: Tensor | None = None,
    groups: Tensor | None = None,
    num_groups: int | None = None,
    settings: WhitenSettings = WhitenSettings(),
) -> Tensor:
    """Shift and scale to zero mean and unit sample variance (n - 1) over the counted elements.

    `(x - mean) * rsqrt(var + 1e-8)` by default, see `WhitenSettings`; the variance is 0 when fewer than two elements
    count (fewer than one, of a population).

    x: any shape, floating. mask: the same shape, bool, or 0 and 1; masked elements are ignored, even NaN, and the
        output there is 0.
    stats: [3] or [4] float64: sum, sum of squares and count to whiten by, such as `Advantages.stats` summed over
        micro-batches and ranks. None: those of x.
    groups: [B] int64 or int32, with num_groups: row b of x, which has at least one dimension, is whitened by the mean
        and variance of all rows of its group, from 0 to below num_groups. On a GPU ids are not checked, and one out of
        range gives NaN in its row.
    Returns: the shape of x, float32 (float64 for float64), without gradient.
    Raises: ValueError or TypeError for other shapes, dtypes, devices or values.
    """
    checks.floating("x", x)
    mask = checks.mask_like("mask", mask, "x", tuple(x.shape), x.device)
    checks.settings("settings", settings, WhitenSettings)
    if stats is not None:
        checks.is_tensor("stats", stats)
    if stats is not None and (stats.dim() != 1 or stats.shape[0] not in (3, 4) or not stats.dtype.is_floating_point):
        found = f"shape {tuple(stats.shape)}, dtype {stats.dtype}"
        raise ValueError(f"stats: found {found}, accepted is [3] or [4] floating (sum, sum of squares, count, ...)")
    if stats is not None and stats.device != x.device:
        raise ValueError(f"stats: found device {stats.device}, accepted is {x.device}, where x is")
    if groups is None and num_groups is not None:
        raise ValueError(f"num_groups: found {num_groups} without groups, accepted is None")
    if groups is not None:
        if stats is not None:
            raise ValueError("stats: found a tensor beside groups, accepted is one of the two")
        if x.dim() == 0:
            raise ValueError("x: found shape (), accepted is at least one dimension with groups")
        num_groups = checks.group_ids(groups, num_groups, x.shape[0], x.device, "x")
    return dispatch.run(MASKED_WHITEN, x, mask, stats, groups, num_groups or 0, settings)
