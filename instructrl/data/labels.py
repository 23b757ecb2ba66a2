"""Labels as files: tasks for labelers, the keys that say who wrote what, and what labelers made of the tasks.

One JSON object a line, with the fields of the records in `instructrl/labels.py`; `outputs` of a task is a list of
objects, of a label an object by output id. Whoever fills labels in, they are checked here, once.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from instructrl import durable
from instructrl.data.messages import ColumnError, shown, text_of
from instructrl.data.readers import DataError, Records
from instructrl.data.rows import open_rows
from instructrl.labels import CRITERIA, KINDS, SKIPS, Label, LabelTask, OutputLabel, TaskKey, TaskOutput
from instructrl.types import Comparison

_TEXTS = ("id", "prompt", "kind", "criteria", "user", "source", "category")
_CHOICES = {"kind": KINDS, "criteria": CRITERIA}


def read_label_tasks(path: str | Path) -> Records[LabelTask]:
    """Tasks; a row that cannot be used raises DataError with its line when it is read."""
    return Records(open_rows(path, (*_TEXTS, "outputs")), _parse_task)


def read_task_keys(path: str | Path) -> Records[TaskKey]:
    """Keys, as `read_label_tasks`."""
    return Records(open_rows(path, ("id", "models", "seed")), _parse_key)


def read_labels(path: str | Path, tasks: Iterable[LabelTask]) -> list[Label]:
    """All labels of a file. Raises DataError for the first that does not fit its task, or that a labeler gave twice."""
    known = {task.id: task for task in tasks}
    records = Records(open_rows(path, Label.__slots__), _parse_label)
    found: dict[tuple[str, str], Label] = {}
    for place in range(len(records)):
        label = records[place]
        try:
            check_label(label, known)
            if (label.task, label.labeler) in found:
                raise ColumnError("task", f"{label.task!r} by {label.labeler!r} again", "is one label of each labeler")
        except ColumnError as error:
            raise DataError(f"{records.where(place)}: {error}") from None
        found[label.task, label.labeler] = label
    return [*found.values()]


def write_labels(path: str | Path, records: Iterable[LabelTask | TaskKey | Label]) -> None:
    """Records of one kind, in the order that they come in; the file appears whole or not at all."""
    with durable.whole_file(Path(path)) as file:
        for record in records:
            file.write(f"{json.dumps(asdict(record), ensure_ascii=False, allow_nan=False)}\n".encode())


def check_label(label: Label, tasks: Mapping[str, LabelTask]) -> None:
    """Raise ColumnError unless a label answers one of these tasks: a Likert score and a rank for each output, and for
    no other one, or a reason for skipping it."""
    task = tasks.get(label.task)
    if task is None:
        raise ColumnError("task", repr(label.task), "is the id of a task")
    if label.skipped:
        if label.outputs or label.ranks:
            raise ColumnError("skipped", f"{label.skipped!r} and an answer", "is one of both")
        return
    wanted = {output.id for output in task.outputs}
    for column, given in (("outputs", set(label.outputs)), ("ranks", set(label.ranks))):
        if unknown := given - wanted:
            raise ColumnError(column, f"{min(unknown)!r}", f"are the outputs of the task, {', '.join(sorted(wanted))}")
        if missing := wanted - given:
            raise ColumnError(column, f"none of the output {min(missing)!r}", "is one of each output")


def comparison(task: LabelTask, label: Label) -> Comparison:
    """A ranking as the reward model learns from it."""
    ranks = [label.ranks[output.id] for output in task.outputs]
    return Comparison(
        prompt=task.prompt,
        completions=tuple(output.text for output in task.outputs),
        preferred=Comparison.pairs_from_ranks(ranks),
        user=task.user,
        source=task.source,
        category=task.category,
        labeler=label.labeler,
        finished=tuple(output.finished for output in task.outputs),
    )


def _parse_task(row: Mapping[str, Any]) -> LabelTask:
    texts = {name: text_of(row[name], name) for name in _TEXTS if row.get(name) is not None}
    for name in ("id", "prompt"):
        if name not in texts:
            raise ColumnError(name, "nothing", "is a text")
    for name, accepted in _CHOICES.items():
        if texts.get(name, accepted[0]) not in accepted:
            raise ColumnError(name, repr(texts[name]), f"is one of {', '.join(accepted)}")
    outputs = tuple(_parse_output(value) for value in _of(list, row.get("outputs", []), "outputs"))
    if len({output.id for output in outputs}) < len(outputs):
        raise ColumnError("outputs", "an id twice", "are ids that tell them apart")
    return LabelTask(**texts, outputs=outputs)


def _parse_output(value: Any) -> TaskOutput:
    row = _of(dict, value, "outputs")
    return TaskOutput(
        id=text_of(row.get("id"), "outputs.id"),
        text=text_of(row.get("text"), "outputs.text"),
        finished=_of(bool, row.get("finished", True), "outputs.finished"),
    )


def _parse_key(row: Mapping[str, Any]) -> TaskKey:
    models = _of(dict, row.get("models"), "models")
    return TaskKey(
        id=text_of(row.get("id"), "id"),
        models={output: text_of(name, "models") for output, name in models.items()},
        seed=_of(int, row.get("seed", 0), "seed"),
    )


def _parse_label(row: Mapping[str, Any]) -> Label:
    skipped = text_of(row.get("skipped") or "", "skipped")
    if skipped not in SKIPS:
        raise ColumnError("skipped", repr(skipped), f"is one of {', '.join(map(repr, SKIPS))}")
    seconds = row.get("seconds")
    if seconds is not None and (_of((int, float), seconds, "seconds") < 0):
        raise ColumnError("seconds", f"{seconds}", "are at least 0")
    demonstration = row.get("demonstration")
    outputs = _of(dict, row.get("outputs") or {}, "outputs")
    ranks = _of(dict, row.get("ranks") or {}, "ranks")
    return Label(
        task=text_of(row.get("task"), "task"),
        labeler=text_of(row.get("labeler"), "labeler"),
        seconds=seconds,
        skipped=skipped,
        prompt_flags={k: _of(bool, v, "prompt_flags") for k, v in (row.get("prompt_flags") or {}).items()},
        demonstration=None if demonstration is None else text_of(demonstration, "demonstration"),
        outputs={output: _parse_output_label(value) for output, value in outputs.items()},
        ranks={output: _from_one(rank, "ranks", None) for output, rank in ranks.items()},
    )


def _parse_output_label(value: Any) -> OutputLabel:
    row = _of(dict, value, "outputs")
    flags = _of(dict, row.get("flags") or {}, "flags")
    return OutputLabel(
        likert=_from_one(row.get("likert"), "likert", 7),
        flags={name: None if held is None else _of(bool, held, "flags") for name, held in flags.items()},
        notes=text_of(row.get("notes", ""), "notes"),
    )


def _from_one(value: Any, column: str, most: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        raise ColumnError(column, shown(value), "is a whole number from 1" + (f" to {most}" if most else ""))
    return value


def _of(kind: type | tuple[type, ...], value: Any, column: str) -> Any:
    """The value, where it is of this kind; true and false are no numbers."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise ColumnError(column, shown(value), f"is a JSON value that reads as {names}")
    return value
