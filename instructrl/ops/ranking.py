"""K-wise ranking loss of the reward model: every preferred pair of a prompt's responses."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from instructrl.ops import checks, dispatch


class RankingLoss(NamedTuple):
    """loss_sum: [P] float32 (float64 for float64 scores), nats. num_pairs, num_correct: [P] int64."""

    loss_sum: Tensor
    num_pairs: Tensor
    num_correct: Tensor


def _reference(scores: Tensor, preferred: Tensor) -> RankingLoss:
    scores = scores.to(checks.accumulation_dtype(scores))
    num_responses = scores.shape[1]
    pairs = preferred & ~torch.eye(num_responses, dtype=torch.bool, device=scores.device)
    # The difference passes its gradient through unchanged, so selecting it after the subtraction leaks no NaN.
    margin = torch.where(pairs, scores.unsqueeze(2) - scores.unsqueeze(1), 0.0)
    # softplus(-x) is -logsigmoid(x); F.softplus switches to the identity above 20, which float64 can tell apart.
    loss = torch.where(pairs, -F.logsigmoid(margin), 0.0)
    correct = pairs & (margin > 0)
    return RankingLoss(loss.sum((1, 2)), pairs.sum((1, 2)), correct.sum((1, 2)))


PAIRWISE_RANKING_LOSS = dispatch.declare("ranking.pairwise_ranking_loss", _reference)


def pairwise_ranking_loss(scores: Tensor, preferred: Tensor) -> RankingLoss:
    """Sum over the preferred pairs of each prompt of `softplus(scores[loser] - scores[winner])`.

    Equation 1 of the InstructGPT paper before its normaliser: a prompt's loss is `loss_sum / num_pairs`, the batch's
    the mean of that over prompts. Ties, missing responses and cycles need no special case: where nothing is
    preferred, scores are not read.

    scores: [P, K] floating; the reward model's score of each response.
    preferred: [P, K, K] bool, or 0 and 1 of any dtype; `preferred[p, i, j]` says that response i was preferred to
        response j. The diagonal is ignored.
    Returns: `RankingLoss`. Only `loss_sum` carries a gradient. A pair is correct when the winner's score is strictly
        greater.
    Raises: ValueError for other shapes, dtypes or devices.
    """
    checks.floating("scores", scores)
    checks.dims("scores", scores, 2, "[P, K]")
    num_prompts, num_responses = scores.shape
    shape = (num_prompts, num_responses, num_responses)
    preferred = checks.mask_like("preferred", preferred, "scores", shape, scores.device)
    return dispatch.run(PAIRWISE_RANKING_LOSS, scores, preferred)


def preferred_from_ranks(ranks: Tensor) -> Tensor:
    """The preference matrix of a ranking with ties and missing responses.

    ranks: [P, K] integer or floating; lower is better, equal is a tie, -1 (anything below 0, or NaN) is absent.
    Returns: [P, K, K] bool; True at [p, i, j] where both are present and i ranks strictly better than j.
    """
    checks.dims("ranks", ranks, 2, "[P, K]")
    if ranks.dtype == torch.bool or ranks.dtype.is_complex:
        raise ValueError(f"ranks: found dtype {ranks.dtype}, accepted are integers and floating-point numbers")
    winner, loser = ranks.unsqueeze(2), ranks.unsqueeze(1)
    return (winner >= 0) & (loser >= 0) & (winner < loser)
