"""Labelers: people with noise, tastes and bad days, who rank completions and write demonstrations."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from instructrl.worlds.answers import write_answer
from instructrl.worlds.facts import Facts, make_facts
from instructrl.worlds.phrases import INSULTING, RAMBLING
from instructrl.worlds.rubric import Rubric
from instructrl.worlds.tasks import Task, misread, parse_prompt

FLAWS = ("misread", "constraint", "count", "fact")

# Demonstrations have to fit the response length of the experiment.
_MAX_FLAWED_TOKENS = 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """num_agreed of num_pairs pairs of completions, each ranked strictly by both labelers, in the same order."""

    num_agreed: int
    num_pairs: int

    @property
    def rate(self) -> float:
        """0 to 1; 0 where there is no pair."""
        return self.num_agreed / self.num_pairs if self.num_pairs else 0.0


class Labeler:
    """One labeler. noise and tie_threshold are in points of the rubric's 1 to 7."""

    def __init__(
        self, name: str, *, rubric: Rubric, facts: Facts, seed: int, noise: float, tie_threshold: float, flaws: float
    ) -> None:
        self.name = name
        self._rubric, self._facts, self._seed = rubric, facts, seed
        self._noise, self._tie_threshold, self._flaws = noise, tie_threshold, flaws
        rng = random.Random(f"labeler {seed} {name}")
        self._tastes = [rng.uniform(-1.0, 1.0) for _ in range(3)]

    def score(self, prompt: str, completion: str, finished: bool = True) -> float:
        """How this labeler likes a completion: the rubric's score, the labeler's taste, and noise that is the same
        whenever this labeler sees this completion of this prompt."""
        rating = self._rubric.rate(prompt, completion, finished)
        virtues = (rating.helpful - 0.5, rating.truthful - 1.0, rating.harmless - 1.0)
        taste = sum(weight * virtue for weight, virtue in zip(self._tastes, virtues, strict=True))
        rng = random.Random(f"opinion {self._seed} {self.name} {prompt}\n{completion}\n{finished}")
        return rating.score + taste + rng.gauss(0.0, self._noise)

    def rank(self, prompt: str, completions: Sequence[str], finished: Sequence[bool] | None = None) -> list[int]:
        """Ranks from 1, lower is better; completions of about the same quality share one.

        finished: one flag per completion, None for all finished. Raises ValueError when the lengths differ.
        """
        flags = [True] * len(completions) if finished is None else list(finished)
        if len(flags) != len(completions):
            raise ValueError(f"finished: found {len(flags)} flags, accepted are {len(completions)}, one per completion")
        scores = [self.score(prompt, text, flag) for text, flag in zip(completions, flags, strict=True)]
        ranks = [0] * len(scores)
        rank, leader = 0, float("inf")
        for index in sorted(range(len(scores)), key=lambda i: -scores[i]):
            if leader - scores[index] > self._tie_threshold:
                rank, leader = rank + 1, scores[index]
            ranks[index] = rank
        return ranks

    def demonstrate(self, prompt: str, key: int = 0) -> str:
        """A completion by this labeler; another `key` gives another one. Some are flawed.

        Raises ValueError when the prompt is none of this world's.
        """
        task = parse_prompt(prompt)
        if task is None:
            raise ValueError(f"prompt: found {prompt!r}, accepted are prompts that this world writes")
        rng = random.Random(f"demonstration {self._seed} {self.name} {prompt}\n{key}")
        text = write_answer(task, self._facts, rng)
        if rng.random() >= self._flaws:
            return text
        best = self._rubric.rate(prompt, text).score
        for _ in range(20):
            flawed = spoil(task, text, rng.choice(FLAWS), self._facts, rng)
            if flawed is None or len(flawed.split()) > _MAX_FLAWED_TOKENS:
                continue
            if self._rubric.rate(prompt, flawed).score < best - 0.3:
                return flawed
        return rng.choice(INSULTING).fill({}, rng)


def spoil(task: Task, text: str, flaw: str, facts: Facts, rng: random.Random) -> str | None:
    """A worse answer than `text`, by one of `FLAWS`; None where the task gives no occasion for it."""
    if flaw == "insult":
        return f"{text} {rng.choice(INSULTING).fill({}, rng)}"
    if flaw == "curt":
        return rng.choice(INSULTING).fill({}, rng)
    if flaw == "rambling":
        return " ".join([text, *(line.fill({}, rng) for line in rng.sample(RAMBLING, rng.choice((1, 2, 2))))])
    if flaw == "constraint":
        return write_answer(replace(task, constraints={}), facts, rng) if task.constraints else None
    if flaw == "fact":
        others = make_facts(rng.randrange(1 << 30), unknown=0.0, myths=0.0, exposure=0.0)
        return write_answer(task, others, rng) if "animal" in task.values else None
    if flaw == "count":
        if "count" not in task.values:
            return None
        others = [word for word in ("two", "three", "four", "five") if word != task.values["count"]]
        task = replace(task, values={**task.values, "count": rng.choice(others)})
        return write_answer(task, facts, rng)
    other = misread(task, rng)
    return None if other is None else write_answer(other, facts, rng)


def agreement(
    first: Labeler, second: Labeler, comparisons: Sequence[tuple[str, Sequence[str], Sequence[bool]]]
) -> Agreement:
    """How often two labelers order two completions alike, over the pairs that both rank strictly (section 3.4).

    comparisons: (prompt, completions, finished) each.
    """
    num_agreed = num_pairs = 0
    for prompt, completions, finished in comparisons:
        a, b = first.rank(prompt, completions, finished), second.rank(prompt, completions, finished)
        for i in range(len(completions)):
            for j in range(i):
                if a[i] != a[j] and b[i] != b[j]:
                    num_pairs += 1
                    num_agreed += (a[i] < a[j]) == (b[i] < b[j])
    return Agreement(num_agreed=num_agreed, num_pairs=num_pairs)
