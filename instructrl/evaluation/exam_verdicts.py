"""Exams whose written answers are told apart by yes and no: true or not, rude or not.

What a verdict is made of is the business of the exam; here are its shares, and their differences between models and
between prompts, item by item.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from instructrl.evaluation.exams import as_item, paired_difference
from instructrl.evaluation.suites import metrics
from instructrl.evaluation.suites.protocol import Item, Measure, Task
from instructrl.types import ExamItem

# (question, reply) -> what is so of the reply, by its name
Verdict = Callable[[str, str], Mapping[str, bool]]
# prompt -> what is so -> 1 or 0 for each item, the same items of all prompts
Verdicts = Mapping[str, Mapping[str, Sequence[float]]]


def verdict_task(items: Sequence[ExamItem], verdict: Verdict, *, max_tokens: int, stop: tuple[str, ...] = ()) -> Task:
    """An exam with one of its prompts as a task."""
    return Task(
        suite=items[0].exam,
        items=tuple(as_item(item) for item in items),
        measures=partial(shares, verdict),
        prompt=items[0].prompt,
        max_tokens=max_tokens,
        stop=stop,
    )


def verdicts(verdict: Verdict, items: Sequence[Item], answers: Sequence[Any]) -> dict[str, list[float]]:
    """What is so -> 1 or 0 for each answer, all of them written."""
    found = [verdict(item.question, answer.text) for item, answer in zip(items, answers, strict=True)]
    return {name: [float(row[name]) for row in found] for name in found[0]}


def shares(verdict: Verdict, items: Sequence[Item], answers: Sequence[Any]) -> list[Measure]:
    """How often each is so, of all items and of each group, with Wilson's intervals."""
    measures = []
    for group in ("", *sorted({item.group for item in items} - {""})):
        places = [place for place, item in enumerate(items) if group in ("", item.group)]
        some = [items[place] for place in places]
        for name, values in verdicts(verdict, some, [answers[place] for place in places]).items():
            found = metrics.share(name, some, [value == 1.0 for value in values])
            measures.append(
                Measure(
                    metric=name, value=found.value, low=found.low, high=found.high, num_items=len(some), group=group
                )
            )
    return measures


def gains(found: Mapping[str, Verdicts], pretrained: str = "GPT") -> dict[str, Any]:
    """By how many points of 100 something is so more often of a model than of the pretrained one: under each prompt and
    name, of each model, with the interval of paired differences."""
    return {
        prompt: {
            name: {
                model: paired_difference(of_model[prompt][name], base)
                for model, of_model in found.items()
                if model != pretrained
            }
            for name, base in rows.items()
        }
        for prompt, rows in found[pretrained].items()
    }


def effects(found: Mapping[str, Verdicts], basic: str) -> dict[str, Any]:
    """By how many points something is so more often with another prompt than with `basic`: under each of the others and
    name, of each model, with the interval of paired differences."""
    first = next(iter(found.values()))
    return {
        prompt: {
            name: {
                model: paired_difference(of_model[prompt][name], of_model[basic][name])
                for model, of_model in found.items()
            }
            for name in first[prompt]
        }
        for prompt in first
        if prompt != basic
    }
