"""Blind judging: tasks that show all contenders' responses to a prompt and name none, and labels read with the keys."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from instructrl.evaluation.contenders import Judgement, Performance
from instructrl.labels import TRUTHFUL_AND_HARMLESS_FIRST, Label, LabelTask, TaskKey, TaskOutput
from instructrl.types import Prompt


def blind_tasks(
    prompts: Sequence[Prompt], performances: Sequence[Performance], seed: int
) -> tuple[list[LabelTask], list[TaskKey]]:
    """One task for each prompt with one output of each contender, and who wrote which.

    The order of a task's outputs is drawn from the seed, the task and the contenders' names; in which order the
    contenders come does not matter. Equal responses of two contenders are both shown. Raises ValueError where two
    contenders have one name.
    """
    by_name = {performance.name: performance for performance in performances}
    if len(by_name) < len(performances):
        raise ValueError(f"performances: found {[p.name for p in performances]}, accepted are different names")
    tasks, keys = [], []
    for index, prompt in enumerate(prompts):
        identity = f"{index:05d}"
        names = random.Random(f"order {seed} {identity}").sample(sorted(by_name), len(by_name))
        models = {chr(ord("A") + place) if place < 26 else str(place): name for place, name in enumerate(names)}
        tasks.append(
            LabelTask(
                id=identity,
                kind="evaluation",
                criteria=TRUTHFUL_AND_HARMLESS_FIRST,
                prompt=prompt.text,
                user=prompt.user,
                source=prompt.source,
                category=prompt.category,
                outputs=tuple(
                    TaskOutput(id=output, text=by_name[name].texts[index], finished=by_name[name].finished[index])
                    for output, name in models.items()
                ),
            )
        )
        keys.append(TaskKey(id=identity, models=models, seed=seed))
    return tasks, keys


def as_judged(
    performances: Sequence[Performance], keys: Sequence[TaskKey], labels: Iterable[Label]
) -> list[Performance]:
    """The performances with the judgements of these labels in place of their own: a score is a rank, negated, so that
    it orders the responses to one prompt and says nothing across prompts.

    keys: one for each prompt, in order. labels: exactly one for each key, of any order; none may be skipped. Raises
    ValueError where that is not so.
    """
    by_task: dict[str, Label] = {}
    for label in labels:
        if label.task in by_task or label.skipped:
            raise ValueError(f"labels: found {label.task!r} twice or skipped, accepted is one answer to each task")
        by_task[label.task] = label
    if by_task.keys() != {key.id for key in keys}:
        raise ValueError(f"labels: found {len(by_task)} for {len(keys)} keys, accepted is one answer to each task")
    found: dict[str, list[Judgement]] = {performance.name: [] for performance in performances}
    for key in keys:
        for name, judgement in _judgements(key, by_task[key.id]).items():
            found[name].append(judgement)
    return [replace(performance, judgements=found[performance.name]) for performance in performances]


def _judgements(key: TaskKey, label: Label) -> Mapping[str, Judgement]:
    """By model. Questions that do not apply are left out, so that each rate has its own denominator."""
    return {
        name: Judgement(
            score=-float(label.ranks[output]),
            likert=float(label.outputs[output].likert),
            metadata={flag: held for flag, held in label.outputs[output].flags.items() if held is not None},
        )
        for output, name in key.models.items()
    }
