"""Ranking losses of the reward model: over pairs of a prompt's responses, with or without ties, and over choices."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from instructrl.ops import checks, dispatch
from instructrl.ops.ranking_settings import ComparisonTerms, RankingSettings, TieSettings


class RankingLoss(NamedTuple):
    """loss_sum: [P] float32 (float64 for float64 scores), nats. num_pairs, num_correct: [P] int64."""

    loss_sum: Tensor
    num_pairs: Tensor
    num_correct: Tensor


class TiedRankingLoss(NamedTuple):
    """As `RankingLoss`. num_ties: [P] int64; of pairs, each once."""

    loss_sum: Tensor
    num_pairs: Tensor
    num_correct: Tensor
    num_ties: Tensor


class PlackettLuceLoss(NamedTuple):
    """loss_sum: as in `RankingLoss`. num_choices: [P] int64; responses that were chosen from at least two.
    num_correct: [P] int64; choices whose score is strictly greater than all others they were made from.
    """

    loss_sum: Tensor
    num_choices: Tensor
    num_correct: Tensor


def _no_diagonal(matrix: Tensor) -> Tensor:
    return matrix & ~torch.eye(matrix.shape[1], dtype=torch.bool, device=matrix.device)


def _plain_reference(scores: Tensor, preferred: Tensor) -> RankingLoss:
    scores = scores.to(checks.accumulation_dtype(scores))
    pairs = _no_diagonal(preferred)
    # The difference passes its gradient through unchanged, so selecting it after the subtraction leaks no NaN.
    margin = torch.where(pairs, scores.unsqueeze(2) - scores.unsqueeze(1), 0.0)
    # softplus(-x) is -logsigmoid(x); F.softplus switches to the identity above 20, which float64 can tell apart.
    loss = torch.where(pairs, -F.logsigmoid(margin), 0.0)
    correct = pairs & (margin > 0)
    return RankingLoss(loss.sum((1, 2)), pairs.sum((1, 2)), correct.sum((1, 2)))


def _tied_reference(
    scores: Tensor,
    preferred: Tensor,
    tied: Tensor | None,
    margins: Tensor | None,
    weights: Tensor | None,
    terms: ComparisonTerms,
) -> TiedRankingLoss:
    scores = scores.to(checks.accumulation_dtype(scores))
    pairs = _no_diagonal(preferred)
    ties = torch.zeros_like(pairs) if tied is None else _no_diagonal(tied | tied.transpose(1, 2))
    either = pairs | ties
    difference = torch.where(either, scores.unsqueeze(2) - scores.unsqueeze(1), 0.0)
    own_margin = 0.0 if margins is None else torch.where(either, margins, 0.0)
    x = difference - terms.margin - own_margin
    loss = -F.logsigmoid(x)
    if terms.davidson:
        loss = torch.logaddexp(loss, torch.log(torch.full_like(x, terms.davidson)) - 0.5 * x)
    weight = torch.ones_like(x) if weights is None else torch.where(either, weights, 0.0)
    strength = torch.where(pairs, weight, torch.where(ties, terms.tie_weight * weight, 0.0))
    loss = strength * (loss + terms.label_smoothing * x)
    loss = loss - torch.where(ties, (0.5 * terms.tie_constant) * weight, 0.0)
    counts = (pairs, pairs & (difference > 0), ties & torch.ones_like(ties).triu())
    return TiedRankingLoss(loss.sum((1, 2)), *(count.sum((1, 2)) for count in counts))


def _pairwise_reference(
    scores: Tensor,
    preferred: Tensor,
    margins: Tensor | None = None,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> RankingLoss:
    if margins is None and weights is None and label_smoothing == 0.0:
        return _plain_reference(scores, preferred)
    terms = ComparisonTerms(label_smoothing=label_smoothing)
    return RankingLoss(*_tied_reference(scores, preferred, None, margins, weights, terms)[:3])


def _plackett_luce_reference(scores: Tensor, ranks: Tensor) -> PlackettLuceLoss:
    scores = scores.to(checks.accumulation_dtype(scores))
    present = ranks >= 0
    available = present.unsqueeze(2) & (ranks.unsqueeze(2) <= ranks.unsqueeze(1))
    others = _no_diagonal(available)
    chosen = others.any(2)
    scores = torch.where(present, scores, 0.0)
    # Scores less that of the chosen, whose own is 0.
    difference = torch.where(available, scores.unsqueeze(1) - scores.unsqueeze(2), -torch.inf)
    difference = torch.where(chosen.unsqueeze(2), difference, 0.0)
    loss = torch.where(chosen, difference.logsumexp(2), 0.0)
    correct = chosen & ((difference < 0) | ~others).all(2)
    return PlackettLuceLoss(loss.sum(1), chosen.sum(1), correct.sum(1))


PAIRWISE_RANKING_LOSS = dispatch.declare("ranking.pairwise_ranking_loss", _pairwise_reference, composed=True)
TIED_RANKING_LOSS = dispatch.declare("ranking.tied_ranking_loss", _tied_reference, composed=True)
PLACKETT_LUCE_LOSS = dispatch.declare("ranking.plackett_luce_loss", _plackett_luce_reference, composed=True)


def _check_scores(scores: Tensor) -> None:
    checks.floating("scores", scores)
    checks.dims("scores", scores, 2, "[P, K]")


def _of_pairs(name: str, numbers: Tensor, scores: Tensor) -> Tensor:
    """A number for each ordered pair, of the dtype that the losses are summed in: a view wherever one serves many."""
    checks.floating(name, numbers)
    num_prompts, num_responses = scores.shape
    shapes = ((), (num_prompts,), (num_prompts, num_responses, num_responses))
    if tuple(numbers.shape) not in shapes:
        accepted = ", ".join(map(str, shapes))
        raise ValueError(f"{name}: found shape {tuple(numbers.shape)}, accepted are {accepted}, as scores has it")
    if numbers.device != scores.device:
        raise ValueError(f"{name}: found device {numbers.device}, accepted is {scores.device}, where scores is")
    numbers = numbers.detach().to(checks.accumulation_dtype(scores))
    return (numbers.view(-1, 1, 1) if numbers.dim() == 1 else numbers).expand(shapes[2])


def _weights_of_pairs(weights: Tensor, scores: Tensor, compared: Tensor) -> Tensor:
    weights = _of_pairs("weights", weights, scores)
    found = "a negative, infinite or missing weight of a pair that counts"
    counted = torch.where(compared, weights, 0.0)
    checks.values_within("weights", counted, 0.0, torch.inf, found, "finite numbers of at least 0")
    return weights


def pairwise_ranking_loss(
    scores: Tensor,
    preferred: Tensor,
    *,
    margins: Tensor | None = None,
    weights: Tensor | None = None,
    settings: RankingSettings = RankingSettings(),
) -> RankingLoss:
    """Sum over the preferred pairs of each prompt of `softplus(scores[loser] - scores[winner])`.

    Equation 1 of the InstructGPT paper before its normaliser: a prompt's loss is `loss_sum / num_pairs`, and that of a
    batch the mean over its prompts. Ties, missing responses and cycles need no special case: what has no preference is
    ignored.

    With margins, label smoothing and weights, the loss of a pair is
    `weight * ((1 - s) * softplus(-x) + s * softplus(x))`, where `x = scores[winner] - scores[loser] - margin` (the
    margin of Llama 2) and s is the label smoothing. A normaliser can be given as weights, so that `loss_sum.sum()` is
    the whole loss: `weights = 1 / (num_prompts * num_pairs)` [P] makes equation 1, and `weights = 1 / preferred.sum()`
    the mean over all pairs, as in TRL, OpenRLHF and NeMo-RL (if the optimiser batch comes in parts, take the count of
    the whole). Their chosen and rejected scores are `torch.stack([chosen, rejected], 1)`.

    scores: [P, K] floating; the reward model's score of each response.
    preferred: [P, K, K] bool, or 0 and 1 of any dtype; `preferred[p, i, j]` says that response i was preferred to
        response j. The diagonal is ignored.
    margins, weights: 0-dim, [P] or [P, K, K] floating; constants for all pairs, for each prompt or for each pair:
        `margins[p, i, j]` where i was preferred to j; other elements are ignored. Weights are at least 0.
    Returns: `RankingLoss`. Only `loss_sum` carries a gradient. A pair is correct when the winner's score is strictly
        greater; counts ignore the weights.
    Raises: ValueError for other shapes, dtypes or devices, and for negative weights.
    """
    _check_scores(scores)
    num_prompts, num_responses = scores.shape
    shape = (num_prompts, num_responses, num_responses)
    preferred = checks.mask_like("preferred", preferred, "scores", shape, scores.device)
    checks.settings("settings", settings, RankingSettings)
    if margins is not None:
        margins = _of_pairs("margins", margins, scores)
    if weights is not None:
        weights = _weights_of_pairs(weights, scores, preferred)
    return dispatch.run(PAIRWISE_RANKING_LOSS, scores, preferred, margins, weights, settings.label_smoothing)


def tied_ranking_loss(
    scores: Tensor,
    preferred: Tensor,
    tied: Tensor,
    *,
    weights: Tensor | None = None,
    settings: TieSettings = TieSettings(),
) -> TiedRankingLoss:
    """Sum over the pairs of each prompt of `-log P(i wins)` where i was preferred, and of `-log P(tie)` where tied.

    With d = scores[i] - scores[j], in the model of Rao and Kupper (1967), theta >= 1:
        P(i wins) = 1 / (1 + theta exp(-d)),    P(tie) = (theta^2 - 1) P(i wins) P(j wins)
    and in that of Davidson (1970), nu >= 0:
        P(i wins) = 1 / (1 + exp(-d) + nu exp(-d / 2)),    P(tie) = nu exp(-d / 2) P(i wins)
    P(i wins) + P(tie) + P(j wins) is 1. Without ties, theta = 1 or nu = 0, it is `pairwise_ranking_loss`.

    scores, preferred: as in `pairwise_ranking_loss`.
    tied: [P, K, K] bool, or 0 and 1; a pair is tied where one or both of its two places are True. The diagonal is
        ignored.
    weights: as in `pairwise_ranking_loss`; those of a tied pair are the same in both of its places.
    settings: the model and its parameter.
    Returns: `TiedRankingLoss`. Only `loss_sum` carries a gradient.
    Raises: ValueError for other shapes, dtypes or devices, for a pair that is both tied and preferred, for ties where
        the parameter allows none, and for weights that are negative or differ within a tie.
    """
    _check_scores(scores)
    num_prompts, num_responses = scores.shape
    shape = (num_prompts, num_responses, num_responses)
    preferred = checks.mask_like("preferred", preferred, "scores", shape, scores.device)
    tied = checks.mask_like("tied", tied, "scores", shape, scores.device)
    checks.settings("settings", settings, TieSettings)
    if dispatch.checks_values(scores.device.type):
        both = _no_diagonal(tied | tied.transpose(1, 2))
        checks.require("tied", ~(both & preferred), "a tied pair that is preferred", "pairs of one of the two kinds")
        if not settings.has_ties:
            found = f"a tie with {settings.model} and the parameter {settings.parameter}"
            checks.require("tied", ~both, found, "no ties, or a larger parameter")
    if weights is not None:
        weights = _weights_of_pairs(weights, scores, preferred | tied)
        equal = (weights == weights.transpose(1, 2)) | ~tied
        checks.require("weights", equal, "different weights in the two places of a tie", "equal ones")
    return dispatch.run(TIED_RANKING_LOSS, scores, preferred, tied, None, weights, settings.terms)


def plackett_luce_loss(scores: Tensor, ranks: Tensor) -> PlackettLuceLoss:
    """Minus the log-probability of each prompt's ranking, as successive choices: Luce (1959), Plackett (1975).

    `sum over responses i of log(sum of exp(scores[j] - scores[i]) over j with ranks[j] >= ranks[i])`. Two responses
    make it equation 1 of the InstructGPT paper. Equal ranks are Breslow's (1974) approximation: each of them is chosen
    from all of them and what ranks below. There is one loss for each prompt: multiply weights with `loss_sum`, and
    divide by `num_choices` to normalise.

    scores: [P, K] floating.
    ranks: [P, K] integer or floating; lower is better, -1 (anything below 0, or NaN) is absent and ignored.
    Returns: `PlackettLuceLoss`. Only `loss_sum` carries a gradient.
    Raises: ValueError for other shapes, dtypes or devices.
    """
    _check_scores(scores)
    _check_ranks(ranks)
    checks.like("ranks", ranks, "scores", tuple(scores.shape), scores.device)
    return dispatch.run(PLACKETT_LUCE_LOSS, scores, _whole_ranks(ranks))


def _check_ranks(ranks: Tensor) -> None:
    checks.dims("ranks", ranks, 2, "[P, K]")
    if ranks.dtype == torch.bool or ranks.dtype.is_complex:
        raise ValueError(f"ranks: found dtype {ranks.dtype}, accepted are integers and floating-point numbers")


def _whole_ranks(ranks: Tensor) -> Tensor:
    """int64 in the order of the ranks: their number of better ones where they may be fractions."""
    if not ranks.dtype.is_floating_point:
        return ranks.to(torch.int64)
    return torch.where(ranks >= 0, (ranks.unsqueeze(1) < ranks.unsqueeze(2)).sum(2), -1)


def preferred_from_ranks(ranks: Tensor) -> Tensor:
    """The preference matrix of a ranking with ties and missing responses.

    ranks: [P, K] integer or floating; lower is better, equal is a tie, -1 (anything below 0, or NaN) is absent.
    Returns: [P, K, K] bool; True at [p, i, j] where both are present and i ranks strictly better than j.
    """
    _check_ranks(ranks)
    winner, loser = ranks.unsqueeze(2), ranks.unsqueeze(1)
    return (winner >= 0) & (loser >= 0) & (winner < loser)


def tied_from_ranks(ranks: Tensor) -> Tensor:
    """The ties of a ranking as `preferred_from_ranks` has its preferences: [P, K, K] bool, True in both places."""
    _check_ranks(ranks)
    return _no_diagonal((ranks.unsqueeze(2) >= 0) & (ranks.unsqueeze(2) == ranks.unsqueeze(1)))
