"""Prompts of a set: an instruction, examples drawn from its training split, and the question in the same form.

A context ends before the space in front of its answer, as in `Answer:`, and an option begins with that space: ` Yes`.
Written answers are stripped before they are compared.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from instructrl.evaluation.suites import metrics
from instructrl.evaluation.suites.layouts import LayoutError
from instructrl.evaluation.suites.protocol import Item, Measures, Suite, Task
from instructrl.evaluation.suites.settings import SuiteConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question of a set. block: all of it, up to its answer. answer: that stands behind it where it is an example, ""
    where it cannot be one. text: what it is about; a text is never both evaluated and an example. item: what is asked,
    without a context."""

    block: str
    answer: str
    text: str
    item: Item


# name of a file -> (its path) -> its questions
Readers = Mapping[str, Callable[[Path], list[Question]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a set is asked. instruction: that opens each prompt, with the line breaks that follow it. shots: of a prompt
    with examples; 0 where the paper gives none. library: that its measures need, "" for none."""

    suite: str
    instruction: str
    shots: int
    measures: Measures
    max_tokens: int = 64
    library: str = ""

    def as_suite(
        self, title: str, what: str, evaluated: Readers, trained: Readers, others: Sequence[str] = ()
    ) -> Suite:
        """evaluated, trained: of each the first file that is there is read. others: names of files that belong to these
        and are not named in the tables."""
        names = dict.fromkeys([*evaluated, *trained, *others])
        files = tuple(f"?{name}" for name in names)
        return Suite(title=title, what=what, files=files, tasks=partial(self.tasks, evaluated, trained))

    def tasks(self, evaluated: Readers, trained: Readers, files: Mapping[str, Path], config: SuiteConfig) -> list[Task]:
        """One for each number of examples that is asked for; the examples are the same for all items of a task."""
        questions = _read_first(evaluated, files, self.suite)
        if self.library:  # before hours are spent on answers
            metrics.library(self.library)
        texts = {question.text for question in questions}
        made = []
        for shots in self._shot_counts(config):
            blocks = []
            if shots:
                candidates = _read_first(trained, files, self.suite, ", which examples are drawn from")
                examples = draw(candidates, shots, texts, task=self.suite, seed=config.seed)
                blocks = [f"{example.block} {example.answer}" for example in examples]
            opening = self.instruction + "".join(f"{block}\n\n" for block in blocks)
            items = tuple(replace(question.item, context=opening + question.block) for question in questions)
            made.append(
                Task(suite=self.suite, items=items, measures=self.measures, shots=shots, max_tokens=self.max_tokens)
            )
        return made

    def _shot_counts(self, config: SuiteConfig) -> tuple[int, ...]:
        few = (self.shots,) if self.shots else ()
        return {"zero": (0,), "few": few or (0,), "both": (0, *few)}[config.shots]


def _read_first(readers: Readers, files: Mapping[str, Path], suite: str, why: str = "") -> list[Question]:
    """The questions of the first file of the table that is there. why: it is needed."""
    for name, read in readers.items():
        if name in files:
            return read(files[name])
    folder = str(next(iter(files.values())).parent) if files else f"the folder of {suite}"
    raise LayoutError(f"{folder}: found no {' or '.join(readers)}, accepted is one of them{why}")


def draw(
    candidates: Sequence[Question], count: int, evaluated: Collection[str], *, task: str, seed: int
) -> list[Question]:
    """Questions about different texts, none of them evaluated, to show with their answers: drawn with the seed.

    Raises LayoutError where fewer than `count` can be had.
    """
    order = random.Random(f"examples of {task} {seed}").sample(range(len(candidates)), len(candidates))
    drawn: dict[str, Question] = {}
    for candidate in (candidates[place] for place in order):
        if len(drawn) == count:
            break
        if candidate.answer and candidate.text not in evaluated:
            drawn.setdefault(candidate.text, candidate)
    if len(drawn) < count:
        raise LayoutError(
            f"{task}: found {len(drawn)} examples that are not evaluated themselves, accepted are at least {count}"
        )
    return list(drawn.values())
