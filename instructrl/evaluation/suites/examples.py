"""Which file of a set is read, and the examples that stand in a prompt."""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from instructrl.evaluation.suites.layouts import LayoutError
from instructrl.evaluation.suites.settings import SuiteConfig

RecordT = TypeVar("RecordT")
# (file) -> its records
Readers = Mapping[str, Callable[[Path], list[RecordT]]]


def optional(*readers: Readers) -> tuple[str, ...]:
    """The names of all files of tables of readers, as a suite lists files that may be missing."""
    return tuple(f"?{name}" for table in readers for name in table)


def shot_counts(config: SuiteConfig, few: int) -> tuple[int, ...]:
    """The numbers of examples that are asked for, where the paper gives `few`."""
    return {"zero": (0,), "few": (few,), "both": (0, few)}[config.shots]


def read_first(readers: Readers, files: Mapping[str, Path], suite: str, why: str = "") -> list:
    """The records of the first file of the table that is there. why: it is needed.

    Raises LayoutError where none is there, and what the reader raises.
    """
    for name, read in readers.items():
        if name in files:
            return read(files[name])
    folder = str(next(iter(files.values())).parent) if files else f"the folder of {suite}"
    raise LayoutError(f"{folder}: found no {' or '.join(readers)}, accepted is one of them{why}")


def draw(
    candidates: Sequence[RecordT],
    count: int,
    key: Callable[[RecordT], str],
    evaluated: Collection[str],
    *,
    task: str,
    seed: int,
) -> list[RecordT]:
    """Different records to show as examples: drawn with the seed, the same for every item of a task.

    key: the text of a record that tells whether it is among those that are evaluated. Raises LayoutError where fewer
    than `count` are left.
    """
    order = random.Random(f"examples of {task} {seed}").sample(range(len(candidates)), len(candidates))
    drawn: dict[str, RecordT] = {}
    for place in order:
        if len(drawn) == count:
            break
        if (text := key(candidates[place])) not in evaluated:
            drawn.setdefault(text, candidates[place])
    if len(drawn) < count:
        raise LayoutError(
            f"{task}: found {len(drawn)} examples that are not evaluated themselves, accepted are at least {count}"
        )
    return list(drawn.values())
