"""What answers to exams are worth, and what alignment costs on them: numbers by hand."""

import math

import numpy as np
import pytest

from instructrl.evaluation import exams
from instructrl.evaluation.exams import SCORING, exam_task, exam_tax, item_scores, paired_difference
from instructrl.evaluation.suites.metrics import library, sentence_bleu
from instructrl.evaluation.suites.protocol import Written
from instructrl.rollout.options import Likelihoods
from instructrl.types import ExamItem


def written(*texts: str) -> list[Written]:
    return [Written(text=text, finished=True) for text in texts]


def chosen(place: int, options: int) -> Likelihoods:
    """Each option has two tokens; that one is the likeliest."""
    return Likelihoods(totals=tuple(-2.0 if i == place else -4.0 for i in range(options)), num_tokens=(2,) * options)


def task_of(exam: str, *references: tuple[str, ...], groups: tuple[str, ...] = (), options: tuple[str, ...] = ()):
    items = [
        ExamItem(
            exam=exam,
            context="c",
            references=reference,
            options=options,
            right=(options.index(reference[0]),) if options else (),
            group=groups[place] if groups else "",
        )
        for place, reference in enumerate(references)
    ]
    return exam_task(items, 0, max_tokens=4, newline="|")


def test_answers_are_scored_by_the_metric_of_their_exam():
    # F1 without articles: "red kite" in "red drum" is 2 * 1 / (2 + 2); nothing said is worth nothing.
    reading = task_of("reading", ("a red kite",), ("not in passage",), ("mia",))
    assert item_scores(SCORING["reading"].score, reading.items, written("the red drum", "not in passage", "")) == [
        0.5,
        1.0,
        0.0,
    ]
    counting = task_of("counting", ("five",), ("one",))
    assert item_scores(SCORING["counting"].score, counting.items, written("five", "two")) == [1.0, 0.0]
    endings = task_of("endings", ("b",), ("b",), options=("a", "b", "c", "d"))
    assert item_scores(SCORING["endings"].score, endings.items, [chosen(1, 4), chosen(3, 4)]) == [1.0, 0.0]


def test_the_bleu_of_a_sentence_by_hand():
    """ "the red fox" for "the red owl": 2 of 3 words, 1 of 2 pairs, and no triple, which counts a half of one."""
    assert sentence_bleu("the red fox", "the red owl") == pytest.approx((2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3))
    assert sentence_bleu("the red", "the red owl sees") == pytest.approx(math.exp(1 - 4 / 2))
    assert sentence_bleu("the red owl", "the red owl") == 1.0
    assert sentence_bleu("", "the owl") == sentence_bleu("a b", "c d") == 0.0


def test_the_bleu_of_a_sentence_is_sacrebleus():
    reference = "the red fox sees the small owl"
    answers = [
        "the red fox",
        "the fox red sees the owl",
        "the the the the",
        "owl",
        "the small owl sees the red fox x y",
    ]
    found = library("sacrebleu").BLEU(effective_order=True)
    for answer in [*answers, reference]:
        assert sentence_bleu(answer, reference) == pytest.approx(found.sentence_score(answer, [reference]).score / 100)


def test_rows_are_of_all_items_and_of_each_group():
    task = task_of("counting", ("one",), ("two",), ("two",), groups=("sum", "lookup", "sum"))
    rows = task.measures(task.items, written("one", "one", "two"))
    assert [(row.metric, row.unit, row.group, row.value, row.num_items) for row in rows] == [
        ("F1", "points", "", pytest.approx(200 / 3), 3),
        ("F1", "points", "lookup", 0.0, 1),
        ("F1", "points", "sum", 100.0, 2),
    ]
    assert (task.stop, task.max_tokens) == (("|",), 4)
    (options,) = {item.options for item in task_of("reviews", ("no",), options=("yes", "no")).items}
    assert options == (" yes", " no")


# ---- the tax


def made(gpt: float, ppo: float, ptx: float, number: int = 40) -> dict[str, list[float]]:
    """Scores of 0 and 1 with these means, PPO's failures the first ones."""
    return {
        name: [float(place >= number - round(number * share)) for place in range(number)]
        for name, share in (("GPT", gpt), ("PPO", ppo), ("PPO-ptx", ptx))
    }


def scores_of(**of_exam: dict[str, list[float]]):
    """exam -> model -> scores, the same for 0 and 3 examples."""
    models = next(iter(of_exam.values()))
    return {model: {exam: {0: found[model], 3: found[model]} for exam, found in of_exam.items()} for model in models}


