"""The length-controlled win rate against alpaca_eval's numbers, its own optimum, and what it is for."""

import math

import numpy as np
import pytest

from instructrl.evaluation.preferences.length_control import (
    NUM_FOLDS,
    Anchors,
    _chosen_strength,
    _folds,
    fit,
    length_controlled_win_rate,
)

# Of alpaca_eval 0.6.6 (scikit-learn 1.9.1) on `made()`, with liblinear's tolerance at 1e-14, in percent.
MINIMAL, WITH_DIFFICULTY, WITH_ANCHORS = 43.808934462067604, 43.89241204868127, 43.997159614556125
# The same at alpaca_eval's own tolerance of 1e-4.
AS_SHIPPED = {MINIMAL: 43.8089389796914, WITH_DIFFICULTY: 43.89254794045115, WITH_ANCHORS: 43.99729942238639}


def made(number=60) -> dict:
    """Verdicts made by a rule, without random numbers: a judge that likes long answers and knows its mind."""
    lengths = [200 + (37 * i) % 211 for i in range(number)]
    baseline = [250 + (53 * i) % 97 for i in range(number)]
    margins = [0.012 * (lengths[i] - baseline[i]) + 1.5 * math.sin(1.7 * i) - 0.4 for i in range(number)]
    outcomes = [0.5 if i % 20 == 7 else 1 / (1 + math.exp(-2 * margin)) for i, margin in enumerate(margins)]
    return {"outcomes": outcomes, "lengths": lengths, "baseline_lengths": baseline}


def difficulties(number=60) -> list[float]:
    return [1.2 * math.sin(1.7 * i) + 0.3 * math.cos(i) for i in range(number)]


def anchors(number=60) -> Anchors:
    gaps = [sign * (1 + 0.2 * math.sin(i)) for sign in (-1, 1) for i in range(number)]
    hard = difficulties(number) * 2
    outcomes = [1 / (1 + math.exp(0.8 * gap - 0.3 * at)) for gap, at in zip(gaps, hard, strict=True)]
    return Anchors(outcomes=outcomes, differences=gaps, difficulties=hard)


@pytest.mark.parametrize(
    ("expected", "more"),
    [
        (MINIMAL, {}),
        (WITH_DIFFICULTY, {"difficulties": difficulties()}),
        (WITH_ANCHORS, {"difficulties": difficulties(), "anchors": anchors()}),
    ],
    ids=["minimal", "difficulty", "v1"],
)
def test_it_is_alpaca_evals(expected, more):
    """To the accuracy of liblinear's most exact answer; what alpaca_eval ships is further from that than we are."""
    found = length_controlled_win_rate(**made(), **more, num_resamples=20)
    assert abs(100 * found.rate - expected) < 1e-9 < abs(AS_SHIPPED[expected] - expected)


def test_two_groups_by_hand():
    """Without a penalty that is felt, a constant gap of +-1 standard deviation and two rates have a closed form: both
    groups are met exactly, and at equal lengths the logits are halfway."""
    lengths = [0, 200] * 40
    outcomes = np.where(np.array(lengths) == 0, 0.2, 0.6)
    found = length_controlled_win_rate(outcomes, lengths, [100] * 80, num_resamples=20)
    logits = [math.log(0.2 / 0.8), math.log(0.6 / 0.4)]
    assert found.strength > 1000
    assert found.rate == pytest.approx(1 / (1 + math.exp(-sum(logits) / 2)), abs=1e-4)


def test_equal_lengths_leave_the_win_rate():
    found = length_controlled_win_rate([1, 0, 1, 1, 0.5, 0, 1, 1] * 25, [7] * 200, [7] * 200, num_resamples=20)
    assert found.rate == pytest.approx(0.6875, abs=2e-3)  # the penalty pulls towards one half
    assert found.coefficients[:2] == (0.0, 0.0)


