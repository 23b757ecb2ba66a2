"""Forward passes without gradient over many sequences: scores, likelihoods, and what is built from them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from instructrl.data.encoding import Encoder
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.types import Comparison, Sequences, num_tokens


@torch.no_grad()
def in_batches(function: Callable[[Sequences], Tensor], sequences: Sequences, size: int = 128) -> Tensor:
    """`function` of consecutive rows, `size` at a time, joined. function: Sequences -> [rows, ...]."""
    rows = torch.arange(sequences.num_rows, device=sequences.prompt.device)
    return torch.cat([function(sequences.select(part)) for part in rows.split(size)])


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


def comparison_scores(
    reward_model: RewardModel, encoder: Encoder, comparisons: Sequence[Comparison]
) -> list[list[float]]:
    """Scores of every completion of every comparison, in their order."""
    prompts = [row.prompt for row in comparisons for _ in row.completions]
    completions = [text for row in comparisons for text in row.completions]
    finished = [flag for row in comparisons for flag in row.finished or [True] * len(row.completions)]
    flat = iter(score_texts(reward_model, encoder, prompts, completions, finished).tolist())
    return [[next(flat) for _ in row.completions] for row in comparisons]
