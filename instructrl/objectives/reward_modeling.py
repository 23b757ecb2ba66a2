"""The reward model's loss over all comparisons of a prompt (paper, equation 1)."""

from typing import NamedTuple

from torch import Tensor

from instructrl.ops.ranking import pairwise_ranking_loss


class ComparisonLoss(NamedTuple):
    """loss: scalar. num_pairs, num_correct: 0-dim int64 sums over the prompts given."""

    loss: Tensor
    num_pairs: Tensor
    num_correct: Tensor


def comparison_loss(scores: Tensor, preferred: Tensor, num_prompts: int | Tensor) -> ComparisonLoss:
    """`1/num_prompts * sum_p mean over preferred (i, j) of -log sigmoid(scores[p, i] - scores[p, j])`.

    Every prompt weighs the same whatever its K; ties are dropped before a prompt's pairs are counted, so a prompt of
    ties contributes 0.

    scores: [P, K] float. preferred: [P, K, K] bool, True where completion i was preferred to j.
    num_prompts: prompts with at least one preferred pair in the whole optimiser batch.
    """
    ranking = pairwise_ranking_loss(scores, preferred)
    per_prompt = ranking.loss_sum / ranking.num_pairs.clamp(min=1)
    count = max(num_prompts, 1) if isinstance(num_prompts, int) else num_prompts.clamp(min=1)
    return ComparisonLoss(per_prompt.sum() / count, ranking.num_pairs.sum(), ranking.num_correct.sum())
