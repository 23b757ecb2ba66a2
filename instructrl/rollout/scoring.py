"""Forward passes without gradient over many sequences: scores, likelihoods, and what is built from them."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from instructrl import distributed, progress
from instructrl.data.encoding import Encoder
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.models.spread import unsharded
from instructrl.types import Comparison, Rollout, Sequences, num_tokens


@torch.no_grad()
def in_batches(function: Callable[[Sequences], Tensor], sequences: Sequences, size: int = 32) -> Tensor:
    """`function` of all rows, `size` of similar length at a time, in the order of the rows.

    function: Sequences -> [rows] or [rows, T], 0 where the response mask is False. Each process of a job is given its
    part of the rows, and has all of the result.
    """
    width, order = sequences.response.shape[1], sequences.rows_by_length()
    own = distributed.own_rows(order)
    # With fewer rows than processes, one that has none does the first again, for the shape of its nothing.
    parts = (own if len(own) else order[:1]).split(size)
    found = []
    with progress.wait("scoring", max(len(own), min(len(order), 1))) as advance:
        for rows in parts:
            found.append(function(sequences.select(rows).trim()))
            advance(len(rows))
    padded = [x if x.dim() == 1 else F.pad(x, (0, width - x.shape[1])) for x in found]
    return distributed.gather(torch.cat(padded)[: len(own)], len(order))[order.argsort()]


@torch.no_grad()
def rollout_scores(reward_model: RewardModel, rollout: Rollout, end_of_text: int, batch_size: int = 32) -> Tensor:
    """Scores of the responses of a rollout: [B] float32.

    The reward model has learned one way for a response to end: it reads end_of_text where a finished one ended with
    another token.
    """
    with unsharded(reward_model) as network:
        return in_batches(network, rollout.closed(end_of_text), batch_size)


Reward = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Prompts and their responses, without the end of text, to a number each."""


def rewards(reward: Reward, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
    """[N] float32 on the CPU; of a job, the main process asks. Raises ValueError unless there is a finite number for
    each."""
    return torch.tensor(distributed.from_main(lambda: _checked(reward(prompts, responses), len(responses))))


def _checked(found: Sequence[float], count: int) -> list[float]:
    if not hasattr(found, "__len__"):
        raise ValueError(f"reward: found {type(found).__name__}, accepted are {count} numbers, one for each response")
    if len(found) != count:
        raise ValueError(f"reward: found {len(found)} numbers for {count} responses, accepted is one for each")
    for number, value in enumerate(found):
        try:
            good = math.isfinite(value)
        except TypeError:
            good = False
        if not good:
            raise ValueError(f"reward: found {value!r} for response {number}, accepted are finite numbers")
    return [float(value) for value in found]


@torch.no_grad()
def mean_loss(policy: Policy, parts: Sequence[Sequences], batch_size: int = 64) -> float:
    """Negative log-likelihood per response token over all parts, in nats."""
    with unsharded(policy) as network:
        device = network.device
        rows = progress.through("loss", parts)
        total = sum(float(in_batches(network, part.to(device), batch_size).cpu().double().sum()) for part in rows)
    return -total / max(num_tokens(parts), 1)


@torch.no_grad()
def score_texts(
    reward_model: RewardModel,
    encoder: Encoder,
    prompts: Sequence[str],
    responses: Sequence[str],
    finished: Sequence[bool] | None = None,
    batch_size: int = 128,
) -> Tensor:
    """Scores of responses as text: [N] float32, in their order; texts of similar length share a forward pass."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(responses[i]))
    own = distributed.own_rows(order)
    found = [torch.empty(0)]
    with unsharded(reward_model) as network, progress.wait("scores", len(own)) as advance:
        for start in range(0, len(own), batch_size):
            places = own[start : start + batch_size]
            flags = None if finished is None else [finished[i] for i in places]
            sequences = encoder.pairs([prompts[i] for i in places], [responses[i] for i in places], flags)
            found.append(network(sequences.to(network.bias.device)).cpu())
            advance(len(places))
    scores = torch.empty(len(prompts))
    scores[order] = distributed.gather(torch.cat(found), len(order))
    return scores


@torch.no_grad()
def comparison_scores(
    reward_model: RewardModel, encoder: Encoder, comparisons: Sequence[Comparison], batch_size: int = 16
) -> list[list[float]]:
    """Scores of every completion of every comparison, in their order; comparisons of similar length share a pass."""
    order = sorted(range(len(comparisons)), key=lambda i: len(comparisons[i].prompt) + _size(comparisons[i]))
    own = distributed.own_rows(order)
    most = max((len(row.completions) for row in comparisons), default=0)
    found = [torch.empty(0, most)]
    with unsharded(reward_model) as network, progress.wait("scores of comparisons", len(own)) as advance:
        for start in range(0, len(own), batch_size):
            rows = encoder.shared_prompts([comparisons[i] for i in own[start : start + batch_size]])
            scores = network.shared_prompt_scores(rows.to(network.bias.device)).cpu()
            found.append(F.pad(scores, (0, most - scores.shape[1])))
            advance(len(scores))
    by_place = dict(zip(order, distributed.gather(torch.cat(found), len(order)).tolist(), strict=True))
    return [by_place[place][: len(row.completions)] for place, row in enumerate(comparisons)]


def _size(row: Comparison) -> int:
    return sum(map(len, row.completions))
