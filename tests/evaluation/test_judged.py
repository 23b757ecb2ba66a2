"""Blind tasks, labels read with their keys, and what several judges make of the same responses: by hand."""

import json
import math

import pytest

from instructrl.evaluation.blind import as_judged, blind_tasks
from instructrl.evaluation.contenders import Judgement, Performance
from instructrl.evaluation.judged import Panel, judged
from instructrl.evaluation.statistics import paired_difference
from instructrl.labels import Label, OutputLabel
from instructrl.types import Prompt

PROMPTS = [
    Prompt(text=f"prompt {i} .", user=f"u{i % 4}", source="gpt" if i % 2 else "customer", category="chat" * (i < 6))
    for i in range(8)
]
NAMES = ("GPT", "SFT", "PPO")


def performance(name: str, texts: list[str], scores: list[float] | None = None) -> Performance:
    number = len(texts)
    return Performance(
        name=name,
        texts=texts,
        finished=[True] * number,
        num_tokens=[1] * number,
        judgements=[Judgement(score=s, likert=s) for s in scores or [1.0] * number],
        rewards=[0.0] * number,
        kl=None,
        block_losses=[1.0],
        fact_accuracy=None,
    )


RESPONSES = [performance(name, [f"text {i} of number {n}" for i in range(8)]) for n, name in enumerate(NAMES)]


def test_a_task_shows_everything_but_who_wrote_it():
    tasks, keys = blind_tasks(PROMPTS, RESPONSES, seed=7)
    assert [task.prompt for task in tasks] == [prompt.text for prompt in PROMPTS]
    for task, key in zip(tasks, keys, strict=True):
        assert task.id == key.id
        assert not any(name in repr(task) for name in NAMES)
        written = {key.models[output.id]: output.text for output in task.outputs}
        assert written == {each.name: each.texts[int(task.id)] for each in RESPONSES}
    orders = {tuple(key.models.values()) for key in keys}
    assert len(orders) > 2
    assert {first for first, *_ in orders} == set(NAMES)
    assert {"".join(key.models) for key in keys} == {"ABC"}


def test_the_order_of_outputs_is_keyed_and_does_not_depend_on_that_of_the_contenders():
    first = blind_tasks(PROMPTS, RESPONSES, seed=7)
    assert first == blind_tasks(PROMPTS, RESPONSES[::-1], seed=7)
    assert first != blind_tasks(PROMPTS, RESPONSES, seed=8)
    with pytest.raises(ValueError, match="different names"):
        blind_tasks(PROMPTS, [RESPONSES[0], RESPONSES[0]], seed=7)


def label(key, ranks: dict[str, int], flags: dict[str, bool | None], labeler: str = "mia") -> Label:
    output = {name: output for output, name in key.models.items()}
    return Label(
        task=key.id,
        labeler=labeler,
        outputs={output[name]: OutputLabel(likert=8 - rank, flags=flags) for name, rank in ranks.items()},
        ranks={output[name]: rank for name, rank in ranks.items()},
    )


def panels() -> list[Panel]:
    """Training labelers prefer PPO to SFT always, held-out ones tie them on the first two prompts; GPT is always last.

    Questions apply to every second prompt; the answer is yes on the first four of all prompts.
    """
    _, keys = blind_tasks(PROMPTS, RESPONSES, seed=7)
    flags = [{"hallucination": i < 4 if i % 2 else None} for i in range(8)]
    training = [label(key, {"PPO": 1, "SFT": 2, "GPT": 3}, flag) for key, flag in zip(keys, flags, strict=True)]
    heldout = [
        label(key, {"PPO": 1, "SFT": 1 if i < 2 else 2, "GPT": 3}, flags[i], f"{i % 2}") for i, key in enumerate(keys)
    ]
    return [
        Panel(judge="training labelers", performances=as_judged(RESPONSES, keys, training), num_labelers=1),
        Panel(judge="held-out labelers", performances=as_judged(RESPONSES, keys, heldout), num_labelers=2),
        Panel(judge="rubric", performances=[performance(p.name, p.texts, [5.5] * 8) for p in RESPONSES]),
    ]


