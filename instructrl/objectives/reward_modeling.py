"""The reward model's loss over all comparisons of a prompt (paper, equation 1)."""

from typing import NamedTuple

import torch
from torch import Tensor

from instructrl.ops.ranking import pairwise_ranking_loss


class ComparisonLoss(NamedTuple):
    """loss: scalar. num_pairs, num_correct: 0-dim int64 sums over the prompts given."""

    loss: Tensor
    num_pairs: Tensor
    num_correct: Tensor


def comparison_loss(
    scores: Tensor,
    preferred: Tensor,
    num_prompts: int | Tensor,
    *,
    weights: Tensor | None = None,
    margins: Tensor | None = None,
    center_coef: float = 0.0,
) -> ComparisonLoss:
    """`1/num_prompts * sum_p mean over preferred (i, j) of -log sigmoid(scores[p, i] - scores[p, j])`.

    Every prompt weighs the same whatever its K; ties are dropped before a prompt's pairs are counted, so a prompt of
    ties contributes 0.

    scores: [P, K] float. preferred: [P, K, K] bool, True where completion i was preferred to j.
    num_prompts: prompts with at least one preferred pair in the whole optimiser batch.
    weights: [P] float, of the prompts; None: each weighs 1.
    margins: as in `ranking.pairwise_ranking_loss`.
    center_coef: of the mean over the same pairs of `(scores[p, i] + scores[p, j])^2`, which keeps scores about 0
    (Eisenstein et al., arXiv 2312.09244, equation 2).
    """
    ranking = pairwise_ranking_loss(scores, preferred, margins=margins)
    per_prompt = ranking.loss_sum
    if center_coef:
        sums = torch.where(preferred, scores.unsqueeze(2) + scores.unsqueeze(1), 0.0)
        per_prompt = per_prompt + center_coef * sums.square().sum(dim=(1, 2))
    per_prompt = per_prompt / ranking.num_pairs.clamp(min=1)
    if weights is not None:
        per_prompt = per_prompt * weights
    count = max(num_prompts, 1) if isinstance(num_prompts, int) else num_prompts.clamp(min=1)
    return ComparisonLoss(per_prompt.sum() / count, ranking.num_pairs.sum(), ranking.num_correct.sum())
