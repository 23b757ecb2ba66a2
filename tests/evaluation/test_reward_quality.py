"""Reward models beside people: length bias by its definition, agreement of annotators, and what the report says."""

import random

import numpy as np
import pytest
from synthetic_run import make_results

from instructrl.evaluation.narrative import sentences
from instructrl.evaluation.report import render
from instructrl.evaluation.reward_quality import (
    annotators_agreement,
    length_correlation,
    longer_preferred,
    quality_row,
)
from instructrl.types import Comparison


def compared(preferred: set[tuple[int, int]], number: int = 2, prompt: str = "p", labeler: str = "") -> Comparison:
    texts = tuple(f"a{i}" for i in range(number))
    return Comparison(prompt=prompt, completions=texts, preferred=frozenset(preferred), labeler=labeler)


def drawn(slope: float, num_prompts: int, seed: int) -> tuple[list[list[float]], list[list[int]]]:
    """Scores that move with length by `slope` of their spread within a prompt, and with the prompt at random."""
    rng = np.random.default_rng(seed)
    scores, lengths = [], []
    for _ in range(num_prompts):
        length = rng.integers(1, 100, size=4)
        noise = rng.normal(size=4) * 29 * (1 - slope**2) ** 0.5
        scores.append((slope * length + noise + rng.normal() * 1000).tolist())
        lengths.append(length.tolist())
    return scores, lengths


def test_the_correlation_is_pearsons_of_what_is_left_without_the_prompts_means():
    scores, lengths = drawn(0.6, 40, 0)
    left = [np.concatenate([np.array(row) - np.mean(row) for row in rows]) for rows in (scores, lengths)]
    found = length_correlation(scores, lengths)
    assert found is not None
    assert found.mean == pytest.approx(np.corrcoef(left[0], left[1])[0, 1], rel=1e-12)


@pytest.mark.parametrize("slope", [-0.7, 0.0, 0.4])
def test_the_interval_of_the_correlation_holds_the_truth(slope):
    """In 19 of 20 draws, as it says: of 60 at least 50 (with fewer than one in 1,000 it would be less)."""
    held = 0
    for seed in range(60):
        found = length_correlation(*drawn(slope, 60, seed))
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        held += found.low <= slope <= found.high
    assert held >= 50


def test_no_spread_has_no_correlation():
    assert length_correlation([[1.0, 1.0], [2.0, 2.0]], [[3, 4], [5, 9]]) is None
    assert length_correlation([[1.0, 2.0], [2.0, 5.0]], [[3, 3], [9, 9]]) is None
    assert length_correlation([], []) is None


def test_who_prefers_the_longer():
    rows = [compared({(0, 1)}), compared({(1, 0)}), compared({(0, 1)}), compared(set()), compared({(0, 1), (2, 1)}, 3)]
    lengths = [[5, 2], [5, 2], [4, 4], [9, 1], [1, 3, 7]]
    scores = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0, 1.0]]
    model, people = longer_preferred(scores, lengths, rows)
    # Pairs of two lengths: the first two, and two of the last; the model has the longer ahead in three, a tie is none.
    assert model is not None
    assert people is not None
    assert (model.rate, model.num_pairs) == (3 / 4, 4)
    assert (people.rate, people.num_pairs) == (2 / 4, 4)
    assert longer_preferred([[1.0, 0.0]], [[2, 2]], [compared({(0, 1)})]) == (None, None)


def test_annotators_agree_where_both_prefer():
    rows = [
        *(compared({pair}, prompt="p", labeler=f"l{i}") for i, pair in enumerate([(0, 1), (0, 1), (1, 0)])),
        *(compared(pairs, prompt="q", labeler=f"l{i}") for i, pairs in enumerate([{(0, 1)}, set(), {(0, 1)}])),
        compared({(0, 1)}, prompt="r", labeler="l0"),
    ]
    found = annotators_agreement(rows)
    assert found is not None
    assert (found["rate"], found["num_pairs"]) == (2 / 4, 4)
    assert annotators_agreement(rows[-1:]) is None


def test_a_row_of_the_results():
    row = quality_row("judge", "hh", [[1.0, 0.0], [0.0, 1.0]], [[9, 3], [2, 2]], [compared({(0, 1)})] * 2)
    assert (row["model"], row["data"], row["accuracy"]["rate"]) == ("judge", "hh", 0.5)
    assert row["prefers_longer"]["num_pairs"] == row["people_prefer_longer"]["num_pairs"] == 1


def test_the_report_shows_what_was_measured():
    rng = random.Random(0)
    results = make_results()
    rows = []
    for model in ("reward model", "judge"):
        for data, slope in (("hh", -0.6), ("qa-feedback", 0.0)):
            scores, lengths = drawn(slope, 60, 1)
            pairs = [compared({(0, rng.randrange(1, 4))}, 4) for _ in scores]
            rows.append(quality_row(model, data, scores, lengths, pairs))
    results["reward_model"] |= {"held_out": rows, "annotators": {"rate": 0.947, "low": 0.93, "high": 0.96}}
    page = render(results)
    for text in (
        "Agreement with people, set by set",
        "Length of the responses",
        "Reward model, hh",
        "Annotators, pandalm",
    ):
        assert text in page
    (sentence,) = [text for text in sentences(results) if "longer one" in text]
    assert "score lower on hh (correlation" in sentence
    assert "qa-feedback" not in sentence
