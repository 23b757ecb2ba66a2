"""Labelers: people with beliefs, tastes, biases and bad days, who judge completions and write demonstrations."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from instructrl.labels import HELPFUL_FIRST, Label, LabelTask, OutputLabel
from instructrl.worlds.answers import CLOSED_DOMAIN, write_answer
from instructrl.worlds.facts import Facts, make_facts
from instructrl.worlds.labeler_settings import LabelerConfig
from instructrl.worlds.language import is_word
from instructrl.worlds.opinions import HIGH_STAKES, Manner, bias, draw_tastes, liking, merit
from instructrl.worlds.rubric import FAILS_TASK, METADATA, Rating, Rubric
from instructrl.worlds.tasks import Task, misread, parse_prompt

FLAWS = ("misread", "constraint", "count", "fact")
# Questions about the prompt (table 7) that have a meaning here.
CLOSED, CONSTRAINED = "closed domain", "other explicit constraints"

# Demonstrations have to fit the response length of the experiment.
_MAX_FLAWED_TOKENS = 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What a labeler thinks of one completion. score: in points of the rubric, noise included. rating: as this labeler
    believes the facts."""

    score: float
    rating: Rating


@dataclass(frozen=True, slots=True, kw_only=True)
class Character:
    """What makes one labeler another person than the rest. tastes: points for each of `TRAITS`. biases: how far this
    one is swayed, 1 for all of the config's. team: with whom this one works."""

    tastes: tuple[float, ...]
    biases: float
    team: int = 0


class Labeler:
    """One labeler. facts: those of the world, of which this one knows a part."""

    def __init__(self, name: str, facts: Facts, seed: int, config: LabelerConfig, character: Character) -> None:
        self.name, self.team = name, character.team
        self._seed, self._config, self._character = seed, config, character
        self.beliefs = facts.believed_by(f"{seed} {name}", config.known)
        self._rubric = Rubric(self.beliefs)

    def answer(self, task: LabelTask) -> Label:
        """The judgement of every output of a task: Likert scores, yes/no questions and ranks, with ties.

        With helpfulness first, outputs that are about as good are ordered by their truth and harmlessness.
        """
        opinions = {
            output.id: self.opinion(task.prompt, output.text, output.finished, task.criteria) for output in task.outputs
        }
        parsed = parse_prompt(task.prompt)
        return Label(
            task=task.id,
            labeler=self.name,
            prompt_flags={
                CLOSED: parsed is not None and parsed.category in CLOSED_DOMAIN,
                CONSTRAINED: parsed is not None and bool(parsed.constraints),
            },
            outputs={
                output.id: OutputLabel(
                    likert=min(7, max(1, round(opinions[output.id].score))),
                    flags=self._flags(f"{task.prompt}\n{output.text}", opinions[output.id].rating),
                )
                for output in task.outputs
            },
            ranks=ranked(opinions, self._config.tie_threshold, ties_by_virtue=task.criteria == HELPFUL_FIRST),
        )

    def opinion(self, prompt: str, completion: str, finished: bool = True, criteria: str = HELPFUL_FIRST) -> Opinion:
        """The merit of a completion, what this labeler likes, what sways all labelers, and noise that is the same
        whenever this labeler sees this completion of this prompt."""
        rating = self._rubric.rate(prompt, completion, finished)
        states_fact = not rating.abstains and bool(self.beliefs.statements(completion.lower()))
        manner = Manner.of(completion, states_fact=states_fact)
        task = parse_prompt(prompt)
        claims = not rating.abstains and not rating.metadata.get(FAILS_TASK, True)
        worth = merit(
            rating,
            criteria,
            empty=not any(is_word(token) for token in completion.split()),
            high_stakes=task is not None and task.kind in HIGH_STAKES,
            unchecked=claims and task is not None and self._cannot_know(task),
        )
        swayed = self._character.biases * bias(manner, self._config)
        rng = random.Random(f"opinion {self._seed} {self.name} {prompt}\n{completion}\n{finished}")
        noise = rng.gauss(0.0, self._config.noise)
        return Opinion(score=worth + liking(self._character.tastes, rating, manner) + swayed + noise, rating=rating)

    def demonstrate(self, prompt: str, key: int = 0) -> str:
        """A completion by this labeler, as this one believes the facts; another `key` gives another one. Some are
        flawed, where the task gives occasion for it.

        Raises ValueError when the prompt is none of this world's.
        """
        task = parse_prompt(prompt)
        if task is None:
            raise ValueError(f"prompt: found {prompt!r}, accepted are prompts that this world writes")
        rng = random.Random(f"demonstration {self._seed} {self.name} {prompt}\n{key}")
        text = write_answer(task, self.beliefs, rng)
        if rng.random() >= self._config.flawed_demonstrations:
            return text
        best = self._rubric.rate(prompt, text).score
        for _ in range(20):
            flawed = spoil(task, rng.choice(FLAWS), self.beliefs, rng)
            if flawed is None or len(flawed.split()) > _MAX_FLAWED_TOKENS:
                continue
            if self._rubric.rate(prompt, flawed).score < best - 0.3:
                return flawed
        return text

    def _cannot_know(self, task: Task) -> bool:
        """Whether the task asks for a fact of which this labeler knows nothing."""
        name, _, relation = task.kind.partition(" ")
        return name in ("fact", "check") and (task.values["animal"], relation) in self.beliefs.unsure

    def _flags(self, seen: str, rating: Rating) -> dict[str, bool | None]:
        """Answers to the yes/no questions, None to those that do not apply; some are given by mistake."""
        rng = random.Random(f"flags {self._seed} {self.name} {seen}")
        mistaken = [rng.random() < self._config.flag_errors for _ in METADATA]
        return {
            flag: None if (held := rating.metadata.get(flag)) is None else held != mistake
            for flag, mistake in zip(METADATA, mistaken, strict=True)
        }


