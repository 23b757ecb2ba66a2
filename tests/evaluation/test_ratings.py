"""All against all, and Bradley-Terry: by hand, in closed form, at its optimum, and where there is nothing to rate."""

import math

import numpy as np
import pytest

from instructrl.evaluation.preferences.entries import all_against_all
from instructrl.evaluation.preferences.games import games_from_scores, games_from_verdicts, head_to_head
from instructrl.evaluation.preferences.ratings import MEAN_RATING, POINTS, bradley_terry
from instructrl.evaluation.statistics import win_rate

SCORES = {"a": [1.0, 5.0, 2.0, 0.0], "b": [2.0, 5.0, 1.0, 3.0], "c": [0.0, 6.0, 2.0, 3.5]}


def verdicts(**results) -> list:
    """`ab=(3, 1)`: a wins 3 times and loses once, each on a prompt of its own."""
    rows = []
    for (first, second), (wins, losses) in results.items():
        rows += [(len(rows) + i, first, second, float(i >= wins)) for i in range(wins + losses)]
    return rows


def test_scores_by_hand():
    """a against b: loss, tie, win, loss. a against c: win, loss, tie, loss. b against c: win, loss, loss, loss."""
    table = head_to_head(games_from_scores(SCORES))
    assert [[rate and rate.rate for rate in row] for row in table] == [
        [None, 1.5 / 4, 1.5 / 4],
        [2.5 / 4, None, 1 / 4],
        [2.5 / 4, 3 / 4, None],
    ]
    assert table[0][1].num_pairs == 4


def test_a_cell_is_the_win_rate_with_its_interval():
    rng = np.random.default_rng(0)
    scores = {name: rng.integers(0, 4, 50).tolist() for name in "ab"}
    cell = head_to_head(games_from_scores(scores))[0][1]
    outcomes = np.sign(np.array(scores["a"]) - scores["b"]) / 2 + 0.5
    alone = win_rate(outcomes)
    assert (cell.rate, cell.low, cell.high) == pytest.approx((alone.rate, alone.low, alone.high), abs=1e-12)


def test_equal_responses_tie_and_users_are_groups():
    games = games_from_scores(
        {"a": [1.0, 2.0, 3.0], "b": [1.1, 1.0, 4.0]}, {"a": ["x", "y", "z"], "b": ["x", "q", "r"]}, ["u", "", "u"]
    )
    assert games.wins.tolist() == [[0.5], [1.0]]
    assert games.counts.tolist() == [[2.0], [1.0]]


def test_verdicts_in_either_order():
    games = games_from_verdicts([(1, "b", "a", 0.0), (2, "a", "b", 0.25), (3, "b", "c", 0.5)], models=["a"])
    assert games.models == ("a", "b", "c")
    assert games.pairs == ((0, 1), (1, 2))
    assert games.wins.tolist() == [[0, 0], [0.75, 0], [0, 0.5]]
    table = head_to_head(games)
    assert (table[0][1].rate, table[1][0].rate, table[1][2].rate) == (0.375, 0.625, 0.5)
    assert table[0][2] is None


@pytest.mark.parametrize(("wins", "losses"), [(3, 1), (7, 7), (9, 0), (0, 4)])
def test_two_models_in_closed_form(wins, losses):
    a, b = bradley_terry(games_from_verdicts(verdicts(ab=(wins, losses)), models="ab"))
    assert (a.rating - b.rating) / POINTS == pytest.approx(math.log((wins + 0.5) / (losses + 0.5)), abs=1e-9)
    assert a.rating + b.rating == pytest.approx(2 * MEAN_RATING)
    assert (a.num_games, b.num_games) == (wins + losses, wins + losses)


def test_odds_of_ten_to_one_are_400_points():
    """19 wins, one loss and a tie, with the virtual draw: 20 to 2."""
    rows = [(0, "a", "b", 0.0)] * 19 + [(0, "a", "b", 1.0), (0, "a", "b", 0.5)]
    a, b = bradley_terry(games_from_verdicts(rows))
    assert a.rating - b.rating == pytest.approx(400, abs=1e-6)


def test_a_chain_by_hand():
    """a against b, and b against c, but never a against c: each link is a pair on its own."""
    a, b, c = bradley_terry(games_from_verdicts(verdicts(ab=(3, 1), bc=(6, 2)), models="abc"))
    steps = [math.log(3.5 / 1.5), math.log(6.5 / 2.5)]
    assert [(a.rating - b.rating) / POINTS, (b.rating - c.rating) / POINTS] == pytest.approx(steps, abs=1e-9)
    assert a.num_games == 4
    assert b.num_games == 12


