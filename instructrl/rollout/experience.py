"""Rollout to experience: the quantities that stay fixed while PPO takes its minibatches."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from instructrl import profiling
from instructrl.models.policy import Policy
from instructrl.models.scoring import ValueFunction
from instructrl.models.spread import unsharded
from instructrl.objectives.rewards import penalize_unfinished
from instructrl.ops.advantages import masked_whiten, ppo_advantages
from instructrl.rollout.scoring import in_batches
from instructrl.types import Experience, Rollout, Sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimation:
    """How a rollout becomes advantages.

    discount, lam: gamma and lambda of generalized advantage estimation.
    temperature: the sampling temperature; scoring with another one would make the KL wrong.
    missing_eos_score: the score of a response that was cut; None keeps the reward model's.
    batch_size: sequences of similar length in one forward pass.
    """

    discount: float = 1.0
    lam: float = 0.95
    temperature: float = 1.0
    missing_eos_score: float | None = None
    batch_size: int = 32


class RolloutStatistics(NamedTuple):
    """Means over the rollout's episodes, as floats.

    score: of the responses, before the rule for unfinished responses, with its standard deviation. reward: what PPO
    maximises, the KL penalty included. kl: `sum over tokens of log pi - log pi_ref`, nats per episode. advantage_std:
    of all tokens, before they are whitened.
    """

    score: float
    score_std: float
    reward: float
    kl: float
    finished: float
    response_tokens: float
    advantage_std: float


@torch.no_grad()
def make_experience(
    rollout: Rollout,
    *,
    policy: Policy,
    reference: Policy,
    value_function: ValueFunction,
    scores: Tensor,
    kl_coef: float,
    estimation: Estimation,
) -> tuple[Experience, RolloutStatistics]:
    """Estimate the advantages of a rollout, whitened over the whole of it.

    The log-probabilities are recomputed with the pass that training uses, not taken from the sampler, so that the
    ratio of the first minibatch is 1. scores: [B] float32 of the responses.
    """
    sequences = rollout.sequences
    logprobs, ref_logprobs, values = network_outputs(sequences, policy, reference, value_function, estimation)
    shaped = penalize_unfinished(scores, rollout.finished, estimation.missing_eos_score)
    mask = sequences.response_mask
    with profiling.phase("advantages"):
        estimate = ppo_advantages(
            logprobs, ref_logprobs, values, shaped, mask, kl_coef=kl_coef, gamma=estimation.discount, lam=estimation.lam
        )
        advantages = masked_whiten(estimate.advantages, mask, stats=estimate.stats)
    experience = Experience(
        sequences=sequences,
        scores=shaped,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        advantages=advantages,
        returns=estimate.returns,
    )
    kl = (logprobs - ref_logprobs).masked_fill(~mask, 0.0).sum(dim=1)
    return experience, rollout_statistics(rollout, scores, shaped - kl_coef * kl, kl, estimate.advantages)


@torch.no_grad()
def network_outputs(
    sequences: Sequences,
    policy: Policy,
    reference: Policy,
    value_function: ValueFunction,
    estimation: Estimation,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the policy and of the reference, and values: [B, T] float32, 0 where masked."""
    size = estimation.batch_size
    with profiling.phase("logprobs"):
        with unsharded(policy) as network:
            logprobs = in_batches(lambda part: network(part, estimation.temperature), sequences, size)
        with unsharded(reference) as network:
            ref_logprobs = in_batches(lambda part: network(part, estimation.temperature), sequences, size)
    with profiling.phase("values"), unsharded(value_function) as network:
        values = in_batches(network, sequences, size)
    return logprobs, ref_logprobs, values


def rollout_statistics(
    rollout: Rollout, scores: Tensor, rewards: Tensor, kl: Tensor, advantages: Tensor
) -> RolloutStatistics:
    """scores, rewards, kl: [B], an episode's. advantages: [B, T], before they are whitened."""
    mask = rollout.sequences.response_mask
    return RolloutStatistics(
        score=float(scores.mean()),
        score_std=float(scores.std(correction=0)),
        reward=float(rewards.mean()),
        kl=float(kl.mean()),
        finished=float(rollout.finished.float().mean()),
        response_tokens=float(mask.sum(dim=1).float().mean()),
        advantage_std=float(advantages[mask].std(correction=0)),
    )
