"""The length-controlled win rate of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475).

A judge that likes long answers gives a model that writes them a higher win rate. A logistic regression explains the
verdicts by the difference of the lengths, by how difficult an instruction is (where that is known), and by the model;
the rate is then what it predicts for answers of equal length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NUM_FOLDS = 5
STRENGTHS = 10.0 ** np.linspace(
    -4, 4, 10
)  # inverse strengths of the penalty, as scikit-learn's LogisticRegressionCV has them
_ANCHOR_WEIGHT = 0.1  # alpaca_eval: 0.2 over the two versions of the baseline
_CHUNK = 1 << 21  # predictions held at a time
_MAX_STEPS = 200


class NoOptimumError(RuntimeError):
    """The fit does not come to its end, as of a few verdicts that lengths tell apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthControlled:
    """The win rate that is expected at equal lengths, a fraction, with its 95% interval over instructions, None
    where all outcomes are the same: resamples then claim a certainty that is not there.

    coefficients: of the standardised difference of lengths (baseline minus model), of the difficulty (0 without one)
    and of the model. strength: the inverse strength of the penalty that cross-validation chose.
    """

    rate: float
    low: float | None
    high: float | None
    coefficients: tuple[float, float, float]
    strength: float
    num_prompts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """Verdicts on a baseline that was told to be brief or wordy, against the plain one: they tie the coefficients of
    length and difficulty of every model to the same data. All [A]: outcomes from 0 to 1, standardised differences of
    lengths, difficulties."""

    outcomes: Sequence[float]
    differences: Sequence[float]
    difficulties: Sequence[float]


def length_controlled_win_rate(
    outcomes: Sequence[float] | Array,
    lengths: Sequence[int],
    baseline_lengths: Sequence[int],
    *,
    difficulties: Sequence[float] | None = None,
    anchors: Anchors | None = None,
    seed: int = 0,
    num_resamples: int = 1000,
) -> LengthControlled | None:
    """How often a model would be preferred to the baseline if both wrote equally much.

    `q_i = sigmoid(a * tanh(d_i / std(d)) + b * difficulty_i + c)`, `d_i = baseline_lengths_i - lengths_i`, is fitted to
    the outcomes by `min |a| + |b| + |c| - strength * sum_i w_i (y_i log q_i + (1 - y_i) log(1 - q_i))`; the rate is
    the mean over instructions of `sigmoid(b * difficulty_i + c)`. Without `difficulties` this is alpaca_eval's
    `length_controlled_minimal`, with them `length_controlled_noreg`, and with `anchors` too (weight 0.1 each, c is not
    theirs) its `length_controlled_v1`, which the leaderboard shows.

    strength: of `STRENGTHS` the one whose cross-entropy is lowest on average over five folds: as in alpaca_eval, row i
    of n is held out in fold `(n - 1 - i) % 5`. alpaca_eval fits with liblinear to a tolerance of 1e-4, here the optimum
    is found in float64. alpaca_eval's standard error is the spread of the predictions over instructions, which is 0
    without difficulties; here the interval resamples instructions (anchors stay) at the strength and the standard
    deviation of all of them.

    outcomes: [N] from 0 (loss) to 1 (win), NaN where there is no verdict: such a row counts for the standard deviation
    and for the mean, and is not fitted. lengths, baseline_lengths: [N] characters. Returns None where fewer than five
    rows have a verdict. Raises ValueError where the lengths of the arguments differ or a value is none of these.
    """
    y = np.asarray(outcomes, dtype=np.float64)
    judged = ~np.isnan(y)
    if ((y[judged] < 0) | (y[judged] > 1)).any():
        raise ValueError(
            f"outcomes: found {y[judged].min():g} to {y[judged].max():g}, accepted are numbers from 0 to 1"
        )
    hard = np.zeros_like(y) if difficulties is None else _numbers("difficulties", difficulties, len(y))
    gaps = _numbers("baseline_lengths", baseline_lengths, len(y)) - _numbers("lengths", lengths, len(y))
    if judged.sum() < NUM_FOLDS:
        return None
    features = np.stack([_standardised(gaps), hard, np.ones_like(y)], axis=1)
    rows, targets, weights = features[judged], y[judged], np.ones(judged.sum())
    if anchors is not None:
        rows, targets, weights = _with_anchors(anchors, rows, targets)
    strength = _chosen_strength(rows, targets, weights)
    equal = features * (0, 1, 1)
    counts = np.concatenate([np.ones((1, len(y))), _draws(len(y), seed, num_resamples)])
    num_anchors = len(targets) - int(judged.sum())
    fixed = np.broadcast_to(weights[:num_anchors], (len(counts), num_anchors))
    fitted = fit(rows, targets, strength * np.concatenate([fixed, counts[:, judged]], axis=1))
    rates = (counts * _sigmoid(fitted @ equal.T)).sum(axis=1) / counts.sum(axis=1)
    low, high = np.quantile(rates[1:], (0.025, 0.975)).tolist() if np.ptp(y[judged]) else (None, None)
    a, b, c = map(float, fitted[0])
    return LengthControlled(
        rate=float(rates[0]),
        low=low,
        high=high,
        coefficients=(a, b, c),
        strength=float(strength),
        num_prompts=int(judged.sum()),
    )


