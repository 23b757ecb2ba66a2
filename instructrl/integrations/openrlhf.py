"""OpenRLHF: the losses of its actor and critic, its KL, its log-probabilities and entropy, its advantages.

    from instructrl.integrations import openrlhf
    openrlhf.install()

Its trainers run in Ray workers, where Ray calls this before anything else of a worker:

    ray.init(runtime_env={"worker_process_setup_hook": "instructrl.integrations.openrlhf.install"})

A loss over no token is 0 here and NaN there; where the mask is False nothing is read, and advantages and returns are 0.
"""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from instructrl.integrations.adapter import Adapter, Replacement
from instructrl.integrations.logits import entropy_of
from instructrl.integrations.selfcheck import Draw, Example, Sizes
from instructrl.ops import advantages, aggregation, logprobs, ppo, ranking
from instructrl.ops.advantage_settings import GAESettings
from instructrl.ops.ppo_settings import KLSettings, PolicySettings, ValueSettings
from instructrl.ops.presets import PRESETS

_PRESET = PRESETS["openrlhf"]
_Number = float | Tensor | None


@cache
def _policy_settings(clip_low: float, clip_high: float, dual_clip: float | None) -> PolicySettings:
    clamp = _PRESET.losses.policy.log_ratio_clamp
    # Ratios are above 0, so that a lower bound below 0 is no bound.
    return PolicySettings(clip_low=min(clip_low, 1.0), clip_high=clip_high, dual_clip=dual_clip, log_ratio_clamp=clamp)


@cache
def _value_settings(cliprange: float | None) -> ValueSettings:
    return ValueSettings(cliprange=float("inf") if cliprange is None else cliprange)


@cache
def _kl_settings(estimator: str, unbiased: bool) -> KLSettings:
    clamp = _PRESET.rewards.kl.output_clamp
    return KLSettings(estimator=estimator, output_clamp=clamp, straight_through=unbiased)


