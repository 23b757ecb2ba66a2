"""AlpacaEval's files, win rates as it counts them, and the agreement of judges: by hand, and on PandaLM's people."""

import json
import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from instructrl.data import public
from instructrl.evaluation.preferences.agreement import (
    agreement,
    agreement_within,
    first_preferred,
    kendall,
    longer_preferred,
    same_after_swap,
    spearman,
)
from instructrl.evaluation.preferences.alpaca_eval import (
    Outputs,
    read_annotations,
    read_gamed,
    read_outputs,
    write_annotations,
    write_outputs,
)
from instructrl.evaluation.preferences.judgements import Judgement, of_comparisons, of_scores
from instructrl.evaluation.preferences.judges import judged
from instructrl.evaluation.suites.layouts import LayoutError

PANDALM = Path(__file__).parents[2].parent / "shared" / "data" / "pandalm_testset"


def said(outcome, *, instruction="q", texts=("one", "other"), judge="j", models=None) -> Judgement:
    return Judgement(instruction=instruction, texts=texts, models=models, outcome=outcome, judge=judge)


def annotation(preference, number=0, **more) -> dict:
    return {
        "instruction": f"q{number}",
        "output_1": "short",
        "generator_1": "base",
        "output_2": "a longer one",
        "generator_2": "m",
        "preference": preference,
        **more,
    }


def written(path: Path, rows) -> Path:
    path.write_text(json.dumps(rows))
    return path


# ---- files


def test_preferences_are_alpaca_evals(tmp_path):
    values = [1, 2, 1.5, 0, 0.0, 1.25, math.nan, None]
    rows = read_annotations(written(tmp_path / "mine.json", [annotation(v, i) for i, v in enumerate(values)]))
    assert [row.outcome for row in rows] == [0, 1, 0.5, 0.5, 0.5, 0.25, None, None]
    assert {row.judge for row in rows} == {"mine"}
    assert rows[0].models == ("base", "m")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"preference": 10**400}, "row 1: preference: found 1000"),
        ({"preference": -math.inf}, "row 1: preference: found -inf"),
        ({"preference": True}, "row 1: preference: found True"),
        ({"output_2": "half \ud83d"}, r"row 1: output_2: found 'half \ud83d', accepted is a text"),
    ],
)
def test_what_no_verdict_and_no_text_is(tmp_path, changed, message):
    with pytest.raises(LayoutError) as caught:
        read_annotations(written(tmp_path / "a.json", [annotation(1) | changed]))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_annotations_come_back(tmp_path):
    rows = [
        said(0.25, models=("a", "b"), judge="x"),
        said(None, judge="y", texts=("", "\u2028é")),
        said(0.5, instruction="z", judge="people"),
    ]
    write_annotations(tmp_path / "a.json", rows)
    assert read_annotations(tmp_path / "a.json") == rows


def test_outputs_come_back(tmp_path):
    outputs = Outputs(model="m", instructions=("q", "r"), texts=("1", ""), datasets=("set", ""))
    write_outputs(tmp_path / "model_outputs.json", outputs)
    assert read_outputs(tmp_path / "model_outputs.json") == outputs
    assert json.loads((tmp_path / "model_outputs.json").read_text())[0] == {
        "instruction": "q",
        "output": "1",
        "generator": "m",
        "dataset": "set",
    }


def test_outputs_without_a_generator_are_named_after_their_folder(tmp_path):
    (tmp_path / "model_x").mkdir()
    path = written(tmp_path / "model_x" / "model_outputs.json", [{"instruction": "q", "output": "1"}])
    assert read_outputs(path).model == "model_x"


