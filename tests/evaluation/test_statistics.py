"""Closed forms, exact coverage by enumeration, and symmetries of the statistics."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructrl.evaluation.statistics import (
    Z95,
    mean_change,
    mean_interval,
    outcomes_from_scores,
    pair_agreement,
    proportion,
    reward_accuracy,
    tax_recovery,
    three_way_agreement,
    win_rate,
)
from instructrl.types import Comparison

EPS = float(np.finfo(np.float64).eps)
outcome_lists = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40)
quick = settings(max_examples=60, deadline=None)


def close(value: float, expected: float, operations: int = 64) -> bool:
    """Equal up to the rounding of that many float64 operations on numbers of this size (at least 1)."""
    return abs(value - expected) <= operations * EPS * max(1.0, abs(expected))


def test_win_rate_counts_ties_half_and_has_the_textbook_error():
    # 3 wins, 2 ties, 3 losses: mean 4/8; squared deviations 6 * 1/4, over 7, over 8.
    result = win_rate([1, 1, 1, 0.5, 0.5, 0, 0, 0])
    assert result.rate == 0.5
    assert close(result.standard_error, math.sqrt(1.5 / 7 / 8))
    assert close(result.high - result.low, 2 * Z95 * math.sqrt(1.5 / 7 / 8))
    assert result.num_prompts == 8


@pytest.mark.parametrize("users", [None, ["a", "b"] * 50])
def test_same_seed_same_result(users):
    outcomes = [0, 1, 0.5, 1] * 25
    assert win_rate(outcomes, users, seed=4) == win_rate(outcomes, users, seed=4)
    assert win_rate(outcomes, [f"u{i // 4}" for i in range(100)], seed=4).rate == 0.625


@quick
@given(outcome_lists, st.integers(0, 3))
def test_swapping_the_models_mirrors_everything(outcomes, num_users):
    users = [f"user {i % num_users}" for i in range(len(outcomes))] if num_users else None
    ours = win_rate(outcomes, users, num_resamples=50)
    theirs = win_rate([1 - outcome for outcome in outcomes], users, num_resamples=50)
    assert close(theirs.rate, 1 - ours.rate)
    assert close(theirs.standard_error, ours.standard_error)
    assert close(theirs.low, 1 - ours.high)
    assert close(theirs.bootstrap_low, 1 - ours.bootstrap_high)


@quick
@given(outcome_lists)
def test_win_rate_bounds(outcomes):
    result = win_rate(outcomes, num_resamples=50)
    assert 0 <= result.low <= result.rate <= result.high <= 1
    assert 0 <= result.bootstrap_low <= result.bootstrap_high <= 1
    assert result.low < result.high
    # The sample variance of numbers in [0, 1] is at most n / (n - 1) / 4.
    most = math.sqrt(1 / 4 / max(1, len(outcomes) - 1))
    assert result.standard_error <= most * (1 + 8 * EPS)


def test_without_spread_the_interval_does_not_claim_certainty():
    # Wilson at rate 1: (1 + z^2/2n - z * z/2n) / (1 + z^2/n) = 1 / (1 + z^2/n).
    result = win_rate([1.0] * 30)
    assert result.standard_error == 0
    assert close(result.low, 1 / (1 + Z95**2 / 30))
    assert result.high == 1
    assert win_rate([1.0]).standard_error == 0.5


def test_bootstrap_sees_users_and_the_plain_interval_does_not():
    """Every prompt five times over by the same user says nothing new: the draws of users give the same rates."""
    outcomes = [0, 1, 1, 0.5, 0, 1, 0, 0, 1, 1] * 4
    users = [f"user {i}" for i in range(40)]
    once = win_rate(outcomes, users, seed=2)
    five = win_rate(np.repeat(outcomes, 5), np.repeat(users, 5).tolist(), seed=2)
    assert close(five.bootstrap_low, once.bootstrap_low)
    assert close(five.bootstrap_high, once.bootstrap_high)
    assert close(five.standard_error / once.standard_error, math.sqrt(39 / 199))


def test_unknown_users_are_strangers_to_each_other():
    outcomes = [0, 1, 0.5, 1, 0, 1]
    assert win_rate(outcomes, [""] * 6) == win_rate(outcomes) == win_rate(outcomes, ["a", "", None, "b", "", "c"])


def test_bootstrap_with_one_user_has_no_width():
    result = win_rate([0, 1, 1, 1], ["only"] * 4)
    assert (result.bootstrap_low, result.bootstrap_high) == (0.75, 0.75)


def test_bootstrap_error_is_the_plugin_error():
    """With a user a prompt, a resampled rate is near normal with the deviation `sqrt(p * (1 - p) / n)`."""
    n, wins, resamples = 400, 240, 4000
    result = win_rate([1.0] * wins + [0.0] * (n - wins), num_resamples=resamples)
    deviation = math.sqrt(0.6 * 0.4 / n)
    # A quantile's standard error is sqrt(q (1 - q) / R) / density; four of those, and the rates' lattice of 1 / n.
    density = math.exp(-(Z95**2) / 2) / math.sqrt(2 * math.pi) / deviation
    slack = 4 * math.sqrt(0.025 * 0.975 / resamples) / density + 1 / n
    assert abs(result.bootstrap_low - (0.6 - Z95 * deviation)) <= slack
    assert abs(result.bootstrap_high - (0.6 + Z95 * deviation)) <= slack


def exact_coverage(n: int, probabilities: tuple[float, float, float]) -> float:
    """The probability that the interval of n outcomes holds the true rate, summed over all counts."""
    loss, tie, win = probabilities
    truth, covered = win + tie / 2, 0.0
    for wins, ties in product(range(n + 1), repeat=2):
        losses = n - wins - ties
        if losses < 0:
            continue
        ways = math.factorial(n) // (math.factorial(wins) * math.factorial(ties) * math.factorial(losses))
        result = win_rate([1.0] * wins + [0.5] * ties + [0.0] * losses, num_resamples=1)
        covered += ways * win**wins * tie**ties * loss**losses * (result.low <= truth <= result.high)
    return covered


def test_simulated_coverage_matches_the_enumerated_one():
    n, runs, probabilities = 40, 1500, (0.3, 0.2, 0.5)
    exact = exact_coverage(n, probabilities)
    # The normal interval's coverage differs from 95% by terms of order 1 / n (Edgeworth).
    assert abs(exact - 0.95) <= 1 / n
    rng = np.random.default_rng(11)
    draws = rng.choice([0.0, 0.5, 1.0], p=probabilities, size=(runs, n))
    hits = [(r := win_rate(row, num_resamples=1)).low <= 0.6 <= r.high for row in draws]
    assert abs(np.mean(hits) - exact) <= 4 * math.sqrt(exact * (1 - exact) / runs)


def test_only_the_bootstrap_covers_when_users_cluster():
    """Ten prompts a user, all with one outcome: the plain interval is sqrt(10) too narrow, the bootstrap is not."""
    runs, num_users = 400, 60
    rng = np.random.default_rng(12)
    users = [f"{i // 10}" for i in range(10 * num_users)]
    plain, clustered = 0, 0
    for _ in range(runs):
        result = win_rate(np.repeat(rng.integers(0, 2, num_users).astype(float), 10), users, num_resamples=400)
        plain += result.low <= 0.5 <= result.high
        clustered += result.bootstrap_low <= 0.5 <= result.bootstrap_high
    spread = 4 * math.sqrt(0.95 * 0.05 / runs)
    # P(|N(0, 1)| <= 1.96 / sqrt(10)); both with four standard deviations of the simulation and 2 / n for the lattice.
    narrow = math.erf(Z95 / math.sqrt(10) / math.sqrt(2))
    assert abs(plain / runs - narrow) <= 4 * math.sqrt(narrow * (1 - narrow) / runs) + 1 / math.sqrt(num_users)
    assert clustered / runs >= 0.95 - spread - 2 / num_users


@quick
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_solve_its_equation(case):
    """At an inner end `p` of the interval `(rate - p)^2 = z^2 * p * (1 - p) / n`."""
    successes, total = case
    result = proportion(successes, total)
    assert 0 <= result.low <= result.rate <= result.high <= 1
    for end in (result.low, result.high):
        assert close((result.rate - end) ** 2, Z95**2 * end * (1 - end) / total)
    mirrored = proportion(total - successes, total)
    assert close(mirrored.low, 1 - result.high)


def test_mean_interval():
    result = mean_interval([1, 2, 3, 4])
    assert result.mean == 2.5
    assert result.low is not None
    assert close(result.mean - result.low, Z95 * math.sqrt(5 / 3 / 4))
    assert mean_interval([3.0]).low is None


def test_agreement_counts_what_both_rank_strictly():
    a = [{(0, 1), (0, 2), (1, 2)}, {(0, 1)}, set()]
    b = [{(0, 1), (2, 0)}, {(1, 0)}, {(0, 1)}]
    # Prompt 0: (0,1) same, {0,2} opposite, {1,2} a tie for b. Prompt 1: opposite. Prompt 2: a tie for a.
    result = pair_agreement(a, b)
    assert result is not None
    assert (result.rate, result.num_pairs) == (1 / 3, 3)
    # Three ways, K = 3, 2, 2: of 3 + 1 + 1 pairs only (0, 1) of prompt 0 is called the same.
    three = three_way_agreement(a, b, [3, 2, 2])
    assert three is not None
    assert (three.rate, three.num_pairs) == (1 / 5, 5)
    assert pair_agreement([{(0, 1)}], [set()]) is None
    both_tie = three_way_agreement([set()], [set()], [4])
    assert both_tie is not None
    assert (both_tie.rate, both_tie.num_pairs) == (1.0, 6)


rankings = st.lists(st.integers(1, 4), min_size=4, max_size=4)


@quick
@given(st.lists(st.tuples(rankings, rankings), min_size=1, max_size=8))
def test_agreement_is_symmetric_and_turns_round_with_one_labeler(pairs):
    a = [Comparison.pairs_from_ranks(first) for first, _ in pairs]
    b = [Comparison.pairs_from_ranks(second) for _, second in pairs]
    result = pair_agreement(a, b)
    assert result == pair_agreement(b, a)
    assert three_way_agreement(a, b, [4] * len(a)) == three_way_agreement(b, a, [4] * len(a))
    opposite = pair_agreement(a, [{(j, i) for i, j in preferred} for preferred in b])
    if result is None or opposite is None:
        assert result is opposite
        return
    assert 0 <= result.low <= result.rate <= result.high <= 1
    assert close(opposite.rate, 1 - result.rate)
    assert close(opposite.low, 1 - result.high)


def comparison(*ranks: float) -> Comparison:
    completions = tuple("abcdefghi"[: len(ranks)])
    return Comparison(prompt="p", completions=completions, preferred=Comparison.pairs_from_ranks(ranks))


def test_reward_accuracy_is_strict_and_clusters_by_prompt():
    # Prompt 0 prefers 0>1, 0>2, 1>2: scores get the first two and tie the third. Prompt 1 prefers 0>1: wrong.
    comparisons = [comparison(1, 2, 3), comparison(1, 2), comparison(1, 1)]
    result = reward_accuracy([[2.0, 1.0, 1.0], [0.0, 1.0], [5.0, 6.0]], comparisons)
    assert result is not None
    assert (result.rate, result.num_pairs) == (0.5, 4)
    # Residuals 2 - 3/2 and 0 - 1/2 over M = 2 prompts: sqrt(2/1 * 2 * (1/2)^2) / 4 = 1/4, cut at 0 and 1.
    assert close(result.low, 0.5 - Z95 / 4)
    assert close(result.high, 0.5 + Z95 / 4)


def test_pairs_of_one_prompt_are_not_independent():
    """A prompt that counts its pair five times over says no more than once: the interval is the same."""
    rng = np.random.default_rng(0)
    right = rng.random(80) < 0.7
    once = reward_accuracy([[float(r), 0.5] for r in right], [comparison(1, 2)] * 80)
    # One winner above K - 1 tied losers: K - 1 pairs that are all right or all wrong together.
    five = reward_accuracy([[float(r), *[0.5] * 5] for r in right], [comparison(1, 2, 2, 2, 2, 2)] * 80)
    assert once is not None
    assert five is not None
    assert (once.num_pairs, five.num_pairs) == (80, 400)
    assert close(five.low, once.low)
    # With one pair a prompt the ratio estimator is the usual standard error.
    assert close(once.rate - once.low, Z95 * math.sqrt(once.rate * (1 - once.rate) / 79))


def test_rates_without_spread_take_prompts_as_trials():
    result = reward_accuracy([[2.0, 1.0, 0.0]] * 10, [comparison(1, 2, 3)] * 10)
    assert result is not None
    assert (result.rate, result.high, result.num_pairs) == (1.0, 1.0, 30)
    assert result.low == proportion(10, 10).low


def test_outcomes_from_scores():
    assert outcomes_from_scores([3, 1, 2], [1, 3, 2]).tolist() == [1.0, 0.0, 0.5]


def test_the_same_response_is_a_tie_however_its_scores_are_rounded():
    outcomes = outcomes_from_scores([3, 1, 2], [2.9999, 1.0001, 1], [True, True, False])
    assert outcomes.tolist() == [0.5, 0.5, 1.0]


def test_tax_recovery():
    rng = np.random.default_rng(0)
    ppo = rng.normal(0.06, 0.02, 400)
    ptx = 0.3 * ppo + rng.normal(0, 0.01, 400)
    found = tax_recovery(ptx, ppo)
    assert found is not None
    assert abs(found.mean - (1 - ptx.sum() / ppo.sum())) < 1e-12
    # The delta method's interval of a ratio of means, a derivation of its own.
    residuals = ptx - ptx.sum() / ppo.sum() * ppo
    margin = Z95 * residuals.std(ddof=1) / math.sqrt(400) / ppo.mean()
    assert abs(found.low - (found.mean - margin)) < 0.15 * margin
    assert abs(found.high - (found.mean + margin)) < 0.15 * margin
    assert tax_recovery(-ppo, ppo).mean > 1


def test_no_share_of_a_tax_that_is_not_clearly_there():
    assert tax_recovery([0.01, -0.02, 0.015], [0.05, -0.04, 0.02]) is None
    assert tax_recovery([0.1, 0.1], [-0.2, -0.1]) is None
    assert tax_recovery([0.1], [0.2]) is None  # one block shows no spread


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: win_rate([]), "outcomes: found none"),
        (lambda: win_rate([1.25]), "outcomes: found 1.25, accepted are 0"),
        (lambda: win_rate([math.nan]), "outcomes: found nan"),
        (lambda: win_rate([1, 0], ["a"]), "users: found 1, accepted is one an outcome, 2"),
        (lambda: proportion(1, 0), "total: found 0"),
        (lambda: proportion(3, 2), "successes: found 3, accepted is 0 to 2"),
        (lambda: mean_interval([]), "values: found none"),
        (lambda: outcomes_from_scores([1], [1, 2]), "baseline_scores: found 2"),
        (lambda: reward_accuracy([[1.0]], [comparison(1, 2)]), "scores: found 1, accepted is one a completion, 2"),
        (lambda: reward_accuracy([[1.0, math.nan]], [comparison(1, 2)]), "scores: found nan"),
        (lambda: pair_agreement([set()], []), "prompts: found 1 and 0"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_change_of_a_mean_over_independent_means():
    """Errors 3 and 4 in two means: that of their mean is 2.5. One mean of error 6 after them: hypot(2.5, 6) = 6.5."""
    found = mean_change([(1.0, 3.0), (3.0, 4.0)], [(12.0, 6.0)])
    assert (found.mean, found.high) == (10.0, pytest.approx(10 + Z95 * 6.5))
    # Of five looks each has to hold at 1 - 0.01, whose quantile of two sides is 2.5758.
    wider = mean_change([(1.0, 3.0), (3.0, 4.0)], [(12.0, 6.0)], num_looks=5)
    assert wider.low == pytest.approx(10 - 2.575829 * 6.5, rel=1e-6)
    with pytest.raises(ValueError, match="values: found none"):
        mean_change([], [(1.0, 1.0)])
