"""The options of the ranking losses, derived: probabilities that sum to 1, limits, and numbers worked out by hand."""

import itertools
import math

import pytest
import torch

from instructrl.ops import ranking
from instructrl.ops.ranking_settings import RankingSettings, TieSettings

pytestmark = pytest.mark.usefixtures("each_backend")

D = torch.float64
MODELS = [
    TieSettings(),
    TieSettings(parameter=1.001),
    TieSettings(parameter=50.0),
    TieSettings(model="davidson", parameter=1.0),
    TieSettings(model="davidson", parameter=0.001),
    TieSettings(model="davidson", parameter=50.0),
]


def pair(*places):
    matrix = torch.zeros(1, 2, 2, dtype=torch.bool)
    for place in places:
        matrix[0][place] = True
    return matrix


FIRST, SECOND, NOTHING = pair((0, 1)), pair((1, 0)), pair()


def loss_and_gradient(function, scores, *args, **options):
    leaf = scores.clone().requires_grad_()
    loss = function(leaf, *args, **options).loss_sum
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("settings", MODELS, ids=str)
@pytest.mark.parametrize("difference", [0.0, 0.3, -2.0, 9.0])
def test_win_tie_and_loss_have_probabilities_that_sum_to_1(settings, difference):
    scores = torch.tensor([[difference, 0.0]], dtype=D)
    outcomes = [(FIRST, NOTHING), (NOTHING, pair((0, 1), (1, 0))), (SECOND, NOTHING)]
    found = [loss_and_gradient(ranking.tied_ranking_loss, scores, *x, settings=settings) for x in outcomes]
    probabilities = torch.cat([loss.neg().exp() for loss, _ in found])
    assert float(probabilities.sum()) == pytest.approx(1.0, rel=1e-13)
    # and so the derivatives of the probabilities sum to 0
    slopes = sum(probability * gradient for probability, (_, gradient) in zip(probabilities, found, strict=True))
    torch.testing.assert_close(slopes, torch.zeros(1, 2, dtype=D), rtol=0, atol=1e-14)


@pytest.mark.parametrize("settings", [TieSettings(), TieSettings(model="davidson", parameter=1.0)], ids=str)
def test_equal_scores_win_tie_and_lose_alike(settings):
    for outcome in ((FIRST, NOTHING), (NOTHING, FIRST), (NOTHING, SECOND), (SECOND, NOTHING)):
        found = ranking.tied_ranking_loss(torch.zeros(1, 2, dtype=D), *outcome, settings=settings)
        assert float(found.loss_sum) == pytest.approx(math.log(3), rel=1e-14)


def test_a_tie_of_davidson_lies_between_the_wins():
    # exp of scores 4 and 1, nu 3: 4 / (4 + 1 + 3 * 2), 6 / 11 and 1 / 11.
    scores, settings = torch.tensor([[math.log(4), 0.0]], dtype=D), TieSettings(model="davidson", parameter=3.0)
    for outcome, probability in (((FIRST, NOTHING), 4 / 11), ((NOTHING, FIRST), 6 / 11), ((SECOND, NOTHING), 1 / 11)):
        found = ranking.tied_ranking_loss(scores, *outcome, settings=settings).loss_sum
        assert float(found) == pytest.approx(-math.log(probability), rel=1e-14)


def test_a_tie_of_rao_and_kupper():
    # exp of scores 4 and 1, theta 3: wins 4 / (4 + 3) and 1 / (1 + 12), tie (9 - 1) * 4 * 1 / ((4 + 3) (12 + 1)).
    scores, settings = torch.tensor([[math.log(4), 0.0]], dtype=D), TieSettings(parameter=3.0)
    for outcome, probability in (((FIRST, NOTHING), 4 / 7), ((NOTHING, FIRST), 32 / 91), ((SECOND, NOTHING), 1 / 13)):
        found = ranking.tied_ranking_loss(scores, *outcome, settings=settings).loss_sum
        assert float(found) == pytest.approx(-math.log(probability), rel=1e-14)


@pytest.mark.parametrize("settings", [TieSettings(parameter=1.0), TieSettings(model="davidson", parameter=0.0)])
def test_without_ties_it_is_equation_1(settings):
    ranks = torch.tensor([[0, 2, 1, 1], [1, 0, -1, 0]])
    scores = torch.randn(2, 4, dtype=D, generator=torch.Generator().manual_seed(0))
    preferred = ranking.preferred_from_ranks(ranks)
    found = loss_and_gradient(
        ranking.tied_ranking_loss, scores, preferred, torch.zeros_like(preferred), settings=settings
    )
    expected = loss_and_gradient(ranking.pairwise_ranking_loss, scores, preferred)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)


def test_ties_of_ranks_are_counted_once():
    ranks = torch.tensor([[0, 0, 1, 0, -1], [2, 2, 2, -1, -1]])
    tied = ranking.tied_from_ranks(ranks)
    assert torch.equal(tied, tied.transpose(1, 2))
    found = ranking.tied_ranking_loss(torch.zeros(2, 5), ranking.preferred_from_ranks(ranks), tied)
    assert found.num_ties.tolist() == [3, 3]
    assert found.num_pairs.tolist() == [3, 0]
    torch.testing.assert_close(found.loss_sum, torch.tensor([6.0, 3.0]) * math.log(3))


