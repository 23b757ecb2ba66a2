"""Options of advantages and whitening, and group advantages: what options.py measures of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.core import workloads
from benchmarks.core.workloads import FORWARD, Draw, Inputs, Workload
from benchmarks.ops import option_formulas as plain
from benchmarks.ops.option_rows import Option
from instructrl.ops import advantages, groups
from instructrl.ops.advantage_settings import GAESettings, GroupSettings, RewardSettings, WhitenSettings
from instructrl.ops.advantage_terms import Ends
from instructrl.ops.ppo_settings import KLEstimator


def ends(draw: Draw, x: Inputs) -> Inputs:
    return {"dones": draw.normal(*x["mask"].shape) > 2.0, "bootstrap": draw.normal(len(x["mask"]))}


def with_ends(dones: Tensor, bootstrap: Tensor, **x: Any) -> tuple[Tensor, ...]:
    return advantages.generalized_advantages(**x, ends=Ends(dones=dones, bootstrap=bootstrap))


def gae_row(option: str, call: Callable[..., Any], formula: Callable[..., Any], **more: Any) -> Option:
    """A loop over time is how it is written; compiled, that would be a thousand steps, so the reference is."""
    kept = {"work": workloads.GAE, "shape": (512, 1024), "tiny": (4, 37), "counts": workloads.prefixes(0.5)}
    return Option(option=option, call=call, plain=formula, compiled=call, part=FORWARD, **{**kept, **more})


def shaped_rewards(logprobs: Tensor, ref_logprobs: Tensor, values: Tensor, scores: Tensor, mask: Tensor,
                   kl_coef: float) -> list[Tensor]:  # fmt: skip
    """PPO's rewards with k3 of a clamped log ratio."""
    kl = plain.k3((logprobs - ref_logprobs).clamp(-0.5, 0.5), logprobs)
    rewards = torch.where(mask, -kl_coef * kl, 0.0)
    rewards = rewards.scatter_add(1, mask.sum(1, keepdim=True) - 1, scores.clamp(-1.0, 1.0).unsqueeze(1))
    return [*plain.gae(rewards, values, mask), rewards]


REWARDS = RewardSettings(kl=KLEstimator(estimator="k3", input_clamp=0.5), score_clip=1.0)
WHITEN = Workload(
    op="advantages.masked_whiten", call=advantages.masked_whiten,
    make=lambda draw, *shape: {"x": draw.normal(*shape), "mask": draw.mask(*shape)},
)  # fmt: skip
SCORES = Workload(
    op="groups.group_advantages", call=groups.group_advantages,
    make=lambda draw, number: {"scores": draw.normal(number), "groups": torch.arange(number) // 8,
                               "num_groups": number // 8},
)  # fmt: skip


def whiten_row(option: str, formula: Callable[..., Tensor], add: Any = None, **settings: Any) -> Option:
    call = partial(advantages.masked_whiten, settings=WhitenSettings(**settings))
    more = {"add": add} if add else {}
    return Option(option=option, work=WHITEN, call=call, plain=formula, shape=(512, 1024), tiny=(6, 37), part=FORWARD,
                  counts=workloads.scattered(0.8), **more)  # fmt: skip


def group_row(option: str, baseline: str, scale: str) -> Option:
    call = partial(groups.group_advantages, settings=GroupSettings(baseline=baseline, scale=scale))
    formula = plain.group_advantages(baseline, scale == "deviation")
    return Option(option=option, work=SCORES, call=call, plain=formula, shape=(4096,), tiny=(24,), part=FORWARD,
                  alone=True)  # fmt: skip


ADVANTAGE_ROWS = (
    gae_row("ends of episodes, a value behind", with_ends, plain.gae, add=ends),
    gae_row("lambda a sequence", advantages.generalized_advantages, lambda lam, **x: plain.gae(**x, lam=lam),
            add=lambda draw, x: {"lam": draw.normal(len(x["mask"])).sigmoid()}),
    gae_row("lambda of the returns", partial(advantages.generalized_advantages, settings=GAESettings(value_lam=1.0)),
            partial(plain.gae, value_lam=1.0)),
    gae_row("gaps count", partial(advantages.generalized_advantages, settings=GAESettings(gaps="count")),
            partial(plain.gae, gaps=True), counts=workloads.scattered(0.8)),
    gae_row("k3, clamps", lambda **x: advantages.ppo_advantages(**x, settings=REWARDS)[:3], shaped_rewards,
            work=workloads.PPO_ADVANTAGES),
    whiten_row("the mean is kept", plain.whiten(center=False), center=False),
    whiten_row("population, epsilon beside the deviation", plain.whiten(ddof=0, epsilon_at="deviation", epsilon=1e-4),
               ddof=0, epsilon_at="deviation", epsilon=1e-4),
    whiten_row("a least variance", plain.whiten(epsilon_at="clamp"), epsilon_at="clamp"),
    whiten_row("by group", plain.group_whiten,
               add=lambda draw, x: {"groups": torch.arange(len(x["x"])) % 3, "num_groups": 3}),
    group_row("GRPO", "mean", "deviation"),
    group_row("RLOO", "leave_one_out", "none"),
    group_row("Dr. GRPO", "mean", "none"),
)  # fmt: skip
