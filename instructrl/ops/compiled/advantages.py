"""Implementations of `instructrl.ops.advantages` and `instructrl.ops.groups` by private ops."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instructrl.ops import checks, private_ops
from instructrl.ops.advantage_settings import (
    BASELINES,
    EPSILON_PLACES,
    GAESettings,
    GroupSettings,
    RewardSettings,
    WhitenSettings,
)
from instructrl.ops.advantages import Advantages, Ends
from instructrl.ops.compiled.calls import of_one_dtype
from instructrl.ops.ppo_settings import KL_ESTIMATORS, KLEstimator

_Rate = float | Tensor
_NO_KL = KLEstimator()


def _is_plain(gamma: _Rate, lam: _Rate, ends: tuple[Tensor | None, ...], settings: GAESettings) -> bool:
    """Whether the kernels of one discount, whose sequences end without a value, can run this."""
    no_tensor = all(x is None for x in ends) and not isinstance(gamma, Tensor) and not isinstance(lam, Tensor)
    return no_tensor and settings.value_lam is None and settings.gaps == "skip"


def _is_plain_reward(settings: RewardSettings) -> bool:
    """Scores are clamped in front of every kernel."""
    kl = settings.kl
    no_clamp = kl.input_clamp is None and kl.output_clamp is None
    return kl.estimator == "k1" and no_clamp and settings.score_at == "last"


def _rates(gamma: _Rate, lam: _Rate, value_lam: float | None, num_sequences: int, like: Tensor) -> Tensor | None:
    """[B, 3] float64 of gamma, lam and the lambda of the returns where one of them is a tensor. Nothing is read."""
    if not isinstance(gamma, Tensor) and not isinstance(lam, Tensor):
        return None
    rates = like.new_empty((num_sequences, 3), dtype=torch.float64)
    for column, rate in enumerate((gamma, lam, lam if value_lam is None else value_lam)):
        rates[:, column] = rate
    return rates


def _in(dtype: torch.dtype, x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(dtype)


def _general(
    op: Callable[..., Any],
    values: Tensor,
    mask: Tensor,
    inputs: tuple[Tensor | None, ...],
    scores: Tensor | None,
    ends: Ends,
    gamma: _Rate,
    lam: _Rate,
    cu_seqlens: Tensor | None,
    kl_coef: float,
    kl: KLEstimator,
    gae: GAESettings,
    score_behind: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """inputs: rewards, log-probabilities and the reference's; those that there are."""
    tokens = [x for x in (values, *inputs, ends.next_values) if x is not None]
    numbers = [x for x in (scores, ends.bootstrap) if x is not None]
    wide = checks.accumulation_dtype(*tokens, *numbers)
    dtype = values.dtype
    if wide == torch.float64 or any(x.dtype != dtype for x in tokens):
        dtype = wide
    num_sequences = values.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    rates = _rates(gamma, lam, gae.value_lam, num_sequences, values)
    plain = [1.0 if isinstance(x, Tensor) else x for x in (gamma, lam)]
    return op(
        values.to(dtype),
        mask,
        *(_in(dtype, x) for x in inputs),
        _in(wide, scores),
        ends.dones,
        _in(dtype, ends.next_values),
        _in(wide, ends.bootstrap),
        rates,
        cu_seqlens,
        kl_coef,
        KL_ESTIMATORS.index(kl.estimator),
        math.inf if kl.input_clamp is None else kl.input_clamp,
        math.inf if kl.output_clamp is None else kl.output_clamp,
        *plain,
        plain[1] if gae.value_lam is None else gae.value_lam,
        gae.gaps == "count",
        score_behind,
    )


def _generalized_advantages(prefix: str) -> Callable[..., tuple[Tensor, Tensor]]:
    op = private_ops.get(prefix, "generalized_advantages")
    general = private_ops.get(prefix, "general_advantages")

    @torch.no_grad()
    def generalized_advantages(
        rewards: Tensor,
        values: Tensor,
        mask: Tensor,
        gamma: _Rate,
        lam: _Rate,
        cu_seqlens: Tensor | None,
        *others: Any,
    ) -> tuple[Tensor, Tensor]:
        ends, settings = Ends(*others[:3]), others[3]
        if _is_plain(gamma, lam, ends, settings):
            return op(*of_one_dtype(rewards, values), mask, gamma, lam, cu_seqlens)
        inputs, rates = (rewards, None, None), (gamma, lam, cu_seqlens)
        return _general(general, values, mask, inputs, None, ends, *rates, 0.0, _NO_KL, settings, False)[:2]

    return generalized_advantages


def _ppo_advantages(prefix: str) -> Callable[..., Advantages]:
    op = private_ops.get(prefix, "ppo_advantages")
    general = private_ops.get(prefix, "general_advantages")

    @torch.no_grad()
    def ppo_advantages(
        logprobs: Tensor,
        ref_logprobs: Tensor,
        values: Tensor,
        scores: Tensor,
        mask: Tensor,
        kl_coef: float,
        gamma: _Rate,
        lam: _Rate,
        cu_seqlens: Tensor | None,
        *others: Any,
    ) -> Advantages:
        ends, settings = Ends(*others[:3]), others[3]
        if not (_is_plain_reward(settings) and _is_plain(gamma, lam, ends, settings.gae)):
            inputs, rates = (None, logprobs, ref_logprobs), (gamma, lam, cu_seqlens)
            how = (kl_coef, settings.kl, settings.gae, settings.score_at == "behind")
            return Advantages(*_general(general, values, mask, inputs, scores, ends, *rates, *how))
        dtype = checks.accumulation_dtype(logprobs, ref_logprobs, values, scores)
        tokens = of_one_dtype(logprobs, ref_logprobs, values)
        if dtype == torch.float64 and tokens[0].dtype != torch.float64:
            tokens = tuple(x.to(dtype) for x in tokens)
        return Advantages(*op(*tokens, scores.to(dtype), mask, kl_coef, gamma, lam, cu_seqlens))

    return ppo_advantages


def _masked_whiten(prefix: str) -> Callable[..., Tensor]:
    op, by_group = private_ops.get(prefix, "masked_whiten"), private_ops.get(prefix, "group_whiten")

    @torch.no_grad()
    def masked_whiten(
        x: Tensor,
        mask: Tensor,
        stats: Tensor | None,
        groups: Tensor | None,
        num_groups: int,
        settings: WhitenSettings,
    ) -> Tensor:
        epsilon_at = EPSILON_PLACES.index(settings.epsilon_at)
        how = (settings.center, settings.ddof, settings.epsilon, epsilon_at)
        return op(x, mask, stats, *how) if groups is None else by_group(x, mask, groups, num_groups, *how)

    return masked_whiten


def _group_advantages(prefix: str) -> Callable[..., Tensor]:
    op = private_ops.get(prefix, "group_advantages")

    @torch.no_grad()
    def group_advantages(scores: Tensor, groups: Tensor, num_groups: int, settings: GroupSettings) -> Tensor:
        baseline, scaled = BASELINES.index(settings.baseline), settings.scale == "deviation"
        return op(scores, groups, num_groups, baseline, scaled, settings.ddof, settings.epsilon)

    return group_advantages


IMPLEMENTATIONS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "advantages.generalized_advantages": _generalized_advantages,
    "advantages.ppo_advantages": _ppo_advantages,
    "advantages.masked_whiten": _masked_whiten,
    "groups.group_advantages": _group_advantages,
}