def test_what_a_judge_gives_for_length_alone_is_taken_away():
    rng = np.random.default_rng(0)
    lengths, baseline = rng.integers(150, 400, 400), rng.integers(50, 300, 400)
    outcomes = rng.random(400) < 1 / (1 + np.exp(-0.02 * (lengths - baseline)))
    found = length_controlled_win_rate(outcomes, lengths.tolist(), baseline.tolist(), num_resamples=200)
    assert outcomes.mean() > 0.75
    assert found.low < 0.5 < found.high


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 1e3])
def test_the_optimum_in_float64(penalty):
    """Subgradient 0: |gradient| = 1 against the sign where a coefficient is not 0, at most 1 where it is."""
    rng = np.random.default_rng(1)
    features, targets = rng.normal(size=(50, 3)), rng.random(50)
    weights = penalty * rng.random((4, 50))
    for x, w in zip(fit(features, targets, weights), weights, strict=True):
        gradient = (w * (1 / (1 + np.exp(-features @ x)) - targets)) @ features
        loose = 1e-9 * max(1, w.sum())
        assert np.all(np.abs(gradient[x != 0] + np.sign(x[x != 0])) <= loose)
        assert np.all(np.abs(gradient[x == 0]) <= 1 + loose)


def test_problems_side_by_side_do_not_meet():
    rng = np.random.default_rng(2)
    features, targets, weights = rng.normal(size=(30, 3)), rng.random(30), 10 ** rng.normal(size=(6, 1)) * np.ones(30)
    together = fit(features, targets, weights)
    for row, x in zip(weights, together, strict=True):
        np.testing.assert_allclose(fit(features, targets, row[None])[0], x, atol=1e-8)


def test_folds_are_alpaca_evals():
    """Of seven rows the last is in fold 0, the first in fold 1: 6, 5, 4, 3, 2, and 1, 0 again."""
    assert _folds(7).tolist() == [1, 0, 4, 3, 2, 1, 0]


def test_noise_is_penalised_and_signal_is_not():
    rng = np.random.default_rng(4)
    signal, noise = rng.normal(size=(2, 200))
    features = np.stack([signal, noise, np.ones(200)], axis=1)
    targets = 1 / (1 + np.exp(-2 * signal))
    assert _chosen_strength(features, targets, np.ones(200)) > 1000
    assert _chosen_strength(features, (rng.random(200) < 0.5).astype(float), np.ones(200)) < 1


def test_a_row_without_a_verdict_counts_for_its_length_alone():
    given = made()
    given["outcomes"][3] = math.nan
    found = length_controlled_win_rate(**given, num_resamples=20)
    assert found.num_prompts == 59
    assert found.rate != length_controlled_win_rate(**made(), num_resamples=20).rate


def test_wins_alone():
    found = length_controlled_win_rate([1.0] * 30, list(range(30)), [10] * 30, num_resamples=20)
    assert 0.9 < found.rate < 1
    assert (found.low, found.high) == (None, None)


def test_the_interval_is_deterministic_and_holds_the_rate():
    found = length_controlled_win_rate(**made())
    assert found == length_controlled_win_rate(**made())
    assert found.low < found.rate < found.high
    assert found != length_controlled_win_rate(**made(), seed=1)


def test_too_few_and_wrong():
    assert length_controlled_win_rate([1.0] * (NUM_FOLDS - 1), [1] * 4, [2] * 4) is None
    with pytest.raises(ValueError, match="lengths: found 4 values, accepted are 5 finite numbers"):
        length_controlled_win_rate([1.0] * 5, [1] * 4, [2] * 5)
    with pytest.raises(ValueError, match=r"outcomes: found 1 to 2, accepted are numbers from 0 to 1"):
        length_controlled_win_rate([1.0, 2.0] * 5, [1] * 10, [2] * 10)
    with pytest.raises(ValueError, match="difficulties: found 3 values, accepted are 6"):
        length_controlled_win_rate([1.0] * 6, [1] * 6, [2] * 6, difficulties=[1.0] * 3)
