"""Liger's loss of GRPO and its relatives from hidden states."""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from instructrl.integrations.liger.heads import head_logprobs, random_head
from instructrl.integrations.logits import as_computed
from instructrl.integrations.selfcheck import Draw, Example
from instructrl.ops import aggregation, logprobs, ppo
from instructrl.ops.ppo_settings import KLSettings, PolicySettings, PPOSettings


class Arguments(NamedTuple):
    """Of Liger's GRPO function, in its order and with its defaults."""

    hidden: Tensor
    weight: Tensor
    tokens: Tensor
    mask: Tensor
    advantages: Tensor
    bias: Tensor | None = None
    ref_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    ref_hidden: Tensor | None = None
    ref_weight: Tensor | None = None
    ref_bias: Tensor | None = None
    beta: float = 0.04
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    loss_type: str = "dapo"
    max_completion_length: int | None = None
    level: str = "token"
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    temperature: float = 1.0
    compiled: bool = True
    use_ref_model: bool = True
    chunk_size: int = 1
    sampling_ratio: Tensor | None = None
    delta: float | None = None
    corrects_kl: bool = False
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0
    num_items: Tensor | float | None = None

    @property
    def has_kl(self) -> bool:
        """Without a reference Liger measures the KL of the policy to itself, which is 0."""
        return self.beta != 0.0 and self.use_ref_model

    @property
    def ours(self) -> bool:
        """Whether it is for us. CISPO's and VESPO's metrics need log-probabilities, LUSPO's mean counts padding."""
        if self.loss_type not in ("grpo", "bnpo", "dr_grpo", "dapo", "sapo") or self.level not in ("token", "sequence"):
            return False
        if self.loss_type == "dr_grpo" and self.max_completion_length is None:
            return False
        if self.has_kl and self.ref_logprobs is None and (self.ref_hidden is None or self.ref_weight is None):
            return False
        # Where weights differ within a sequence the gradient of its ratio is spread over its tokens in another way.
        by_sequence = self.sampling_ratio is None or self.sampling_ratio.shape[1:] in ((), (1,))
        if self.level == "sequence" and (
            self.loss_type == "sapo" or not by_sequence or (self.has_kl and self.corrects_kl)
        ):
            return False
        # Any other bound on the ratio is not one of the loss where the advantage is negative, and of that alone.
        return self.delta is None or self.loss_type == "sapo" or self.delta > 1.0 + self.epsilon_high


@functools.cache
def _settings(kind: str, level: str, clip: tuple[Any, ...], sapo: tuple[float, float], kl: KLSettings) -> PPOSettings:
    low, high, delta = clip
    policy = PolicySettings(
        surrogate=kind,
        clip_low=min(low, 1.0),
        clip_high=high,
        dual_clip=delta,
        ratio=level,
        positive_temperature=sapo[0],
        negative_temperature=sapo[1],
    )
    return PPOSettings(policy=policy, vf_coef=0.0, kl=kl)


@functools.cache
def _kl(coef: float, corrected: bool) -> KLSettings:
    return KLSettings(coef=coef, importance="full" if corrected else "none")


def _of(given: Arguments) -> PPOSettings:
    kind = "sapo" if given.loss_type == "sapo" else "clip"
    clip = (given.epsilon_low, given.epsilon_high, given.delta if kind == "clip" else None)
    kl = _kl(given.beta, given.corrects_kl) if given.has_kl else _kl(0.0, False)
    return _settings(kind, given.level, clip, (given.sapo_temperature_pos, given.sapo_temperature_neg), kl)


def _mean(given: Arguments, own: Any, mask: Tensor) -> aggregation.TokenWeights:
    """How Liger adds tokens up."""
    batch = mask.shape[0]
    if given.loss_type in ("grpo", "sapo"):
        return aggregation.token_weights(mask, "sequence_mean_of_token_means", num_sequences=batch)
    if given.loss_type == "bnpo":
        return aggregation.token_weights(mask, "token_mean")
    if given.loss_type == "dr_grpo":
        return aggregation.TokenWeights(None, batch * (given.max_completion_length or 0))
    # Over all processes where there are several.
    return aggregation.TokenWeights(None, own._compute_dapo_normalizer(mask, num_items_in_batch=given.num_items))