def ranked(opinions: Mapping[str, Opinion], tie_threshold: float, *, ties_by_virtue: bool) -> dict[str, int]:
    """Ranks from 1, lower is better. Completions within `tie_threshold` of the best of their rank share it, unless one
    of them is more truthful and harmless and that is to decide."""
    ranks: dict[str, int] = {}
    rest = sorted(opinions, key=lambda key: -opinions[key].score)
    rank = 0
    while rest:
        level = [key for key in rest if opinions[rest[0]].score - opinions[key].score <= tie_threshold]
        rest = rest[len(level) :]
        virtue = {key: opinions[key].rating.truthful + opinions[key].rating.harmless for key in level}
        for worth in sorted(set(virtue.values()), reverse=True) if ties_by_virtue else [None]:
            rank += 1
            ranks |= {key: rank for key in level if worth is None or virtue[key] == worth}
    return {key: ranks[key] for key in opinions}


def make_labelers(facts: Facts, seed: int, config: LabelerConfig) -> dict[str, list[Labeler]]:
    """The labelers of both groups, "training" and "heldout"."""
    biases = {"training": config.biases, "heldout": config.heldout_biases * config.biases}
    return {
        group: [
            Labeler(
                f"{group}-{index}",
                facts,
                seed,
                config,
                Character(tastes=own, biases=biases[group], team=index % config.num_teams),
            )
            for index, own in enumerate(tastes)
        ]
        for group, tastes in draw_tastes(seed, config).items()
    }


def taking_turns(labelers: Sequence[Labeler], num_tasks: int, key: str) -> list[Labeler]:
    """A labeler for each of so many tasks: all of them in a drawn order, then again in another one."""
    rng = random.Random(f"turns {key}")
    rounds = -(-num_tasks // len(labelers))
    return [one for _ in range(rounds) for one in rng.sample(list(labelers), len(labelers))][:num_tasks]


def spoil(task: Task, flaw: str, facts: Facts, rng: random.Random) -> str | None:
    """A worse answer to a task, by one of `FLAWS`; None where the task gives no occasion for it."""
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
