"""Tasks, keys and labels as files: they come back as they were, and what does not fit is refused with its line."""

import json
from dataclasses import replace

import pytest

from instructrl.data import labels
from instructrl.data.readers import DataError
from instructrl.labels import TRUTHFUL_AND_HARMLESS_FIRST, Label, LabelTask, OutputLabel, TaskKey, TaskOutput

TASK = LabelTask(
    id="7",
    kind="evaluation",
    criteria=TRUTHFUL_AND_HARMLESS_FIRST,
    prompt="list two foods .",
    user="u1",
    outputs=(TaskOutput(id="a", text="corn , nuts ."), TaskOutput(id="b", text="co", finished=False)),
)
LABEL = Label(
    task="7",
    labeler="mia",
    seconds=12.5,
    prompt_flags={"closed domain": False},
    outputs={
        "a": OutputLabel(likert=7, flags={"hallucination": None, "satisfies constraint": True}),
        "b": OutputLabel(likert=1, notes="cut \u2028 off"),
    },
    ranks={"a": 1, "b": 2},
)


def test_records_come_back_as_they_were(tmp_path):
    records = [[TASK, LabelTask(id="8", prompt="hi .")], [TaskKey(id="7", models={"a": "SFT", "b": "GPT"}, seed=3)]]
    for part, read in zip(records, (labels.read_label_tasks, labels.read_task_keys), strict=True):
        labels.write_labels(tmp_path / "rows.jsonl", part)
        assert list(read(tmp_path / "rows.jsonl")) == part
    skipped = Label(task="7", labeler="tom", skipped="unclear")
    labels.write_labels(tmp_path / "labels.jsonl", [LABEL, skipped])
    assert labels.read_labels(tmp_path / "labels.jsonl", [TASK]) == [LABEL, skipped]


def test_a_task_as_a_file_holds_what_the_record_has_and_no_model(tmp_path):
    labels.write_labels(tmp_path / "tasks.jsonl", [TASK])
    row = json.loads((tmp_path / "tasks.jsonl").read_text(encoding="utf-8"))
    assert set(row) == {"id", "kind", "criteria", "prompt", "user", "source", "category", "outputs"}
    assert [set(output) for output in row["outputs"]] == [{"id", "text", "finished"}] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "9"}, "task: found '9', accepted is the id of a task"),
        ({"ranks": {"a": 1}}, "ranks: found none of the output 'b'"),
        ({"ranks": {"a": 1, "b": 2, "c": 3}}, "ranks: found 'c', accepted are the outputs of the task, a, b"),
        ({"ranks": {"a": 0, "b": 2}}, "ranks: found int 0, accepted is a whole number from 1"),
        ({"outputs": {}}, "outputs: found none of the output 'a'"),
        ({"outputs": {"a": {"likert": 8}, "b": {"likert": 1}}}, "likert: found int 8, accepted is a whole number from"),
        ({"outputs": {"a": {"likert": True}, "b": {"likert": 1}}}, "likert: found bool True"),
        ({"outputs": {"a": {"likert": 2, "flags": {"x": 1}}, "b": {"likert": 1}}}, "flags: found int 1"),
        ({"skipped": "bored"}, "skipped: found 'bored', accepted is one of '', 'unclear'"),
        ({"skipped": "unclear"}, "skipped: found 'unclear' and an answer"),
        ({"seconds": -1}, "seconds: found -1"),
        ({"labeler": None}, "labeler: found NoneType None"),
    ],
)
def test_what_does_not_fit_its_task_is_refused_with_its_line(tmp_path, change, message):
    labels.write_labels(tmp_path / "labels.jsonl", [LABEL])
    row = json.loads((tmp_path / "labels.jsonl").read_text(encoding="utf-8"))
    good, bad = json.dumps(row | {"labeler": "ana"}), json.dumps(row | change)
    (tmp_path / "labels.jsonl").write_text(f"{good}\n{bad}\n", encoding="utf-8")
    with pytest.raises(DataError) as raised:
        labels.read_labels(tmp_path / "labels.jsonl", [TASK])
    assert f"labels.jsonl:2: {message}" in str(raised.value)


def test_nobody_labels_a_task_twice(tmp_path):
    labels.write_labels(tmp_path / "labels.jsonl", [LABEL, LABEL])
    with pytest.raises(DataError, match="2: task: found '7' by 'mia' again"):
        labels.read_labels(tmp_path / "labels.jsonl", [TASK])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "hi ."}, "id: found nothing"),
        ({"id": "1", "prompt": "hi .", "kind": "play"}, "kind: found 'play', accepted is one of ranking"),
        ({"id": "1", "prompt": "hi .", "criteria": "short first"}, "criteria: found 'short first'"),
        ({"id": "1", "prompt": "hi .", "outputs": [{"id": "a", "text": "x"}] * 2}, "outputs: found an id twice"),
        ({"id": "1", "prompt": "hi .", "outputs": ["x"]}, "outputs: found str 'x'"),
    ],
)
def test_tasks_that_cannot_be_used_are_refused(tmp_path, row, message):
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(DataError) as raised:
        list(labels.read_label_tasks(tmp_path / "tasks.jsonl"))
    assert message in str(raised.value)


def test_a_ranking_is_a_comparison_in_which_ties_are_no_pairs():
    three = replace(TASK, outputs=(*TASK.outputs, TaskOutput(id="c", text="eggs .")))
    found = labels.comparison(three, replace(LABEL, ranks={"a": 1, "b": 2, "c": 1}))
    assert found.preferred == {(0, 1), (2, 1)}
    assert (found.finished, found.labeler, found.user) == ((True, False, True), "mia", "u1")