def _grpo_loss(given: Arguments, own: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    mask = given.mask != 0
    ref = given.ref_logprobs if given.has_kl else None
    if given.has_kl and ref is None:
        head: Any = (given.ref_hidden, given.ref_weight, given.tokens, given.ref_bias)
        with torch.no_grad():
            ref = head_logprobs(*head, temperature=given.temperature, mask=mask)
    advantages, mean = given.advantages.unsqueeze(1), _mean(given, own, mask)
    weights, ratio = mean.weights, given.sampling_ratio
    if ratio is not None:
        ratio = ratio.reshape(mask.shape[0], -1).expand(mask.shape)
        # It multiplies the policy's part alone, which advantages do too.
        if given.has_kl:
            advantages = advantages * ratio
        else:
            weights = ratio if weights is None else weights * ratio
    hidden, weight, bias = as_computed(given.hidden, given.weight, given.bias)
    found = ppo.linear_ppo_loss(
        hidden,  # pyright: ignore[reportArgumentType]
        weight,  # pyright: ignore[reportArgumentType]
        given.tokens,
        given.old_logprobs,
        advantages,
        None,
        None,
        None,
        mask,
        bias=bias,
        ref_logprobs=ref,
        weights=weights,
        num_tokens=mean.num_tokens,
        temperature=given.temperature,
        settings=_of(given),
    )
    count = found.metrics["num_tokens"].clamp(min=1.0)
    kl = (found.metrics["ref_kl_sum"] / count,) if given.beta != 0.0 else ()
    clipped = found.metrics["num_policy_clipped"] / count
    return found.loss, (*kl, torch.zeros_like(clipped) if given.loss_type == "sapo" else clipped)


def grpo_of(own: Any) -> Any:
    class Grpo:
        """In place of an autograd function, of which Liger calls `apply`."""

        @staticmethod
        def apply(*args: Any) -> Any:
            given = Arguments(*args)
            return _grpo_loss(given, own) if given.ours else own.apply(*args)

    return Grpo


def calls(draw: Draw) -> list[Example]:
    sizes = draw.sizes
    shape = (sizes.batch, sizes.tokens)

    def example(bias: bool = False, old: bool = True, **others: Any) -> Example:
        hidden, weight, tokens, added = random_head(draw, sizes.batch, bias)
        temperature = others.get("temperature", 1.0)
        with torch.no_grad():
            now = logprobs.linear_token_logprobs(hidden, weight, tokens, bias=added, temperature=temperature)
        given = Arguments(
            hidden,
            weight,
            tokens,
            draw.lengths(*shape).to(others.pop("mask_dtype", torch.bool)),
            draw.normal(sizes.batch),
            bias=added,
            ref_logprobs=now + draw.normal(*shape, scale=0.5),
            old_logprobs=now + draw.normal(*shape, scale=0.3) if old else None,
            compiled=False,
        )
        return Example(tuple(given._replace(**others)))

    def sampled(*of: int) -> Tensor:
        return draw.normal(*of, scale=0.3).exp()

    other = random_head(draw, sizes.batch)
    return [
        example(),
        example(bias=True, loss_type="grpo", temperature=0.7, mask_dtype=torch.int64, delta=1.5, epsilon_high=0.28),
        example(old=False, loss_type="bnpo", beta=0.0, sampling_ratio=sampled(*shape)),
        example(loss_type="dr_grpo", max_completion_length=30, sampling_ratio=sampled(*shape), corrects_kl=True),
        example(loss_type="sapo", use_ref_model=False, ref_logprobs=None, sampling_ratio=sampled(sizes.batch)),
        example(loss_type="grpo", level="sequence", epsilon_low=3e-2, epsilon_high=4e-2, num_items=50),
        example(num_items=50, ref_logprobs=None, ref_hidden=other[0].detach(), ref_weight=other[1].detach()),
        example(loss_type="cispo", epsilon_high=2.0),
        example(loss_type="vespo"),
        example(loss_type="luspo", level="sequence"),
    ]


def applied(function: Any, *args: Any) -> Any:
    return function.apply(*args)


def apply_of(own: Any) -> Any:
    return grpo_of(own.__self__).apply
