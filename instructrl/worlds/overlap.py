"""What of held-out prompts a training set already holds: word for word, or as the same task."""

import random
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator

from instructrl.worlds.kinds import KINDS
from instructrl.worlds.tasks import parse_prompt


class Quotes:
    """Finds prompts that stand word for word in longer text. prompts: in the world's form, tokens between blanks."""

    def __init__(self, prompts: Iterable[str]) -> None:
        by_first: defaultdict[str, list[str]] = defaultdict(list)
        for prompt in prompts:
            by_first[prompt.split()[0]].append(f"{prompt} ")
        self._by_first = {token: tuple(found) for token, found in by_first.items()}

    def stand_in(self, text: str) -> bool:
        """Whether any of the prompts is part of the text."""
        return any(True for _ in self._found(text))

    def found_in(self, texts: Iterable[str]) -> set[str]:
        """Those of the prompts that are part of any of the texts."""
        return {prompt for text in texts for prompts in self._found(text) for prompt in prompts}

    def _found(self, text: str) -> Iterator[list[str]]:
        padded, start = f"{text} ", 0
        for token in text.split(" "):
            candidates = self._by_first.get(token, ())
            if candidates and padded.startswith(candidates, start):
                yield [prompt[:-1] for prompt in candidates if padded.startswith(prompt, start)]
            start += len(token) + 1


def task_key(prompt: str) -> Hashable:
    """What a prompt asks for, whatever its wording, opener and constraints; the prompt itself where that is unclear."""
    task = parse_prompt(prompt)
    return prompt if task is None else (task.kind, tuple(sorted(task.values.items())))


def is_unseen(prompt: str) -> bool:
    """Whether a prompt is for a reserved task, which no training text holds."""
    task = parse_prompt(prompt)
    return task is not None and task.is_reserved


def tasks_found(prompts: Iterable[str], texts: Iterable[str]) -> set[Hashable]:
    """The tasks of prompts, as `task_key` has them, that stand in any of their wordings in one of the texts."""
    by_wording: defaultdict[str, set[Hashable]] = defaultdict(set)
    for prompt in prompts:
        task = parse_prompt(prompt)
        if task is not None:
            for wording in KINDS[task.kind].wordings:
                if set(wording.slots) == task.values.keys():
                    by_wording[wording.fill(task.values, random.Random(0))].add(task_key(prompt))
    found = Quotes(by_wording).found_in(texts)
    return set().union(*(by_wording[text] for text in found))


def num_known_tasks(prompts: Iterable[str], training: Iterable[str]) -> int:
    """How many of the prompts ask for what a training prompt asks for."""
    known = {task_key(prompt) for prompt in training}
    return sum(task_key(prompt) in known for prompt in prompts)
