"""The entries of `results.json` that compare all models with each other."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructrl.evaluation.preferences.games import Games, games_from_scores, head_to_head
from instructrl.evaluation.preferences.length_control import Anchors, length_controlled_win_rate
from instructrl.evaluation.preferences.ratings import bradley_terry, unlinked

# (number of instructions) -> difficulties and anchors: what alpaca_eval has of its own set beside the annotations
Gamed = Callable[[int], tuple[list[float], Anchors]]


def all_against_all(games: Games) -> dict[str, Any]:
    """`win_rate_matrix` (`rates[i][j]`: how often model i is preferred to model j) and, of three models or more
    that chains of comparisons link, `ratings`."""
    rates = [[rate and asdict(rate) for rate in row] for row in head_to_head(games)]
    found: dict[str, Any] = {"win_rate_matrix": {"models": list(games.models), "rates": rates}}
    if len(games.models) > 2 and unlinked(games) is None:
        found["ratings"] = [asdict(rating) for rating in bradley_terry(games)]
    return found


def all_by_scores(
    scores: Mapping[str, Sequence[float]],
    responses: Mapping[str, Sequence[Hashable]],
    users: Sequence[Hashable],
) -> dict[str, Any]:
    """`all_against_all` of the same prompts, by a judge's scores. Takes what `games_from_scores` takes."""
    return all_against_all(games_from_scores(scores, responses, users))


def length_controlled(
    outcomes: Sequence[float] | NDArray[np.float64],
    texts: Sequence[str],
    baseline_texts: Sequence[str],
    gamed: Gamed | None = None,
) -> dict[str, Any] | None:
    """The `length_controlled` entry of a model, of the lengths of these texts in characters; None of fewer than five
    verdicts. gamed: where the instructions are those of AlpacaEval in their order."""
    lengths, baseline_lengths = [len(text) for text in texts], [len(text) for text in baseline_texts]
    difficulties, anchors = (None, None) if gamed is None else gamed(len(texts))
    found = length_controlled_win_rate(outcomes, lengths, baseline_lengths, difficulties=difficulties, anchors=anchors)
    return found and asdict(found)