def test_the_optimum_in_float64():
    """Every model's expected wins are its wins (Zermelo 1929), the one virtual draw of each pair included."""
    rng = np.random.default_rng(3)
    scores = {f"m{i}": (rng.normal(size=40) + 0.3 * i).tolist() for i in range(7)}
    games = games_from_scores(scores)
    strengths = np.array([(r.rating - MEAN_RATING) / POINTS for r in bradley_terry(games, num_resamples=5)])
    gaps = np.zeros(7)
    for (i, j), wins, count in zip(games.pairs, games.wins.sum(axis=0), games.counts.sum(axis=0), strict=True):
        expected = (count + 1) / (1 + math.exp(strengths[j] - strengths[i]))
        gaps[[i, j]] += np.array([1, -1]) * (wins + 0.5 - expected)
    assert np.abs(gaps).max() < 1e-7


def test_strengths_are_found_again():
    """Games with the expected outcomes of given strengths, so many that a virtual draw is nothing."""
    true = {"a": -1.0, "b": 0.2, "c": 0.8}
    rows = [
        (g, x, y, 1 / (1 + math.exp(true[x] - true[y])))
        for g in range(3000)
        for x, y in (("a", "b"), ("c", "a"), ("b", "c"))
    ]
    found = {
        r.model: (r.rating - MEAN_RATING) / POINTS for r in bradley_terry(games_from_verdicts(rows), num_resamples=2)
    }
    assert found == pytest.approx(true, abs=1e-3)


def test_intervals_cover():
    """Of 100 samples of 60 prompts, the 95% interval of a rating holds the truth in about 95."""
    rng = np.random.default_rng(5)
    true = np.array([-0.6, 0.0, 0.6])
    held = 0
    for _ in range(100):
        rows = [
            (g, str(i), str(j), float(rng.random() > 1 / (1 + math.exp(true[j] - true[i]))))
            for g in range(60)
            for i, j in ((0, 1), (0, 2), (1, 2))
        ]
        rating = bradley_terry(games_from_verdicts(rows, models="012"), num_resamples=200)[2]
        held += rating.low <= MEAN_RATING + POINTS * true[2] <= rating.high
    assert 88 <= held <= 99  # binomial, 0.95: less than 1 in 200 outside


def test_groups_are_resampled_and_not_verdicts():
    """36 prompts of four users who always say the same are four things and not 36."""
    many = {name: row * 9 for name, row in SCORES.items()}
    prompts, users = (bradley_terry(games_from_scores(many, None, of)) for of in (None, [*"uvwx"] * 9))
    for one, other in zip(prompts, users, strict=True):
        assert one.rating == pytest.approx(other.rating)
        assert other.high - other.low > 2 * (one.high - one.low)


def test_resamples_that_are_alike_give_no_interval():
    rated = bradley_terry(games_from_verdicts(verdicts(ab=(9, 0)), models="ab"))
    assert {(r.low, r.high) for r in rated} == {(None, None)}


def test_what_cannot_be_rated():
    with pytest.raises(ValueError, match="ratings: found no chain of comparisons from 'a' to 'c', accepted are models"):
        bradley_terry(games_from_verdicts(verdicts(ab=(1, 1), cd=(1, 1)), models="abcd"))
    with pytest.raises(ValueError, match="games: found none"):
        bradley_terry(games_from_verdicts([]))
    with pytest.raises(ValueError, match="outcome: found 2, accepted is 0"):
        games_from_verdicts([(1, "a", "b", 2)])
    with pytest.raises(ValueError, match="models: found 'a' against itself"):
        games_from_verdicts([(1, "a", "a", 1.0)])


def test_entries_of_the_results():
    found = all_against_all(games_from_scores(SCORES))
    assert found["win_rate_matrix"]["models"] == ["a", "b", "c"]
    assert found["win_rate_matrix"]["rates"][0][0] is None
    assert found["win_rate_matrix"]["rates"][0][1]["rate"] == 0.375
    assert [row["model"] for row in found["ratings"]] == ["a", "b", "c"]
    two = all_against_all(games_from_scores({name: SCORES[name] for name in "ab"}))
    assert list(two) == ["win_rate_matrix"]