def _all(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def _of_each_rank(total: _Number, dp_size: int, device: torch.device) -> Tensor | None:
    return None if total is None else torch.as_tensor(total, dtype=torch.float32, device=device) / dp_size


def _mean(mask: Tensor, token_level: bool, dp_size: int, num_tokens: _Number, num_sequences: _Number) -> dict[str, Any]:
    """The weights and the denominator of its `aggregate_loss`."""
    if token_level:
        return {"num_tokens": _of_each_rank(num_tokens, dp_size, mask.device)}
    number = _of_each_rank(num_sequences, dp_size, mask.device)
    return aggregation.token_weights(mask, "sequence_mean_of_token_means", num_sequences=number)._asdict()


def _policy_loss(own: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        self: Any,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        action_mask: Tensor | None = None,
        rollout_log_probs: Tensor | None = None,
        dp_size: int = 1,
        batch_num_tokens: _Number = None,
        global_batch_size: _Number = None,
    ) -> tuple[Tensor | None, ...]:
        # Left to the host: its ratios of sequences, of which advantages may differ by token, and what corrects for the
        # engine that sampled, with filters of its own.
        if self.policy_loss_type != "ppo" or self.is_correction_level != "off":
            totals = (dp_size, batch_num_tokens, global_batch_size)
            return own(self, log_probs, old_log_probs, advantages, action_mask, rollout_log_probs, *totals)
        mask = _all(log_probs) if action_mask is None else action_mask.bool()
        mean = _mean(mask, self.token_level_loss, dp_size, batch_num_tokens, global_batch_size)
        settings = _policy_settings(self.clip_eps_low, self.clip_eps_high, self.dual_clip)
        found = ppo.clipped_policy_loss(log_probs, old_log_probs, advantages, mask, **mean, settings=settings)
        with torch.no_grad():
            count = found.metrics["num_tokens"].clamp(min=1)
            kl = torch.where(mask, old_log_probs - log_probs, 0.0).sum() / count
        return found.loss, found.metrics["num_policy_clipped"] / count, kl, None, None

    return forward


def _value_loss(own: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        self: Any,
        values: Tensor,
        old_values: Tensor,
        returns: Tensor,
        action_mask: Tensor | None = None,
        dp_size: int = 1,
        batch_num_tokens: _Number = None,
        global_batch_size: _Number = None,
    ) -> Tensor:
        mask = _all(values) if action_mask is None else action_mask.bool()
        mean = _mean(mask, self.token_level_loss, dp_size, batch_num_tokens, global_batch_size)
        settings = _value_settings(self.clip_eps)
        return ppo.clipped_value_loss(values, old_values, returns, mask, **mean, settings=settings).loss

    return forward


_WINS = torch.tensor([[False, True], [False, False]])


def _log_exp_loss(own: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, chosen_reward: Tensor, reject_reward: Tensor, margin: Tensor | None = None) -> Tensor:
        scores = torch.stack([chosen_reward.flatten(), reject_reward.flatten()], 1)
        wins = _WINS.to(scores.device).expand(scores.shape[0], 2, 2)
        return ranking.pairwise_ranking_loss(scores, wins).loss_sum.mean()

    return forward


def _approx_kl(own: Callable[..., Any]) -> Callable[..., Any]:
    def compute_approx_kl(
        log_probs: Tensor,
        log_probs_base: Tensor,
        log_probs_old: Tensor | None = None,
        kl_estimator: str = "k1",
        unbiased_gradient: bool = False,
    ) -> Tensor:
        # Left to the host: a weight of the gradient that the value does not have, and a subtraction and a clamp.
        if (unbiased_gradient and log_probs_old is not None) or (kl_estimator == "k1" and not unbiased_gradient):
            return own(log_probs, log_probs_base, log_probs_old, kl_estimator, unbiased_gradient)
        settings = _kl_settings(kl_estimator, unbiased_gradient)
        return ppo.kl_token_losses(log_probs, log_probs_base, _all(log_probs), settings=settings).float()

    return compute_approx_kl


def _log_probs_from_logits(own: Callable[..., Any]) -> Callable[..., Any]:
    def log_probs_from_logits(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
        if temperature != 1.0:
            logits.div_(temperature)  # as the host leaves them to whoever reads them next
        return logprobs.token_logprobs(logits, labels).to(logits.dtype)

    return log_probs_from_logits


def _entropy(own: Callable[..., Any]) -> Callable[..., Any]:
    def compute_entropy(logits: Tensor) -> Tensor:
        return entropy_of(logits).to(logits.dtype)

    return compute_entropy


_GAPS_COUNT = GAESettings(gaps="count")


def _discounts(*numbers: float) -> bool:
    """Whether ours take them, which are from 0 to 1 there."""
    return all(0.0 <= number <= 1.0 for number in numbers)


def _advantages_and_returns(own: Callable[..., Any]) -> Callable[..., Any]:
    def get_advantages_and_returns(
        self: Any, values: Tensor, rewards: Tensor, action_mask: Tensor | None, gamma: float, lambd: float
    ) -> tuple[Tensor, Tensor]:
        if not _discounts(gamma, lambd):
            return own(self, values, rewards, action_mask, gamma, lambd)
        mask = _all(values) if action_mask is None else action_mask.bool()
        return advantages.generalized_advantages(rewards, values, mask, gamma=gamma, lam=lambd, settings=_GAPS_COUNT)

    return get_advantages_and_returns


def _cumulative_returns(own: Callable[..., Any]) -> Callable[..., Any]:
    def get_cumulative_returns(self: Any, rewards: Tensor, action_mask: Tensor | None, gamma: float) -> Tensor:
        if not _discounts(gamma):
            return own(self, rewards, action_mask, gamma)
        mask = _all(rewards) if action_mask is None else action_mask.bool()
        nothing = torch.zeros_like(rewards)
        return advantages.generalized_advantages(rewards, nothing, mask, gamma=gamma, lam=1.0, settings=_GAPS_COUNT)[0]

    return get_cumulative_returns


def _as_method(name: str) -> Callable[..., Any]:
    """A call of a loss's `forward` on one that is made with the first argument."""

    def call(function: Callable[..., Any], options: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        made = getattr(importlib.import_module("openrlhf.models.loss"), name)(**options)
        return function(made, *args, **kwargs)

    return call


def _per_token(draw: Draw, many: int, scale: float = 0.5) -> list[Tensor]:
    """The first with a gradient, then a mask of ones and zeros with gaps and an empty row."""
    shape = (draw.sizes.batch, draw.sizes.tokens)
    mask = draw.lengths(*shape).long() * (draw.ids(*shape, below=4) > 0)
    mask[1] = 0
    return [*(draw.normal(*shape, scale=scale, grad=i == 0) for i in range(many)), mask]


def _totals(tokens: float, sequences: float) -> dict[str, Any]:
    totals = {"batch_num_tokens": torch.tensor(tokens), "global_batch_size": torch.tensor(sequences)}
    return {"dp_size": 2, **totals}


def _policies(draw: Draw) -> list[Example]:
    unmasked = _per_token(draw, 3)[:3]
    engine = {"is_correction_level": "token", "is_correction_mode": "clip"}
    many = _totals(37.5, 2.5)
    return [
        Example(({}, *_per_token(draw, 3))),
        Example(({}, *unmasked)),
        Example(({"clip_eps_high": 0.28, "dual_clip": 3.0}, *_per_token(draw, 3, scale=1.5)), many),
        Example(({"token_level_loss": False}, *_per_token(draw, 3))),
        Example(({"token_level_loss": False, "clip_eps_low": 2.0}, *_per_token(draw, 3, scale=15.0)), many),
        Example(({"policy_loss_type": "gspo"}, *_per_token(draw, 3)), many),
        Example((engine, *_per_token(draw, 3), _per_token(draw, 1)[0].detach()), many),
    ]


def _values(draw: Draw) -> list[Example]:
    many = _totals(37.5, 2.5)
    return [
        Example(({}, *_per_token(draw, 3))),
        Example(({"clip_eps": 0.5}, *_per_token(draw, 3)[:3])),
        Example(({"clip_eps": 0.2}, *_per_token(draw, 3)), many),
        Example(({"clip_eps": 0.2, "token_level_loss": False}, *_per_token(draw, 3)), many),
        Example(({"clip_eps": 0.2, "token_level_loss": False}, *_per_token(draw, 3))),
    ]


def _pairs(draw: Draw) -> list[Example]:
    size = (draw.sizes.batch,)
    chosen, rejected = draw.normal(*size, grad=True), draw.normal(*size, grad=True)
    return [Example(({}, chosen, rejected)), Example(({}, chosen, rejected, draw.normal(*size)))]


def _kls(draw: Draw) -> list[Example]:
    found = []
    for estimator in ("k3", "k2", "k1"):
        for unbiased in (False, True):
            new, base, old, _ = _per_token(draw, 3, scale=5.0)
            found += [
                Example((new, base), {"kl_estimator": estimator, "unbiased_gradient": unbiased}),
                Example((new, base, old), {"kl_estimator": estimator, "unbiased_gradient": unbiased}),
            ]
    return found


def _logits(draw: Draw) -> tuple[Tensor, Tensor]:
    shape = (draw.sizes.batch, draw.sizes.tokens)
    return draw.normal(*shape, draw.sizes.vocabulary, scale=2.0, grad=True), draw.ids(*shape)


def _selections(draw: Draw) -> list[Example]:
    return [Example(_logits(draw)), Example((*_logits(draw), 0.7))]


def _on_a_copy(function: Callable[..., Any], logits: Tensor, *args: Any) -> Any:
    logits = logits.clone()
    return function(logits, *args), logits


def _uncompiled(function: Any, *args: Any) -> Any:
    return getattr(function, "_torchdynamo_orig_callable", function)(*args)


def _entropies(draw: Draw) -> list[Example]:
    return [Example(_logits(draw)[:1])]


def _counted(function: Callable[..., Any], counted: Any, *args: Any) -> list[Tensor]:
    """Nobody reads what the host has where the mask is False."""
    found = function(None, *args)
    return [torch.where(counted, x, 0.0) for x in (found if isinstance(found, tuple) else (found,))]


def _rollouts(many: int, *options: float) -> Callable[[Draw], list[Example]]:
    """Of values and rewards, or rewards alone, then a mask, or None for it, then gamma and lambda, or gamma alone."""

    def examples(draw: Draw) -> list[Example]:
        *tensors, mask = _per_token(draw, many)
        tensors = [x.detach() for x in tensors]
        return [
            Example((mask.bool(), *tensors, mask, *options)),
            Example((mask.bool(), *tensors, mask.bool(), *(1.0 for _ in options))),
            Example((_all(mask), *tensors, None, *options)),
            Example((mask.bool(), *tensors, mask, *(1.1 for _ in options))),
        ]

    return examples


_TOKENS = Sizes(batch=256, tokens=1024)

ADAPTER = Adapter(
    host="openrlhf",
    distribution="openrlhf",
    package="openrlhf",
    tried=("0.11.2",),
    replacements=(
        Replacement(
            name="openrlhf.models.loss:PolicyLoss.forward",
            signature="(self, log_probs, old_log_probs, advantages, action_mask=None, rollout_log_probs=None, "
            "dp_size=1, batch_num_tokens=None, global_batch_size=None)",
            sources=("207b2f9506c3",),
            stand_in=_policy_loss,
            examples=_policies,
            measured=_TOKENS,
            call=_as_method("PolicyLoss"),
        ),
        Replacement(
            name="openrlhf.models.loss:ValueLoss.forward",
            signature="(self, values, old_values, returns, action_mask=None, dp_size=1, batch_num_tokens=None, "
            "global_batch_size=None)",
            sources=("ae385596ae47",),
            stand_in=_value_loss,
            examples=_values,
            measured=_TOKENS,
            call=_as_method("ValueLoss"),
        ),
        Replacement(
            name="openrlhf.models.loss:LogExpLoss.forward",
            signature="(self, chosen_reward, reject_reward, margin=None)",
            sources=("116d5fda0a27",),
            stand_in=_log_exp_loss,
            examples=_pairs,
            call=_as_method("LogExpLoss"),
        ),
        Replacement(
            name="openrlhf.models.utils:compute_approx_kl",
            signature="(log_probs, log_probs_base, log_probs_old=None, kl_estimator='k1', unbiased_gradient=False)",
            sources=("1aa20ac44122",),
            stand_in=_approx_kl,
            examples=_kls,
            measured=_TOKENS,
        ),
        Replacement(
            name="openrlhf.models.utils:log_probs_from_logits",
            signature="(logits, labels, temperature=1.0)",
            sources=("92a21e3351d3",),
            stand_in=_log_probs_from_logits,
            examples=_selections,
            call=_on_a_copy,
        ),
        Replacement(
            name="openrlhf.models.utils:compute_entropy",
            signature="(logits)",
            sources=("07f5fe4f771b",),
            stand_in=_entropy,
            examples=_entropies,
            call=_uncompiled,
        ),
        Replacement(
            name="openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker.get_advantages_and_returns",
            signature="(self, values, rewards, action_mask, gamma, lambd)",
            sources=("a97e6d1840c2",),
            stand_in=_advantages_and_returns,
            examples=_rollouts(2, 0.99, 0.95),
            measured=_TOKENS,
            call=_counted,
        ),
        Replacement(
            name="openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker.get_cumulative_returns",
            signature="(self, rewards, action_mask, gamma)",
            sources=("e10aa1131ffe",),
            stand_in=_cumulative_returns,
            examples=_rollouts(1, 0.99),
            measured=_TOKENS,
            call=_counted,
        ),
    ),
)
install, uninstall = ADAPTER.install, ADAPTER.uninstall
