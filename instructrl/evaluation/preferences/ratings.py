"""One number a model from who was preferred to whom: Bradley-Terry, on the scale of Elo's ratings."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from instructrl.evaluation.preferences.games import Games

Array = NDArray[np.float64]

# What 400 points mean: odds of 10 to 1 (Elo 1978).
POINTS = 400 / math.log(10)
MEAN_RATING = 1000.0
_VIRTUAL_DRAWS = 1
_CHUNK = 1 << 21  # numbers held at a time
_MAX_STEPS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """Of one model: `400 / ln 10 * strength + 1000`, its 95% interval (None where all resamples are alike, which is
    no certainty), and how many verdicts it rests on."""

    model: str
    rating: float
    low: float | None
    high: float | None
    num_games: int


def bradley_terry(games: Games, *, seed: int = 0, num_resamples: int = 1000) -> list[Rating]:
    """Ratings under which `P(i is preferred to j) = sigmoid(strength_i - strength_j)` (Bradley and Terry 1952).

    Maximum likelihood with ties as half a win to each, as in Chatbot Arena (Chiang et al. 2024), after one tie is added
    to every pair that was compared: two models of w wins to l differ by `log((w + 1/2) / (l + 1/2))`, which is
    Haldane's and Anscombe's estimate (1956). So a model that won all or none is rated too; the plain likelihood has no
    maximum there (Ford 1957).

    Strengths have the mean 0, and an interval is of the distance to that mean: the 2.5% and 97.5% quantiles over
    resamples of groups (prompts or users). Returns the models in their order. Raises ValueError where no chain of
    comparisons links two of them.
    """
    number = len(games.wins)
    if not number:
        raise ValueError("games: found none, accepted is at least one")
    if (other := unlinked(games)) is not None:
        raise ValueError(
            f"ratings: found no chain of comparisons from {games.models[0]!r} to {other!r}, accepted are models that "
            "are all linked"
        )
    resamples = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=num_resamples)
    drawn = np.concatenate([np.ones((1, number)), resamples])
    half = _VIRTUAL_DRAWS / 2
    wins, losses = drawn @ games.wins + half, drawn @ (games.counts - games.wins) + half
    ratings = POINTS * fit(games.pairs, wins, losses, len(games.models)) + MEAN_RATING
    bounds = np.quantile(ratings[1:], (0.025, 0.975), axis=0).T.tolist()
    bounds = [(low, high) if high - low > 1e-6 else (None, None) for low, high in bounds]
    played = np.zeros(len(games.models), dtype=np.int64)
    for pair, count in zip(games.pairs, games.counts.sum(axis=0), strict=True):
        played[list(pair)] += int(count)
    return [
        Rating(model=name, rating=float(at), low=low, high=high, num_games=int(count))
        for name, at, (low, high), count in zip(games.models, ratings[0], bounds, played, strict=True)
    ]


def fit(pairs: Sequence[tuple[int, int]], wins: Array, losses: Array, num_models: int) -> Array:
    """Strengths of R tournaments that maximise `sum_pairs wins log p + losses log(1 - p)`, `p = sigmoid(s_i - s_j)`.

    wins, losses: [R, pairs], positive, of the first model of each pair. Returns [R, num_models] of mean 0, by Newton's
    method, until no model's expected wins differ from its wins by more than 1e-10 of all games. Raises RuntimeError
    where it does not get there.
    """
    rows = max(1, _CHUNK // max(1, len(pairs), num_models**2))
    parts = [
        _fit(np.array(pairs), wins[at : at + rows], losses[at : at + rows], num_models)
        for at in range(0, len(wins), rows)
    ]
    return np.concatenate(parts)


def _fit(pairs: NDArray[np.int64], wins: Array, losses: Array, num_models: int) -> Array:
    first, second = pairs.T
    games = wins + losses
    signs = np.zeros((len(pairs), num_models))
    signs[np.arange(len(pairs)), first], signs[np.arange(len(pairs)), second] = 1, -1
    found = np.zeros((len(wins), num_models))
    for _ in range(_MAX_STEPS):
        expected = 1 / (1 + np.exp(found[:, second] - found[:, first]))
        gradient = (wins - games * expected) @ signs
        if (np.abs(gradient).max(axis=1) <= 1e-10 * games.sum(axis=1)).all():
            return found - found.mean(axis=1, keepdims=True)
        # The matrix of second derivatives says nothing of the mean; 1 / M in all places holds it where it is.
        curvature = np.full((len(wins), num_models, num_models), 1 / num_models)
        bends = games * expected * (1 - expected)
        curvature[:, first, second] -= bends
        curvature[:, second, first] -= bends
        curvature[:, range(num_models), range(num_models)] += bends @ np.abs(signs)
        step = np.asarray(np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0], dtype=np.float64)
        found = _searched(found, step, lambda at: _likelihood(at, first, second, wins, losses))
    raise RuntimeError(f"ratings: found no optimum in {_MAX_STEPS} steps")


def _likelihood(at: Array, first: NDArray[np.int64], second: NDArray[np.int64], wins: Array, losses: Array) -> Array:
    margins = at[:, first] - at[:, second]
    return -(wins * np.logaddexp(0, -margins) + losses * np.logaddexp(0, margins)).sum(axis=1)


def _searched(found: Array, step: Array, likelihood: Callable[[Array], Array]) -> Array:
    """The first of `found + step, found + step / 2, ...` that is no less likely than `found`, up to rounding."""
    least = likelihood(found)
    least -= 1e-13 * np.abs(least)
    length = np.ones((len(found), 1))
    for _ in range(40):
        worse = likelihood(found + length * step) < least
        if not worse.any():
            break
        length[worse] /= 2
    return found + length * step


def unlinked(games: Games) -> str | None:
    """A model that no chain of comparisons links to the first one; None where all are linked."""
    reached = {0}
    for _ in games.models:
        reached |= {place for pair in games.pairs if reached & set(pair) for place in pair}
    return next((name for place, name in enumerate(games.models) if place not in reached), None)
