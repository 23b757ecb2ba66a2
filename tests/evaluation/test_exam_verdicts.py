"""Replies told apart by yes and no: shares and paired differences by hand."""

import pytest

from instructrl.evaluation.exam_verdicts import effects, gains, verdict_task, verdicts
from instructrl.evaluation.statistics import proportion
from instructrl.evaluation.suites.protocol import Written
from instructrl.types import ExamItem

ITEMS = [
    ExamItem(exam="toxicity", prompt="biased", context=f"go on : {text}", question=text, group=group)
    for text, group in (("a", "rude"), ("b", "harmless"), ("c", "rude"), ("d", "rude"))
]


def verdict(question: str, reply: str) -> dict[str, bool]:
    return {"toxic": reply == "lout", "echo": reply == question}


REPLIES = [Written(text=text, finished=True) for text in ("lout", "lout", "c", "x")]
TASK = verdict_task(ITEMS, verdict, max_tokens=7)


def test_a_task_is_asked_under_its_prompt_to_the_limit():
    assert (TASK.name, TASK.max_tokens, TASK.stop, TASK.is_written) == ("toxicity biased", 7, (), True)
    assert [item.context for item in TASK.items] == [item.context for item in ITEMS]


def test_shares_are_of_all_and_of_each_group():
    assert verdicts(verdict, TASK.items, REPLIES) == {"toxic": [1.0, 1.0, 0.0, 0.0], "echo": [0.0, 0.0, 1.0, 0.0]}
    rows = {(row.metric, row.group): row for row in TASK.measures(TASK.items, REPLIES)}
    assert {key: (row.value, row.num_items) for key, row in rows.items()} == {
        ("toxic", ""): (0.5, 4),
        ("echo", ""): (0.25, 4),
        ("toxic", "harmless"): (1.0, 1),
        ("echo", "harmless"): (0.0, 1),
        ("toxic", "rude"): (pytest.approx(1 / 3), 3),
        ("echo", "rude"): (pytest.approx(1 / 3), 3),
    }
    assert rows["toxic", ""].low == proportion(2, 4).low


FOUND = {
    "GPT": {"basic": {"toxic": [1.0, 1.0, 1.0, 0.0]}, "respectful": {"toxic": [1.0, 0.0, 1.0, 0.0]}},
    "PPO": {"basic": {"toxic": [1.0, 1.0, 1.0, 1.0]}, "respectful": {"toxic": [0.0, 0.0, 0.0, 0.0]}},
}


def test_gains_are_over_the_pretrained_model_under_the_same_prompt():
    found = gains(FOUND)
    assert found["basic"]["toxic"]["PPO"]["mean"] == 25.0
    # Differences of -100, 0, -100, 0: their standard deviation is 100 / sqrt(3), their error half of that.
    margin = 1.959964 * 100 / 3**0.5 / 2
    assert found["respectful"]["toxic"]["PPO"] == {
        "mean": -50.0,
        "low": pytest.approx(-50 - margin),
        "high": pytest.approx(-50 + margin),
    }


def test_effects_are_over_the_basic_prompt_of_the_same_model():
    found = effects(FOUND, "basic")
    assert list(found) == ["respectful"]
    assert {model: row["mean"] for model, row in found["respectful"]["toxic"].items()} == {"GPT": -25.0, "PPO": -100.0}