def test_the_gamed_baseline_of_alpaca_eval(tmp_path):
    lines = ["model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    lines += [f"m{sign},{i},0.{i}5,{sign}.5,{i}.25,False" for sign in (-1, 1) for i in (1, 0)]
    (tmp_path / "df.csv").write_text("\n".join(lines))
    difficulties, anchors = read_gamed(tmp_path / "df.csv", 2)
    assert difficulties == [0.25, 1.25]
    assert list(anchors.differences) == [-1.5, -1.5, 1.5, 1.5]
    assert list(anchors.outcomes) == [0.15, 0.05, 0.15, 0.05]
    with pytest.raises(ValueError, match="found no row of index 2, accepted is one for each of 3 rows"):
        read_gamed(tmp_path / "df.csv", 3)


# ---- win rates


def test_win_rates_by_hand():
    """1.2 counts a fifth of a win, or a loss where verdicts are rounded; a verdict that is missing counts nowhere."""
    values = [1.0, 2.0, 1.2, 1.5, 1.9, None]
    rows = [
        said(None if v is None else v - 1, instruction=f"q{i}", models=("base", "m"), texts=("ab", "abc" * i))
        for i, v in enumerate(values)
    ]
    found = judged(rows)
    assert found["baseline"] == "base"
    model = {row["name"]: row for row in found["models"]}["m"]
    assert model["win_rate"]["rate"] == pytest.approx((0 + 1 + 0.2 + 0.5 + 0.9) / 5)
    assert model["win_rate"]["standard_error"] == pytest.approx(np.std([0, 1, 0.2, 0.5, 0.9], ddof=1) / math.sqrt(5))
    assert model["discrete_win_rate"] == pytest.approx((0 + 1 + 0 + 0.5 + 1) / 5)
    counts = [model[f"num_{name}"] for name in ("wins", "losses", "ties", "without_verdict")]
    assert counts == [2, 2, 1, 1]
    assert model["average_length"] == 3 * (0 + 1 + 2 + 3 + 4 + 5) / 6
    assert model["length_controlled"]["num_prompts"] == 5


def test_the_order_of_the_responses_changes_no_number():
    rng = np.random.default_rng(0)
    rows = [
        said(float(rng.random()), instruction=f"q{i}", models=("base", "m"), texts=("x" * int(rng.integers(90)), "y"))
        for i in range(20)
    ]
    turned = [row.swapped if i % 2 else row for i, row in enumerate(rows)]
    one, other = ({m["name"]: m for m in judged(given, "base")["models"]}["m"] for given in (rows, turned))
    assert one["win_rate"] == pytest.approx(other["win_rate"])
    assert one["length_controlled"]["rate"] == pytest.approx(other["length_controlled"]["rate"])


def test_verdicts_of_several_people_on_an_instruction_are_not_independent():
    rows = [said(float(i < 6), instruction=f"q{i}", models=("a", "b")) for i in range(10)]
    once, thrice = ({m["name"]: m for m in judged(given)["models"]}["b"]["win_rate"] for given in (rows, rows * 3))
    assert (once["low"], once["high"]) == pytest.approx((thrice["low"], thrice["high"]))
    assert (once["num_prompts"], thrice["num_prompts"]) == (10, 10)


def test_scores_of_models():
    rows = of_scores(["p", "q"], {"a": ["x", "y"], "b": ["z", "y"]}, {"a": [1.0, 2.0], "b": [0.0, 9.0]}, "rm")
    assert [row.outcome for row in rows] == [0.0, 0.5]  # the same response ties, whatever its two scores
    assert of_scores(["p"], {"a": ["x"], "b": ["z"]}, {"a": [None], "b": [1.0]}, "rm")[0].outcome is None


# ---- agreement


def test_agreement_by_hand():
    """Five pairs. Alike: both first; both tie; both second. Unlike: first against second; second against a tie."""
    one = [said(v, instruction=str(i)) for i, v in enumerate([0, 0.5, 1, 0, 0.9])]
    other = [said(v, instruction=str(i)) for i, v in enumerate([0.2, 0.5, 1, 1, 0.5])]
    found = agreement(one, other)
    assert found.num_pairs == 5
    assert found.strict.rate == 2 / 3
    assert found.three_way.rate == 3 / 5
    # Chance: first 2/5 * 1/5, tie 1/5 * 2/5, second 2/5 * 2/5.
    assert found.kappa == pytest.approx((3 / 5 - 8 / 25) / (1 - 8 / 25))
    assert found.with_median.rate == pytest.approx((0.8 + 1 + 1 + 0 + 0.6) / 5)


def test_the_order_of_responses_does_not_matter_to_agreement():
    one, other = [said(0.0)], [said(1.0, texts=("other", "one"))]
    assert agreement(one, other).strict.rate == 1


def test_people_among_themselves_by_hand():
    """Votes 2, 2, 1, 1: each meets three others, of whom one agrees, and the median of them is against it. Votes 2, 2,
    2, 1 of alpaca_eval's docstring, where two pairs are 3/4 and 7/8 right."""
    split = agreement_within([said(v) for v in (1, 1, 0, 0)])
    assert (split.strict.rate, split.with_median.rate) == (2 / 6, 0)
    rows = [said(0, instruction="p")] * 4 + [said(v, instruction="q") for v in (1, 1, 1, 0)]
    found = agreement_within(rows)
    assert found.strict.rate == (6 + 3) / 12
    assert found.with_median.rate == (4 + 3) / 8
    assert agreement_within([said(1.0)]).num_pairs == 0


def test_biases_by_hand():
    long, short = "x" * 100, "y" * 60
    rows = [
        said(0, texts=(long, short), instruction="1"),
        said(1, texts=(long, short), instruction="2"),
        said(1, texts=(short, long), instruction="3"),
        said(0.5, texts=(short, long), instruction="4"),
        said(0, texts=("x" * 70, short), instruction="5"),  # ten characters are not longer
    ]
    assert (longer_preferred(rows).rate, longer_preferred(rows).num_pairs) == (2 / 3, 3)
    assert (first_preferred(rows).rate, first_preferred(rows).num_pairs) == (1 / 2, 4)
    assert same_after_swap(rows) is None
    twice = [said(0, instruction="1"), said(0, instruction="1", texts=("other", "one")), said(1, instruction="2")]
    assert same_after_swap(twice).rate == 0  # the first one, in both orders
    assert same_after_swap([*twice, twice[2].swapped]).rate == 1 / 2


def test_rank_correlations_by_hand():
    """Ranks 1 2 3 4 against 2 1 4 3: d^2 = 4, 1 - 6 * 4 / (4 * 15); 4 pairs alike of 6, and 2 not."""
    assert spearman([1, 2, 3, 4], [20, 10, 40, 30]) == pytest.approx(0.6)
    assert kendall([1, 2, 3, 4], [20, 10, 40, 30]) == pytest.approx(2 / 6)
    # One tie of the first: 3 pairs are untied there, of 3 in the second... ranks 1.5 1.5 3 against 1 2 3.
    assert kendall([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(2 * 3))
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(1.5 / math.sqrt(1.5 * 2))
    assert spearman([1, 2], [1, 2]) is None
    assert kendall([1, 1, 1], [1, 2, 3]) is None


def test_judges_are_compared_by_their_order_of_models():
    rows = [
        said(float(a < b) if judge == "x" else float(a > b), instruction=f"{a}{b}", models=(a, b), judge=judge)
        for judge in "xy"
        for a, b in permutations("klm", 2)
        if a < b
    ]
    (found,) = judged(rows)["agreements"]
    assert found["judges"] == ["x", "y"]
    assert (found["spearman"], found["kendall"], found["num_models"]) == (-1, -1, 3)
    assert found["strict"]["rate"] == 0


def test_an_unknown_baseline():
    with pytest.raises(ValueError, match="baseline: found 'z', accepted are a, b"):
        judged([said(1.0, models=("a", "b"))], "z")


def test_pairs_are_told_apart_by_their_models():
    """Two models that said the same are two things, and one thing where models are not known."""
    models = [("a", "b"), ("a", "c")]
    rows = [said(v, models=m) for v, m in zip((0, 1), models, strict=True)]
    assert agreement_within(rows).num_pairs == 0
    assert agreement_within([*rows, said(1)]).num_pairs == 1
    equal = [said(v, models=("a", "b"), texts=("x", "x")) for v in (0.5, 0.5)]
    assert agreement_within(equal).three_way.rate == 1
    assert agreement_within([said(0.5, texts=("x", "x"))] * 2).num_pairs == 0


def test_a_row_of_pandalm(tmp_path):
    row = {"instruction": "i", "input": "x", "response1": "one", "response2": False, "cmp_key": "opt-7b_pythia-6.9b"}
    path = written(tmp_path / "t.json", [row | {"annotator1": 0, "annotator2": "1", "annotator3": 2}])
    first, *_ = rows = read_annotations(path)
    assert [row.outcome for row in rows] == [0.5, 0, 1]
    assert (first.instruction, first.texts, first.models) == ("i\n\nx", ("one", "False"), ("opt-7b", "pythia-6.9b"))
    assert {row.judge for row in rows} == {"people"}


@pytest.mark.skipif(not PANDALM.is_dir(), reason=f"no {PANDALM}")
def test_pandalms_people():
    """999 pairs, three people: any two say the same of first, second and tie in 92.0% of them. Those that are no text
    are dropped by the reader of comparisons, and pairs of equal responses count once there."""
    rows = read_annotations(PANDALM / "testset-v1.json")
    found = agreement_within(rows)
    assert found.num_pairs == 999
    assert found.three_way.rate == 2757 / 2997
    assert found.strict.rate > found.three_way.rate > found.kappa
    records = of_comparisons(public.pandalm_comparisons(PANDALM).records)
    assert len(records) == len(rows) - 18
    assert agreement_within(records).num_pairs == 861