def test_margin_and_label_smoothing_by_hand():
    # d = log 6, margin log 2: x = log 3, so softplus(-x) = log(4 / 3) and softplus(x) = log 4.
    scores, margins = torch.tensor([[math.log(6), 0.0]], dtype=D), torch.tensor(math.log(2), dtype=D)
    settings = RankingSettings(label_smoothing=0.1)
    loss, gradient = loss_and_gradient(
        ranking.pairwise_ranking_loss, scores, FIRST, margins=margins, weights=margins.new_tensor([3.0]),
        settings=settings,
    )  # fmt: skip
    assert float(loss) == pytest.approx(3 * (0.9 * math.log(4 / 3) + 0.1 * math.log(4)), rel=1e-14)
    # -0.9 sigmoid(-x) + 0.1 sigmoid(x)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -1.0]], dtype=D) * 3 * (-0.9 / 4 + 0.1 * 3 / 4))


def test_a_margin_belongs_to_the_pair_as_it_was_won():
    scores, preferred = torch.tensor([[1.0, 0.0]], dtype=D), pair((0, 1), (1, 0))
    margins = torch.tensor([[[9.0, 0.5], [2.0, 9.0]]], dtype=D)
    found = ranking.pairwise_ranking_loss(scores, preferred, margins=margins)
    assert float(found.loss_sum) == pytest.approx(math.log1p(math.exp(-0.5)) + math.log1p(math.exp(3.0)), rel=1e-14)
    assert found.num_correct.tolist() == [1]


def test_every_normaliser_is_a_call_with_weights():
    # The K-wise fixture: per prompt means and their mean over prompts, and the flat mean over all pairs.
    scores = torch.tensor([[1.5, 0.2, -0.3, -1.0], [0.1, 0.4, 0.0, 0.0]], dtype=D)
    preferred = ranking.preferred_from_ranks(torch.tensor([[0, 1, 2, 3], [0, 1, -1, -1]]))
    of_prompts = 1 / (2 * preferred.sum((1, 2)).double())
    loss, gradient = loss_and_gradient(ranking.pairwise_ranking_loss, scores, preferred, weights=of_prompts)
    assert float(loss.sum()) == pytest.approx(0.561629, abs=0.51e-6)
    expected = [[-0.03599, -0.032904, 0.015632, 0.053262], [-0.287221, 0.287221, 0.0, 0.0]]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=D), rtol=0, atol=0.51e-6)
    flat = ranking.pairwise_ranking_loss(scores, preferred, weights=1 / preferred.sum().double())
    assert float(flat.loss_sum.sum()) == pytest.approx(0.35254, abs=0.51e-5)


def test_two_responses_are_equation_1():
    scores = torch.randn(5, 2, dtype=D, generator=torch.Generator().manual_seed(0))
    ranks = torch.tensor([[0, 1], [1, 0], [0, 1], [-1, 0], [0, -1]])
    found = ranking.plackett_luce_loss(scores, ranks)
    expected = ranking.pairwise_ranking_loss(scores, ranking.preferred_from_ranks(ranks))
    torch.testing.assert_close(found.loss_sum, expected.loss_sum)
    assert torch.equal(found.num_choices, expected.num_pairs)
    assert torch.equal(found.num_correct, expected.num_correct)


def test_the_probabilities_of_all_rankings_sum_to_1():
    scores = torch.tensor([0.7, -1.2, 2.0, 0.1], dtype=D)
    orders = torch.tensor(list(itertools.permutations(range(4))))
    loss, gradient = loss_and_gradient(ranking.plackett_luce_loss, scores.expand(24, 4), orders)
    probabilities = loss.neg().exp()
    assert float(probabilities.sum()) == pytest.approx(1.0, rel=1e-13)
    slopes = (probabilities.unsqueeze(1) * gradient).sum(0)
    torch.testing.assert_close(slopes, torch.zeros(4, dtype=D), rtol=0, atol=1e-14)


def test_equal_ranks_are_chosen_from_all_of_them():
    # exp of scores 1, 2 and 3: (1 / 6) (2 / 6) for the two that are tied in front, then one that has no choice.
    scores = torch.tensor([[1.0, 2.0, 3.0]], dtype=D).log()
    found = ranking.plackett_luce_loss(scores, torch.tensor([[4, 4, 7]]))
    assert float(found.loss_sum) == pytest.approx(math.log(18), rel=1e-14)
    assert (int(found.num_choices), int(found.num_correct)) == (2, 0)


@pytest.mark.parametrize("loss", ["tied", "plackett_luce"])
def test_a_mean_over_no_comparisons_has_no_gradient(loss):
    scores = torch.zeros(2, 2, requires_grad=True)
    if loss == "tied":
        found = ranking.tied_ranking_loss(scores, torch.cat([FIRST, NOTHING]), torch.cat([NOTHING, NOTHING]))
        count = found.num_pairs + found.num_ties
    else:
        found = ranking.plackett_luce_loss(scores, torch.tensor([[0, 1], [-1, 1]]))
        count = found.num_choices
    torch.where(count > 0, found.loss_sum / count, 0.0).sum().backward()
    assert bool((scores.grad[0] != 0).all())
    assert torch.equal(scores.grad[1], torch.zeros(2))


def test_a_tie_alone_has_a_gradient():
    scores = torch.tensor([[1.0, 0.0]], requires_grad=True)
    ranking.tied_ranking_loss(scores, NOTHING, FIRST).loss_sum.sum().backward()
    assert float(scores.grad[0, 0]) == -float(scores.grad[0, 1]) > 0
