"""Who was preferred to whom, of any number of models, and the table of all against all."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from instructrl.evaluation.statistics import PairRate, outcomes_from_scores, pair_rate

Array = NDArray[np.float64]
# (what is independent of the rest, first model, second model, what the second one won: 1 all, 0 nothing, 0.5 a tie)
Game = tuple[Hashable, str, str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Games:
    """Verdicts on pairs of models, added up over what is independent: a prompt, or a user with their prompts.

    pairs: of indices of `models`, the lower one first, each pair once. wins: [G, pairs] what the first model of a pair
    won in each of G groups, a tie is half a win. counts: [G, pairs] of how many verdicts.
    """

    models: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    wins: Array
    counts: Array


def games_from_scores(
    scores: Mapping[str, Sequence[float]],
    responses: Mapping[str, Sequence[Hashable]] | None = None,
    users: Sequence[Hashable] | None = None,
) -> Games:
    """All pairs of models on the same prompts, by a judge's scores.

    scores: of each model [N] finite numbers. responses: of each model [N]; where two gave the same one, they tie.
    users: [N], whose prompt it was: those of one are a group; "" and None are unknown, and on their own. Raises
    ValueError as `outcomes_from_scores` does.
    """
    models, pairs = tuple(scores), tuple(combinations(range(len(scores)), 2))
    number = len(next(iter(scores.values()), ()))
    groups = _numbered([(0, i) if users is None or users[i] in ("", None) else (1, users[i]) for i in range(number)])
    wins, counts = np.zeros((2, max(groups, default=-1) + 1, len(pairs)))
    for column, (i, j) in enumerate(pairs):
        first, second = models[i], models[j]
        same = None
        if responses is not None:
            same = [a == b for a, b in zip(responses[first], responses[second], strict=True)]
        np.add.at(wins[:, column], groups, outcomes_from_scores(scores[first], scores[second], same))
        np.add.at(counts[:, column], groups, 1)
    return Games(models=models, pairs=pairs, wins=wins, counts=counts)


def games_from_verdicts(verdicts: Iterable[Game], models: Sequence[str] = ()) -> Games:
    """Games of verdicts on any pairs. models: those that come first, in their order; the others as they appear.

    Raises ValueError for an outcome outside of 0 to 1, and for a model against itself.
    """
    rows = list(verdicts)
    for _, first, second, outcome in rows:
        if not 0 <= outcome <= 1:
            raise ValueError(f"outcome: found {outcome}, accepted is 0 (the first model wins) to 1 (the second)")
        if first == second:
            raise ValueError(f"models: found {first!r} against itself, accepted are two different ones")
    named = list(dict.fromkeys([*models, *(name for _, a, b, _ in rows for name in (a, b))]))
    at = {name: place for place, name in enumerate(named)}
    places = [(at[a], at[b]) for _, a, b, _ in rows]
    pairs = sorted({(min(pair), max(pair)) for pair in places})
    column = {pair: place for place, pair in enumerate(pairs)}
    groups = _numbered([group for group, *_ in rows])
    wins, counts = np.zeros((2, max(groups, default=-1) + 1, len(pairs)))
    for group, (i, j), (*_, outcome) in zip(groups, places, rows, strict=True):
        place = column[min(i, j), max(i, j)]
        wins[group, place] += 1 - outcome if i < j else outcome
        counts[group, place] += 1
    return Games(models=tuple(named), pairs=tuple(pairs), wins=wins, counts=counts)


def head_to_head(games: Games) -> list[list[PairRate | None]]:
    """`[i][j]`: how often model i is preferred to model j, ties half, with its interval over groups (`pair_rate`); None
    on the diagonal and where nobody compared the two."""
    table: list[list[PairRate | None]] = [[None] * len(games.models) for _ in games.models]
    for (i, j), wins, counts in zip(games.pairs, games.wins.T, games.counts.T, strict=True):
        for row, column, won in ((i, j, wins), (j, i, counts - wins)):
            table[row][column] = pair_rate(won.tolist(), counts.tolist())
    return table


def _numbered(keys: Sequence[Hashable]) -> list[int]:
    """Equal keys get the same number, in the order in which they first appear."""
    index: dict[Hashable, int] = {}
    return [index.setdefault(key, len(index)) for key in keys]
