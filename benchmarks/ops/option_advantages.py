"""Options of advantages and whitening, and group advantages: what options.py measures of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.core import workloads
from benchmarks.core.rows import Row
from benchmarks.core.workloads import FORWARD, GAE, PPO_ADVANTAGES, WHITEN, Draw, Inputs, Workload, workload
from benchmarks.ops import option_formulas as plain
from benchmarks.ops.option_rows import option
from instructrl.ops.advantage_settings import GAESettings, GroupSettings, RewardSettings, WhitenSettings
from instructrl.ops.advantage_terms import Ends
from instructrl.ops.ppo_settings import KLEstimator


def with_ends(dones: Tensor, bootstrap: Tensor, **x: Any) -> tuple[Tensor, ...]:
    return GAE.call(**x, ends=Ends(dones=dones, bootstrap=bootstrap))


def with_shaped_rewards(**x: Any) -> tuple[Tensor, ...]:
    settings = RewardSettings(kl=KLEstimator(estimator="k3", input_clamp=0.5), score_clip=1.0)
    return PPO_ADVANTAGES.call(**x, settings=settings)[:3]


def shaped_rewards(logprobs: Tensor, ref_logprobs: Tensor, values: Tensor, scores: Tensor, mask: Tensor,
                   kl_coef: float) -> list[Tensor]:  # fmt: skip
    """PPO's rewards with k3 of a clamped log ratio."""
    kl = plain.k3((logprobs - ref_logprobs).clamp(-0.5, 0.5))
    rewards = torch.where(mask, -kl_coef * kl, 0.0)
    rewards = rewards.scatter_add(1, mask.sum(1, keepdim=True) - 1, scores.clamp(-1.0, 1.0).unsqueeze(1))
    return [*plain.gae(rewards, values, mask), rewards]


PREFIXES = workloads.prefixes(0.5)


def gae_row(text: str, formula: Callable[..., Any], call: Callable[..., Any], work: Workload = GAE,
            counts: Any = PREFIXES, **more: Any) -> Row:  # fmt: skip
    """A loop over time is how it is written; compiled, that would be a thousand steps, so the reference is."""
    return option(text, work, formula, call, compiled=call, shape=(512, 1024), tiny=(4, 37), part=FORWARD,
                  counts=counts, **more)  # fmt: skip


def whiten_row(text: str, formula: Callable[..., Tensor], add: Any = None, **settings: Any) -> Row:
    call = partial(WHITEN.call, settings=WhitenSettings(**settings))
    return option(text, WHITEN, formula, call, add=add, shape=(512, 1024), tiny=(6, 37), part=FORWARD,
                  counts=workloads.scattered(0.8))  # fmt: skip


def _scores(draw: Draw, number: int) -> Inputs:
    return {"scores": draw.normal(number), "groups": torch.arange(number) // 8, "num_groups": number // 8}


GROUPS = workload("groups.group_advantages", _scores)


def group_row(text: str, baseline: str, scale: str) -> Row:
    call = partial(GROUPS.call, settings=GroupSettings(baseline=baseline, scale=scale))
    formula = plain.group_advantages(baseline, scale == "deviation")
    return option(text, GROUPS, formula, call, shape=(4096,), tiny=(24,), part=FORWARD, alone=True)


ADVANTAGE_ROWS = (
    gae_row("ends of episodes, a value behind", plain.gae, with_ends, add={
        "dones": lambda draw, x: draw.normal(*x["mask"].shape) > 2.0,
        "bootstrap": lambda draw, x: draw.normal(len(x["mask"])),
    }),
    gae_row("lambda a sequence", plain.gae, GAE.call,
            add={"lam": lambda draw, x: draw.normal(len(x["mask"])).sigmoid()}),
    gae_row("lambda of the returns", partial(plain.gae, value_lam=1.0),
            partial(GAE.call, settings=GAESettings(value_lam=1.0))),
    gae_row("gaps count", partial(plain.gae, gaps=True), partial(GAE.call, settings=GAESettings(gaps="count")),
            counts=workloads.scattered(0.8)),
    gae_row("k3, clamps", shaped_rewards, with_shaped_rewards, work=PPO_ADVANTAGES),
    whiten_row("the mean is kept", plain.whiten(center=False), center=False),
    whiten_row("population, epsilon beside the deviation", plain.whiten(ddof=0, epsilon_at="deviation", epsilon=1e-4),
               ddof=0, epsilon_at="deviation", epsilon=1e-4),
    whiten_row("a least variance", plain.whiten(epsilon_at="clamp"), epsilon_at="clamp"),
    whiten_row("by group", plain.whiten(), add={"groups": lambda draw, x: torch.arange(len(x["x"])) % 3,
                                                    "num_groups": lambda draw, x: 3}),
    group_row("GRPO", "mean", "deviation"),
    group_row("RLOO", "leave_one_out", "none"),
    group_row("Dr. GRPO", "mean", "none"),
)  # fmt: skip
