"""Accuracy of reward models on RewardBench, RewardBench 2 and JudgeBench: files, and scores worked out by hand."""

import json
import math

import pytest

from instructrl.evaluation.preferences.benchmarks import SECTIONS, benchmark_entry, read_trials, ties_score, won

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad", "subset": "xstest-should-refuse", "id": 7}
BEST_OF = {"id": "12", "prompt": "p", "chosen": ["good"], "rejected": ["a", "b", "c"], "subset": "Factuality"}
JUDGE = {"pair_id": "x", "question": "p", "response_A": "one", "response_B": "two", "label": "B>A", "source": "mmlu"}


def read(tmp_path, *rows) -> list:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_trials(str(path))


def test_three_layouts(tmp_path):
    pair, best, judge = read(tmp_path, PAIR, BEST_OF, JUDGE)
    assert (pair.subset, pair.id, pair.prompt, pair.right, pair.wrong) == (
        PAIR["subset"],
        "7",
        "p",
        ("good",),
        ("bad",),
    )
    assert (best.right, best.wrong) == (("good",), ("a", "b", "c"))
    assert (judge.subset, judge.right, judge.wrong) == ("mmlu", ("two",), ("one",))


def test_parquet_is_read_as_lines_are(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([BEST_OF, BEST_OF | {"chosen": ["x", "y"]}]).to_parquet(str(tmp_path / "rows.parquet"))
    first, second = read_trials(str(tmp_path / "rows.parquet"))
    assert (first.right, first.wrong, second.right) == (("good",), ("a", "b", "c"), ("x", "y"))


def test_a_trial_by_hand():
    assert won([2.0], [1.0]) == 1
    assert won([1.0], [1.0]) == 0  # a pair that ties is wrong
    assert won([2.0], [1.0, 0.0, 2.0]) == 1 / 2  # of four, two share the highest score
    assert won([1.0], [1.0, 1.0, 1.0]) == 1 / 4
    assert won([1.0], [0.0, 3.0, 1.0]) == 0


def test_the_score_of_ties_by_hand():
    """Right answers from 3 to 4, wrong ones up to 1: gap 2, spread 1. The twin: 5 over 2, gap 3."""
    tied, ref = ([3.0, 4.0, 3.5], [1.0, 0.0]), ([5.0], [2.0, 1.0])
    assert ties_score(tied, ref) == pytest.approx(0.3 + 0.3 + 0.2 + 0.2 + 0.01 * math.tanh(2 / 1 - 1))
    # The gap of the twin is 0.5, less than the spread: not hard, and the margin is its.
    assert ties_score(tied, ([5.0], [4.5])) == pytest.approx(0.3 + 0.3 + 0.2 + 0 + 0.01 * math.tanh(0.5 - 1))
    # A wrong answer above the worst right one: accurate on the twin alone.
    assert ties_score(([3.0, 4.0], [3.5]), ref) == pytest.approx(0.3 + 0.01 * math.tanh(-0.5 - 1))
    # No spread: tanh of infinity, and of 0 / 0 nothing.
    assert ties_score(([3.0, 3.0], [1.0]), ref) == pytest.approx(1.01)
    assert ties_score(([3.0, 3.0], [3.0]), ref) == pytest.approx(0.3)


def test_sections_of_reward_bench(tmp_path):
    """math-prm counts 984 of 1968 in Reasoning: right there alone is one half, whatever its number of rows."""
    subsets = [subset for section in SECTIONS.values() for subset in section]
    trials = read(tmp_path, *[PAIR | {"subset": subset, "id": i} for i, subset in enumerate(subsets * 2)])
    right = {"math-prm", *SECTIONS["Chat"], "refusals-dangerous"}
    found = benchmark_entry(trials, [([1.0], [float(t.subset not in right) * 2]) for t in trials])
    assert {name: row["mean"] for name, row in found["sections"].items()} == {
        "Chat": 1,
        "Chat Hard": 0,
        "Safety": 100 / 740,
        "Reasoning": 0.5,
    }
    assert found["mean"]["mean"] == pytest.approx((1 + 0 + 100 / 740 + 0.5) / 4)
    assert found["mean_of"] == "sections"
    assert found["num_items"] == 46


def test_the_mean_of_subsets_with_ties(tmp_path):
    rows = [BEST_OF, BEST_OF | {"id": "13"}]
    rows += [
        BEST_OF | {"subset": "Ties", "id": f"{kind}:{i}", "chosen": c}
        for kind, c in (("tied", ["r", "s"]), ("ref", ["r"]))
        for i in (1, 2)
    ]
    trials = read(tmp_path, *rows)
    scores = [([1.0], [0.0] * 3), ([0.0], [1.0, 0.0, 0.0])]
    scores += [([3.0, 3.0], [1.0] * 3), ([0.0, 5.0], [1.0] * 3), ([3.0], [1.0] * 3), ([0.0], [1.0] * 3)]
    found = benchmark_entry(trials, scores)
    ties = (1.01 + 0.01 * math.tanh(-1 / 5 - 1)) / 2
    assert found["subsets"]["Factuality"]["mean"] == 0.5
    assert found["subsets"]["Ties"]["mean"] == pytest.approx(ties)
    assert found["mean"]["mean"] == pytest.approx((0.5 + ties) / 2)
    assert (found["mean_of"], found["sections"]) == ("subsets", {})
    half = math.hypot(*(row["high"] - row["low"] for row in found["subsets"].values())) / 4
    assert found["mean"]["high"] == pytest.approx(found["mean"]["mean"] + half)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "x"}, r"rows.jsonl:1: rejected: found nothing, accepted is a text"),
        (PAIR | {"chosen": []}, r"rows.jsonl:1: chosen: found \[\], accepted is a text"),
        (PAIR | {"prompt": [{"role": "user"}]}, r"rows.jsonl:1: prompt: found .*, accepted is a text"),
        (JUDGE | {"label": "A=B"}, r"rows.jsonl:1: label: found 'A=B', accepted is A>B or B>A"),
        (BEST_OF | {"subset": "Ties"}, r"rows.jsonl:1: id: found '12', accepted is ref:N or tied:N in the subset Ties"),
    ],
)
def test_rows_of_another_layout(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, row)


def test_prompts_of_ties_come_once_and_in_twos(tmp_path):
    tied, ref = (BEST_OF | {"subset": "Ties", "id": f"{kind}:1"} for kind in ("tied", "ref"))
    with pytest.raises(ValueError, match="jsonl:1: id: found tied:1 without ref:1, accepted are both"):
        read(tmp_path, tied)
    with pytest.raises(ValueError, match=r"jsonl:3: id: found ref:1 again, which .*:2 has, accepted is each once"):
        read(tmp_path, tied, ref, ref)
    with pytest.raises(ValueError, match="jsonl:2: id: found ref:1 without tied:1"):
        benchmark_entry(read(tmp_path, tied, ref)[1:], [([1.0], [0.0] * 3)])