def test_numbers_of_each_judge_and_what_tells_two_of_them_apart():
    groups = {"distribution": [p.source for p in PROMPTS], "use case": [p.category for p in PROMPTS]}
    entry = json.loads(json.dumps(judged(panels(), PROMPTS, groups), allow_nan=False))
    training, heldout, rubric = entry["judges"]
    assert [row["judge"] for row in entry["judges"]] == ["training labelers", "held-out labelers", "rubric"]
    assert [row["num_labelers"] for row in entry["judges"]] == [1, 2, None]
    rates = [{row["name"]: row["win_rate"]["rate"] for row in judge["models"]} for judge in entry["judges"]]
    # Two ties of eight: (2 * 0.5 + 6) / 8.
    assert rates == [
        {"GPT": 0.0, "SFT": 0.5, "PPO": 1.0},
        {"GPT": 0.0, "SFT": 0.5, "PPO": 0.875},
        {"GPT": 0.5, "SFT": 0.5, "PPO": 0.5},
    ]
    ppo = heldout["models"][2]
    by = ppo["win_rate_by"]
    # One tie is on a customer's prompt, one on a GPT-style one: (0.5 + 3) / 4. Six prompts have a use case.
    assert {group: found["rate"] for group, found in by["distribution"].items()} == {"customer": 0.875, "gpt": 0.875}
    assert {group: found["num_prompts"] for group, found in by["use case"].items()} == {"chat": 6}
    # Likert 8 - rank: 7 for PPO.
    assert [row["likert"]["mean"] for row in training["models"]] == [5.0, 6.0, 7.0]
    # Of the prompts 1, 3, 5, 7 the first two were answered yes.
    assert ppo["flags"]["hallucination"]["total"] == 4
    assert ppo["flags"]["hallucination"]["rate"] == 0.5
    assert (ppo["score"], rubric["models"][2]["score"]["mean"], rubric["models"][2]["flags"]) == (None, 5.5, {})
    matrix = heldout["win_rate_matrix"]
    assert matrix["models"] == ["GPT", "SFT", "PPO"]
    assert matrix["rates"][2][1]["rate"] == 0.875
    assert matrix["rates"][0][2]["rate"] == 0.0
    first, with_rubric, _ = entry["differences"]
    assert first["judges"] == ["training labelers", "held-out labelers"]
    assert {row["name"]: row["difference"]["mean"] for row in first["models"]} == {"GPT": 0.0, "PPO": 0.125}
    # Both order PPO before GPT and SFT before GPT in eight prompts, PPO before SFT in six; the rubric orders nothing.
    assert (first["agreement"]["rate"], first["agreement"]["num_pairs"]) == (1.0, 22)
    assert with_rubric["agreement"] is None


def test_equal_responses_are_a_tie_whatever_their_labels_say():
    same = [performance("SFT", ["x"] * 8), performance("PPO", ["x"] * 8)]
    _, keys = blind_tasks(PROMPTS, same, seed=1)
    swapped = as_judged(same, keys, [label(key, {"PPO": 1, "SFT": 2}, {}) for key in keys])
    entry = judged([Panel(judge="people", performances=swapped, num_labelers=1)], PROMPTS, {})
    assert entry["judges"][0]["models"][1]["win_rate"]["rate"] == 0.5


def test_labels_have_to_be_one_for_each_task():
    _, keys = blind_tasks(PROMPTS, RESPONSES, seed=7)
    labels = [label(key, {"PPO": 1, "SFT": 2, "GPT": 3}, {}) for key in keys]
    shuffled = as_judged(RESPONSES, keys, labels[::-1])
    assert shuffled == as_judged(RESPONSES, keys, labels)
    for wrong in (
        labels[1:],
        [*labels, labels[0]],
        [*labels[1:], Label(task=keys[0].id, labeler="x", skipped="other")],
    ):
        with pytest.raises(ValueError, match="accepted is one answer to each task"):
            as_judged(RESPONSES, keys, wrong)
    with pytest.raises(ValueError, match="baseline: found 'T5'"):
        judged(panels(), PROMPTS, {}, baseline="T5")


def test_a_paired_difference_is_narrower_than_two_rates():
    """Judges that differ on 1 of 10 users' prompts: the difference is 0.1 or 0 or more by how often that one is drawn.

    Resamples draw the user Binomial(10, 0.1) times: the 2.5 % and 97.5 % quantiles of that are 0 and 3.
    """
    first = [1.0, 0.0] * 10
    second = [*first[:-2], 0.0, -1.0 + 0.0]
    found = paired_difference(first, second, [f"u{i // 2}" for i in range(20)])
    assert found.mean == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.0, 0.3))
    assert paired_difference([1.0], [0.0]).low is None
    assert paired_difference([1.0, 0.5], [0.0, 0.5], ["a", "a"]).high is None
    for wrong in (lambda: paired_difference([], []), lambda: paired_difference([1.0], [1.0, 0.0])):
        with pytest.raises(ValueError, match="found"):
            wrong()
    with pytest.raises(ValueError, match="finite"):
        paired_difference([math.nan], [0.0])
