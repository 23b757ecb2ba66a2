"""The paper's equations against hand calculations, published numbers and brute force in float64."""

import math
import random

import pytest
import torch

from instructrl.objectives.kl_control import adaptive_kl_coef
from instructrl.objectives.reward_modeling import comparison_loss
from instructrl.objectives.rewards import penalize_unfinished

EPS64 = torch.finfo(torch.float64).eps
# The golden numbers are printed with six decimals.
HALF_A_UNIT = 0.5e-6

LOGPROBS = torch.tensor([[-1.0, -2.0, -4.0], [-8.0, -16.0, -32.0]])
MASK = torch.tensor([[True, True, False], [False, True, True]])


def preferred_of(pairs: list[set[tuple[int, int]]], width: int) -> torch.Tensor:
    matrix = torch.zeros(len(pairs), width, width, dtype=torch.bool)
    for p, row in enumerate(pairs):
        for i, j in row:
            matrix[p, i, j] = True
    return matrix


def brute_force(scores: list[list[float]], pairs: list[set[tuple[int, int]]]) -> float:
    """Equation 1, prompt by prompt: the mean over its pairs, then the mean over the prompts that have any."""
    means = [
        sum(math.log1p(math.exp(-(row[i] - row[j]))) for i, j in wanted) / len(wanted)
        for row, wanted in zip(scores, pairs, strict=True)
        if wanted
    ]
    return sum(means) / len(means)


def test_comparison_loss_has_the_golden_value_and_gradient():
    # K = 4 and K = 2, each ranked from its first completion to its last; the missing two are never read.
    scores = torch.tensor([[1.5, 0.2, -0.3, -1.0], [0.1, 0.4, math.nan, math.nan]], dtype=torch.float64)
    scores.requires_grad_()
    pairs = [{(i, j) for i in range(4) for j in range(i + 1, 4)}, {(0, 1)}]
    result = comparison_loss(scores, preferred_of(pairs, 4), 2)
    result.loss.backward()
    expected = torch.tensor(
        [[-0.035990, -0.032904, 0.015632, 0.053262], [-0.287221, 0.287221, 0.0, 0.0]], dtype=torch.float64
    )
    assert abs(float(result.loss.detach()) - 0.561629) <= HALF_A_UNIT
    assert scores.grad is not None
    assert float((scores.grad - expected).abs().max()) <= HALF_A_UNIT
    assert (int(result.num_pairs), int(result.num_correct)) == (7, 6)


@pytest.mark.parametrize("seed", range(5))
def test_comparison_loss_is_the_brute_force_mean(seed):
    rng = random.Random(seed)
    width, scores, pairs = 5, [], []
    for kind in ("ranking", "ties", "cycle", "no pairs", "ranking"):
        row = [rng.gauss(0, 3) for _ in range(width)]
        ranks = [rng.randrange(3 if kind == "ties" else 100) for _ in row]
        wanted = {(i, j) for i in range(width) for j in range(width) if ranks[i] < ranks[j]}
        scores.append(row)
        pairs.append({"cycle": {(0, 1), (1, 2), (2, 0)}, "no pairs": set()}.get(kind, wanted))
    preferred, expected = preferred_of(pairs, width), brute_force(scores, pairs)
    tensor = torch.tensor(scores, dtype=torch.float64)
    result = comparison_loss(tensor, preferred, 4)
    # Below 60 terms of at most the size of their sum, each rounded in both calculations.
    bound = 120 * EPS64 * max(expected, 1.0) * width
    assert abs(float(result.loss) - expected) <= bound
    assert int(result.num_pairs) == sum(map(len, pairs))
    correct = sum(scores[p][i] > scores[p][j] for p, wanted in enumerate(pairs) for i, j in wanted)
    assert int(result.num_correct) == correct
    # Micro-batches with the whole batch's number of prompts add up; so does a count given as a tensor.
    halves = [comparison_loss(tensor[part], preferred[part], torch.tensor(4)).loss for part in ([0, 1], [2, 3, 4])]
    assert abs(float(sum(halves)) - expected) <= bound
    # The loss does not see a constant added to every score.
    assert abs(float(comparison_loss(tensor + 7.25, preferred, 4).loss) - expected) <= 2 * bound


def test_a_batch_of_ties_has_no_loss_and_no_gradient():
    scores = torch.randn(2, 3, requires_grad=True)
    result = comparison_loss(scores, torch.zeros(2, 3, 3, dtype=torch.bool), 0)
    result.loss.backward()
    assert float(result.loss.detach()) == 0
    assert scores.grad is not None
    assert float(scores.grad.abs().sum()) == 0


def test_equal_scores_are_not_counted_as_correct():
    assert int(comparison_loss(torch.zeros(1, 2), preferred_of([{(0, 1)}], 2), 1).num_correct) == 0


def test_adaptive_kl_follows_the_golden_sequence():
    coefficient = 0.2
    for kl, expected, decimals in ((9.0, 0.200256, 6), (6.3, 0.200320082, 9), (2.0, 0.200063672, 9)):
        coefficient = adaptive_kl_coef(coefficient, kl, target=6.0, horizon=10_000, num_episodes=64)
        assert abs(coefficient - expected) <= 0.5 * 10.0**-decimals


def test_adaptive_kl_stays_at_its_target():
    assert adaptive_kl_coef(0.05, 6.0, target=6.0, horizon=100, num_episodes=64) == 0.05


def test_unfinished_responses_get_the_fixed_score():
    scores, finished = torch.tensor([0.5, 2.0, -3.0]), torch.tensor([True, False, False])
    assert penalize_unfinished(scores, finished, -1.0).tolist() == [0.5, -1.0, -1.0]
    assert penalize_unfinished(scores, finished, None).tolist() == [0.5, 2.0, -3.0]
    assert scores.tolist() == [0.5, 2.0, -3.0]
