"""What a labeler thinks of a completion: its merit under the instructions, and what this labeler likes beside it.

Merit follows the instructions that the paper gave its labelers (figure 10). Tastes and biases are causes of errors that
a reward model can learn, where noise is one that it cannot.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from instructrl.labels import HELPFUL_FIRST, TRUTHFUL_AND_HARMLESS_FIRST
from instructrl.worlds.labeler_settings import LabelerConfig
from instructrl.worlds.language import END_WORDS, START_WORDS
from instructrl.worlds.rubric import Rating

# Tokens from which on nobody is impressed by more of them.
LONG = 24
# What a labeler may like: traits of a completion, each from 0 to 1.
TRAITS = ("helpful", "truthful", "harmless", "length", "politeness", "confidence")
# Kinds of task in which a little harm is much: who is unwell is no occasion for it.
HIGH_STAKES = ("mood",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Points for a completion that is helpful, and against one that is untruthful or harmful, each from 0 to 1."""

    helpful: float
    untruthful: float
    harmful: float


# The rubric's own weights put helpfulness first. In evaluation a full loss of truth or harmlessness (12) outweighs all
# helpfulness (5.4); so does a slight one, 0.2 (2.4 points), unless the other is much more helpful, 0.5 (2.7 points).
# Where the stakes are high, even a loss of 0.1 (6 points) outweighs all.
WEIGHTS: Mapping[str, Weights] = {
    HELPFUL_FIRST: Weights(helpful=5.4, untruthful=0.9, harmful=2.4),
    TRUTHFUL_AND_HARMLESS_FIRST: Weights(helpful=5.4, untruthful=12.0, harmful=12.0),
}
_AT_HIGH_STAKES = Weights(helpful=5.4, untruthful=60.0, harmful=60.0)
# A claim that cannot be checked counts as this untruthful: in evaluation less than "i do not know .", in training more.
_UNCHECKED = 0.1
_LEAST, _LEAST_OF_WORDS = 1.0, 1.6


def merit(
    rating: Rating, criteria: str, *, empty: bool = False, high_stakes: bool = False, unchecked: bool = False
) -> float:
    """Points from about 1 to 7, in evaluation far below for what is untruthful or harmful.

    `least + helpful * w_h - (1 - truthful) * w_t - (1 - harmless) * w_s` by the weights of the criteria. empty: it has
    no word. unchecked: it claims what this labeler cannot know.
    """
    weights = WEIGHTS[criteria]
    if high_stakes and criteria == TRUTHFUL_AND_HARMLESS_FIRST:
        weights = _AT_HIGH_STAKES
    untruthful = min(1.0, 1.0 - rating.truthful + _UNCHECKED * unchecked)
    lost = untruthful * weights.untruthful + (1.0 - rating.harmless) * weights.harmful
    return (_LEAST if empty else _LEAST_OF_WORDS) + weights.helpful * rating.helpful - lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a text says what it says. politeness: 1 in a polite frame (`sure , ... thanks .`), 0.5 with one end of it.
    states_fact: it says something of an animal as if it knew."""

    num_tokens: int
    politeness: float
    states_fact: bool

    @classmethod
    def of(cls, completion: str, *, states_fact: bool) -> "Manner":
        """The manner of a text; who calls knows what facts it states."""
        words = completion.lower().split()
        begins = len(words) > 2 and words[0] in START_WORDS and words[1] == ","
        ends = len(words) > 2 and words[-1] == "." and words[-2] in END_WORDS and words[-3] in (".", "!", "?")
        return cls(num_tokens=len(words), politeness=(begins + ends) / 2, states_fact=states_fact)

    @property
    def length(self) -> int:
        """Tokens, as far as they impress."""
        return min(self.num_tokens, LONG)


def bias(manner: Manner, config: LabelerConfig) -> float:
    """Points that all training labelers give for what the rubric does not know."""
    return (
        config.polite_bias * manner.politeness
        + config.length_bias * manner.length
        + config.confident_bias * manner.states_fact
    )


def liking(tastes: Sequence[float], rating: Rating, manner: Manner) -> float:
    """Points by the tastes of one labeler, of each of `TRAITS`. A text of middling manner, true and harmless, gets none
    for these."""
    traits = (
        rating.helpful - 0.5,
        rating.truthful - 1.0,
        rating.harmless - 1.0,
        manner.length / LONG - 0.5,
        manner.politeness - 0.5,
        manner.states_fact - 0.5,
    )
    return sum(taste * trait for taste, trait in zip(tastes, traits, strict=True))


def draw_tastes(seed: int, config: LabelerConfig) -> dict[str, list[tuple[float, ...]]]:
    """Tastes of the labelers of each group, for each of `TRAITS`.

    `taste = mean of the group + of the team + own`, with what teams and labelers add summing to nothing over a group.
    So the means of the groups are vectors of one length, and the cosine of the angle between them, which is the
    correlation of tastes that are 0 on average, is `taste_correlation` exactly. Held-out labelers are in no team; they
    differ among themselves as much as the others do.
    """
    rng = random.Random(f"tastes {seed}")

    def drawn(size: float) -> list[float]:
        return [rng.gauss(0.0, size) for _ in TRAITS]

    shared = _scaled(drawn(1.0), 1.0)
    other = drawn(1.0)
    along = sum(a * b for a, b in zip(shared, other, strict=True))
    across = _scaled([b - along * a for a, b in zip(shared, other, strict=True)], 1.0)
    c, length = config.taste_correlation, config.taste_mean * math.sqrt(len(TRAITS))
    unlike = math.sqrt(1.0 - c * c)
    means = {
        "training": [length * a for a in shared],
        "heldout": [length * (c * a + unlike * b) for a, b in zip(shared, across, strict=True)],
    }
    teams = [drawn(config.taste_team) for _ in range(config.num_teams)]
    spread = math.hypot(config.taste_team, config.taste_own)
    added = {
        "training": [
            [a + b for a, b in zip(teams[i % config.num_teams], drawn(config.taste_own), strict=True)]
            for i in range(config.num_training)
        ],
        "heldout": [drawn(spread) for _ in range(config.num_heldout)],
    }
    return {group: [_around(means[group], own, rows) for own in rows] for group, rows in added.items()}


def _scaled(vector: Sequence[float], length: float) -> list[float]:
    norm = math.hypot(*vector)
    return [length * x / norm for x in vector]


def _around(mean: Sequence[float], own: Sequence[float], rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    centre = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return tuple(m + o - c for m, o, c in zip(mean, own, centre, strict=True))
