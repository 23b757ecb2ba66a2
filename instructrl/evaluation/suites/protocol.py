"""What a suite is: tasks of items, the answers of a model to them, and what is measured of these."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instructrl.evaluation.suites.settings import SuiteConfig
from instructrl.rollout.options import Likelihoods


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What a model is asked.

    context: the text before the answer, whole: instruction and examples are part of it. options: the texts whose
    likelihoods are asked for; empty where an answer is to be written. right: indices of the options that are right.
    references: what a written answer is compared with. question: what is asked, without its prompt, for judges. group:
    what items are reported by as well, "" for nothing. weight: of the item in a mean, of the task's own scale. cluster:
    items of one (a passage, a dialogue) resemble each other, so that intervals take clusters as independent, not items;
    "" is a cluster of its own.
    """

    context: str
    options: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    references: tuple[str, ...] = ()
    question: str = ""
    group: str = ""
    weight: float = 1.0
    cluster: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A written answer. text: without what ended it. finished: it ended by itself or at a stop text, not at the limit
    of its length."""

    text: str
    finished: bool


Answer = Written | Likelihoods


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A number that a suite gives of a model. metric: its name. unit: "share" of 0 to 1, "bits", "points" of 0 to
    100, or "" for a plain number. low, high: its 95% interval, None where there is none. group: of which items, "" for
    all."""

    metric: str
    value: float
    low: float | None
    high: float | None
    num_items: int
    unit: str = "share"
    group: str = ""


# (items, a model's answers to them, in their order, at least one) -> what is measured of them
Measures = Callable[[Sequence[Any], Sequence[Any]], list[Measure]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Items of a suite, asked in one way.

    suite: its name in the table. prompt: name of the wording, "" where there is one alone. shots: examples in each
    context. max_tokens: of a written answer. stop: texts at which it is cut. notes: what people have to know of
    its numbers, a line each.
    """

    suite: str
    items: tuple[Item, ...]
    measures: Measures
    prompt: str = ""
    shots: int = 0
    max_tokens: int = 64
    stop: tuple[str, ...] = ("\n",)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What tells it from the other tasks of all suites."""
        return " ".join(part for part in (self.suite, self.prompt, f"{self.shots}-shot" if self.shots else "") if part)

    @property
    def is_written(self) -> bool:
        """Whether its answers are written, not options whose likelihoods are asked for."""
        return not self.items[0].options

    def at(self, places: Sequence[int]) -> "Task":
        """The task of these items."""
        return replace(self, items=tuple(self.items[place] for place in places))


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A public set, as the table of suites has it.

    title: for people. what: it measures, in a few words. files: that it reads, of its folder; one that begins with "?"
    may be missing. folder: where they lie, if it has not the suite's name. tasks: (paths of the files that are there,
    by their names in `files` without "?"; settings) -> its tasks, with all items: that fewer are asked for is not its
    business. It raises ValueError for a file of another layout, naming file and place.
    """

    title: str
    what: str
    files: tuple[str, ...]
    tasks: Callable[[Mapping[str, Path], SuiteConfig], list[Task]]
    folder: str = ""