def fit(features: Array, targets: Array, weights: Array) -> Array:
    """`argmin_x |x|_1 - sum_n weights_n (targets_n log q_n + (1 - targets_n) log(1 - q_n))`, `q = sigmoid(features x)`.

    features: [N, D], targets: [N] from 0 to 1, weights: [R, N], a row for each of R such problems. Returns [R, D], by
    Newton's method on the smooth part with coordinate descent inside (Yuan, Ho and Lin 2012) to a subgradient of 1e-10
    of the total weight. Raises NoOptimumError where it does not get there.
    """
    rows = max(1, _CHUNK // max(1, len(targets)))
    return np.concatenate([_fit(features, targets, weights[at : at + rows]) for at in range(0, len(weights), rows)])


def _fit(features: Array, targets: Array, weights: Array) -> Array:
    num_rows, width = features.shape
    squares = (features[:, :, None] * features[:, None, :]).reshape(num_rows, width * width)
    found = np.zeros((len(weights), width))
    open_rows = np.arange(len(weights))
    for _ in range(_MAX_STEPS):
        x, w = found[open_rows], weights[open_rows]
        predicted = _sigmoid(x @ features.T)
        gradient = (w * (predicted - targets)) @ features
        off = np.where(x != 0, np.abs(gradient + np.sign(x)), np.maximum(np.abs(gradient) - 1, 0)).max(axis=1)
        far = off > 1e-10 * np.maximum(1, w.sum(axis=1))
        if not far.any():
            return found
        open_rows, x, w, gradient = open_rows[far], x[far], w[far], gradient[far]
        curvature = ((w * (predicted * (1 - predicted))[far]) @ squares).reshape(-1, width, width)
        found[open_rows] = _searched(features, targets, w, x, _direction(x, gradient, curvature))
    raise NoOptimumError(f"length-controlled win rate: found no optimum in {_MAX_STEPS} steps")


def _direction(x: Array, gradient: Array, curvature: Array) -> Array:
    """`argmin_s gradient s + s curvature s / 2 + |x + s|_1` by coordinate descent."""
    step = np.zeros_like(x)
    for _ in range(200):
        before = step.copy()
        for j in range(x.shape[1]):
            # A column of zeros has no curvature, and its coefficient is 0.
            steep = np.maximum(curvature[:, j, j], 1e-12)
            slope = gradient[:, j] + (curvature[:, j] * step).sum(axis=1)
            at = x[:, j] + step[:, j] - slope / steep
            step[:, j] = np.sign(at) * np.maximum(np.abs(at) - 1 / steep, 0) - x[:, j]
        if np.abs(step - before).max() <= 1e-13 * max(1.0, float(np.abs(x).max())):
            break
    return step


def _searched(features: Array, targets: Array, weights: Array, x: Array, step: Array) -> Array:
    """The first of `x + step, x + step / 2, ...` whose objective is no higher than that of x, up to rounding."""
    start = _objective(features, targets, weights, x)
    length = np.ones(len(x))
    for _ in range(40):
        found = x + length[:, None] * step
        worse = _objective(features, targets, weights, found) > start * (1 + 1e-13)
        if not worse.any():
            break
        length[worse] /= 2
    return x + length[:, None] * step


def _objective(features: Array, targets: Array, weights: Array, x: Array) -> Array:
    margins = x @ features.T
    return np.abs(x).sum(axis=1) + (weights * _cross_entropy(margins, targets)).sum(axis=1)


def _cross_entropy(margins: Array, targets: Array) -> Array:
    return np.logaddexp(0, margins) - targets * margins


def _chosen_strength(features: Array, targets: Array, weights: Array) -> float:
    number = len(targets)
    held_out = _folds(number) == np.arange(NUM_FOLDS)[:, None]
    kept = np.where(held_out, 0, weights)
    fitted = fit(features, targets, (STRENGTHS[:, None, None] * kept).reshape(-1, number))
    losses = (weights * _cross_entropy(fitted @ features.T, targets)).reshape(len(STRENGTHS), NUM_FOLDS, number)
    means = (losses * held_out).sum(axis=2) / held_out.sum(axis=1)
    return float(STRENGTHS[means.mean(axis=1).argmin()])


def _folds(number: int) -> NDArray[np.int64]:
    """In which fold each row is held out: rows are dealt from the last one on."""
    return (number - 1 - np.arange(number)) % NUM_FOLDS


def _with_anchors(anchors: Anchors, features: Array, targets: Array) -> tuple[Array, Array, Array]:
    """Anchors before the rows, as alpaca_eval puts them, which decides the folds."""
    number = len(anchors.outcomes)
    outcomes = _numbers("anchors", anchors.outcomes, number)
    gaps = np.tanh(_numbers("anchors", anchors.differences, number))
    hard = _numbers("anchors", anchors.difficulties, number)
    above = np.stack([gaps, hard, np.zeros(number)], axis=1)
    weights = np.concatenate([np.full(number, _ANCHOR_WEIGHT), np.ones(len(targets))])
    return np.concatenate([above, features]), np.concatenate([outcomes, targets]), weights


def _standardised(gaps: Array) -> Array:
    spread = gaps.std(ddof=1)
    return np.tanh(gaps / spread) if spread > 0 else np.zeros_like(gaps)


def _outcomes(values: Sequence[float] | Array) -> tuple[Array, NDArray[np.bool_]]:
    y = np.asarray(values, dtype=np.float64)
    judged = ~np.isnan(y)
    if ((y[judged] < 0) | (y[judged] > 1)).any():
        raise ValueError(
            f"outcomes: found {y[judged].min():g} to {y[judged].max():g}, accepted are numbers from 0 to 1"
        )
    return y, judged


def _draws(number: int, seed: int, num_resamples: int) -> Array:
    """[R, N] how often each of N instructions is in each of R resamples of N."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(number, np.full(number, 1 / number), size=num_resamples).astype(np.float64)


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def _numbers(name: str, values: Sequence[float], number: int) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (number,) or not np.isfinite(array).all():
        raise ValueError(f"{name}: found {len(array)} values, accepted are {number} finite numbers")
    return array
