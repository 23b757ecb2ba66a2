"""Forward passes without gradient over many sequences: scores, likelihoods, and what is built from them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from instructrl.data.encoding import Encoder
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.types import Comparison, Sequences, num_tokens


@torch.no_grad()
def in_batches(function: Callable[[Sequences], Tensor], sequences: Sequences, size: int = 32) -> Tensor:
    """`function` of all rows, `size` of similar length at a time, in the order of the rows.

    function: Sequences -> [rows] or [rows, T], 0 where the response mask is False.
    """
    width = sequences.response.shape[1]
    parts = sequences.rows_by_length(size)
    found = [function(sequences.select(rows).trim()) for rows in parts]
    padded = [x if x.dim() == 1 else F.pad(x, (0, width - x.shape[1])) for x in found]
    return torch.cat(padded)[torch.cat(parts).argsort()]


@torch.no_grad()
def mean_loss(policy: Policy, parts: Sequence[Sequences], batch_size: int = 64) -> float:
    """Negative log-likelihood per response token over all parts, in nats."""
    device = next(policy.parameters()).device
    total = sum(float(in_batches(policy, part.to(device), batch_size).double().sum()) for part in parts)
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
    device = next(reward_model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(responses[i]))
    scores = torch.empty(len(prompts))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        flags = None if finished is None else [finished[i] for i in places]
        sequences = encoder.pairs([prompts[i] for i in places], [responses[i] for i in places], flags)
        scores[places] = reward_model(sequences.to(device)).cpu()
    return scores


@torch.no_grad()
def comparison_scores(
    reward_model: RewardModel, encoder: Encoder, comparisons: Sequence[Comparison], batch_size: int = 16
) -> list[list[float]]:
    """Scores of every completion of every comparison, in their order; comparisons of similar length share a pass."""
    device = reward_model.bias.device
    order = sorted(range(len(comparisons)), key=lambda i: len(comparisons[i].prompt) + _size(comparisons[i]))
    scores: list[list[float]] = [[] for _ in comparisons]
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        rows = encoder.shared_prompts([comparisons[i] for i in places]).to(device)
        for place, found in zip(places, reward_model.shared_prompt_scores(rows).tolist(), strict=True):
            scores[place] = found[: len(comparisons[place].completions)]
    return scores


def _size(row: Comparison) -> int:
    return sum(map(len, row.completions))