def test_the_tax_is_the_mean_over_exams_whatever_their_numbers_of_items():
    """One exam loses 20 points, the other 50 of ten items: 35, of which the mix gives back 35 - (10 + 10) / 2."""
    scores = scores_of(reading=made(0.8, 0.6, 0.7, 100), counting=made(0.9, 0.4, 0.8, 10))
    found = exam_tax(scores)
    assert set(found) == {"pretrained", "unit", "0-shot", "3-shot", "all"}
    for way in ("0-shot", "3-shot", "all"):
        tax = found[way]["tax"]
        assert tax["PPO"]["mean"] == pytest.approx(35.0)
        assert tax["PPO-ptx"]["mean"] == pytest.approx(10.0)
        assert tax["PPO"]["low"] < 35 < tax["PPO"]["high"]
        assert found[way]["exams"]["counting"]["PPO"]["mean"] == pytest.approx(50.0)
        assert found[way]["recovered"]["mean"] == pytest.approx(1 - 10 / 35)
        assert found[way]["recovered"]["low"] < 1 - 10 / 35 < found[way]["recovered"]["high"]


def test_the_interval_of_the_tax_is_that_of_paired_differences():
    """Two models that fail at different items differ at many, and so vary more than two that fail at the same."""
    same = [1.0] * 60 + [0.0] * 40
    other = [*same[50:], *same[:50]]
    worse = [0.0] * 10 + same[10:]
    scores = {name: {"reading": {0: values}} for name, values in (("GPT", same), ("PPO", worse), ("PPO-ptx", other))}
    found = exam_tax(scores)["0-shot"]["tax"]
    width = {name: row["high"] - row["low"] for name, row in found.items()}
    # A difference of 1 at 10 of 100 items: 1.96 * sqrt(.1 * .9 / 100) to each side, as the sum of 10 points has it.
    assert width["PPO"] == pytest.approx(2 * 1.96 * math.sqrt(0.1 * 0.9 / 100) * 100, rel=0.1)
    assert width["PPO-ptx"] > 2 * width["PPO"]
    assert found["PPO-ptx"]["mean"] == 0.0


def test_examples_of_an_item_are_averaged_before_anything_is_resampled():
    """Right without examples where it is wrong with them, everywhere: no tax at all, and no spread of it."""
    gpt, turned = [1.0, 0.0] * 20, [0.0, 1.0] * 20
    scores = {"GPT": {"reading": {0: gpt, 3: turned}}, "PPO": {"reading": {0: turned, 3: gpt}}}
    found = exam_tax(scores)
    assert found["all"]["tax"]["PPO"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert found["0-shot"]["tax"]["PPO"]["high"] > 20
    assert found["all"]["recovered"] is None


def test_nothing_is_given_back_where_no_clear_tax_was_paid():
    gpt = [1.0, 0.0] * 50
    better, bit = [1.0] * 100, [0.0, *gpt[1:]]
    for ppo in (better, bit, gpt):
        scores = {"GPT": gpt, "PPO": ppo, "PPO-ptx": better}
        found = exam_tax({model: {"reading": {0: values}} for model, values in scores.items()})
        assert found["0-shot"]["recovered"] is None


def test_each_exam_is_resampled_for_itself(monkeypatch):
    """Exams that are all lost or all won: whichever questions are drawn, the tax is a half of 100."""
    monkeypatch.setattr(exams, "NUM_RESAMPLES", 50)
    found = exam_tax(
        {"GPT": {"a": {0: [1.0] * 5}, "b": {0: [1.0] * 9}}, "PPO": {"a": {0: [0.0] * 5}, "b": {0: [1.0] * 9}}}
    )
    assert found["0-shot"]["tax"]["PPO"] == {"mean": 50.0, "low": 50.0, "high": 50.0}


def test_models_have_to_be_asked_the_same():
    with pytest.raises(ValueError, match="other questions of PPO than of GPT"):
        exam_tax({"GPT": {"a": {0: [1.0]}}, "PPO": {"a": {0: [1.0, 0.0]}}})
    with pytest.raises(ValueError, match="other questions of a with examples"):
        exam_tax({"GPT": {"a": {0: [1.0], 3: [1.0, 0.0]}}})


def test_a_paired_difference_is_in_points_with_its_interval():
    found = paired_difference([1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0])
    margin = 1.959964 * np.std([100, 0, 0, 100], ddof=1) / 2
    assert found == {"mean": 50.0, "low": pytest.approx(50 - margin), "high": pytest.approx(50 + margin)}
