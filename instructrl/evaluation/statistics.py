"""The numbers that an evaluation states, each with a 95% interval.

Rates are fractions from 0 to 1. All results are deterministic: the bootstrap draws from a seed that is passed in.
"""

import math
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # commands that read verdicts alone do without torch
    from instructrl.types import Comparison

Z95 = 1.959963984540054  # the 97.5% quantile of the standard normal distribution
BOOTSTRAP_CHUNK = 1 << 20  # drawn indices held at a time: 8 MiB

Pairs = Collection[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """How often a model is preferred to the baseline, ties counted half.

    rate, standard_error: fractions. low, high: the 95% interval that takes prompts as independent.
    bootstrap_low, bootstrap_high: the 95% percentile interval that resamples users.
    """

    rate: float
    standard_error: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float
    num_prompts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Proportion:
    """A share of `total` independent trials with its 95% interval."""

    rate: float
    low: float
    high: float
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRate:
    """A share of `num_pairs` completion pairs; its 95% interval takes prompts, not pairs, as independent."""

    rate: float
    low: float
    high: float
    num_pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanInterval:
    """A mean with its 95% interval; `low` and `high` are None where one value alone shows no spread."""

    mean: float
    low: float | None
    high: float | None


def outcomes_from_scores(
    scores: Sequence[float], baseline_scores: Sequence[float], same: Sequence[bool] | None = None
) -> NDArray[np.float64]:
    """What a judge's scores say per prompt: 1 where the model wins, 0.5 where it ties, 0 where it loses.

    scores, baseline_scores: [N] finite numbers, the same prompts in the same order, higher is better. same: where both
    gave the same response, which is a tie: a network that judges it twice may round its score in two ways.
    Returns [N] float64. Raises ValueError where the lengths differ or a score is not finite.
    """
    ours, theirs = _finite("scores", scores), _finite("baseline_scores", baseline_scores)
    if len(ours) != len(theirs):
        raise ValueError(f"baseline_scores: found {len(theirs)}, accepted is one a score, {len(ours)}")
    tied = (ours == theirs) | np.asarray(same if same is not None else np.zeros(len(ours)), dtype=bool)
    return np.where(tied, 0.5, np.where(ours > theirs, 1.0, 0.0))


def win_rate(
    outcomes: Sequence[float] | NDArray[np.float64],
    users: Sequence[Hashable] | None = None,
    seed: int = 0,
    *,
    num_resamples: int = 2000,
) -> WinRate:
    """The mean outcome against a baseline, with two intervals.

    `rate = mean(outcomes)`, `standard_error = std(outcomes, ddof=1) / sqrt(N)` as in alpaca_eval, and the interval
    `rate +- 1.96 * standard_error` cut at 0 and 1. The paper states 95% intervals and neither the formula nor what a
    tie counts. Where the sample has no spread (all outcomes equal) that interval would claim certainty; there it is
    Wilson's, which holds for any outcome in [0, 1] because none has a larger variance than `rate * (1 - rate)`.

    Prompts of one user resemble each other, so the second interval resamples users with replacement and takes the
    2.5% and 97.5% quantiles of `sum(outcomes) / sum(prompts)` over the drawn users.

    outcomes: [N] from 0 to 1, N >= 1; what lies between is how sure the judge is, and 0.5 a tie. users: [N], whose
    prompt it was; "" and None are unknown, and every unknown user counts as a user of their own; without `users` all
    do. A single outcome has no sample standard deviation: `standard_error` is then 0.5, the largest that an outcome in
    [0, 1] can have.
    Raises ValueError for anything else.
    """
    values = _finite("outcomes", outcomes)
    if not len(values):
        raise ValueError("outcomes: found none, accepted is at least one")
    strange = values[(values < 0) | (values > 1)]
    if len(strange):
        raise ValueError(f"outcomes: found {strange[0]:g}, accepted are 0 (loss) to 1 (win), where a tie is 0.5")
    rate = float(values.mean())
    standard_error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.5
    if values.min() == values.max():
        low, high = _wilson(rate, len(values))
    else:
        low, high = _normal_interval(rate, standard_error)
    bootstrap_low, bootstrap_high = _bootstrap_over_users(values, users, seed, num_resamples)
    return WinRate(
        rate=rate,
        standard_error=standard_error,
        low=low,
        high=high,
        bootstrap_low=bootstrap_low,
        bootstrap_high=bootstrap_high,
        num_prompts=len(values),
    )


def paired_difference(
    first: Sequence[float] | NDArray[np.float64],
    second: Sequence[float] | NDArray[np.float64],
    users: Sequence[Hashable] | None = None,
    seed: int = 0,
    *,
    num_resamples: int = 2000,
) -> MeanInterval:
    """`mean(first - second)` over the same prompts, such as the outcomes that two judges see. Its interval resamples
    users as that of `win_rate` does, both values of a prompt together; one user alone shows no spread.

    first, second: [N] finite, N >= 1. users: [N] as `win_rate` has them. Raises ValueError for anything else.
    """
    ours, theirs = _finite("first", first), _finite("second", second)
    _check_same_prompts(ours.tolist(), theirs.tolist())
    if not len(ours):
        raise ValueError("first: found none, accepted is at least one")
    sums, counts = _sums_by_user(ours - theirs, users)
    mean = float(sums.sum() / counts.sum())
    if len(sums) == 1:
        return MeanInterval(mean=mean, low=None, high=None)
    low, high = bootstrap_interval(np.divide, (sums, counts), seed, num_resamples)
    return MeanInterval(mean=mean, low=low, high=high)


def proportion(successes: int, total: int) -> Proportion:
    """A share of independent trials with Wilson's 95% score interval (Wilson 1927).

    The interval holds all `p` with `(rate - p)^2 <= z^2 * p * (1 - p) / total`:
    `(rate + z^2/2n +- z * sqrt(rate*(1-rate)/n + z^2/4n^2)) / (1 + z^2/n)`. Unlike `rate +- 1.96 * se` it stays
    inside [0, 1] and keeps a width at 0 and at `total` successes.

    Raises ValueError unless `0 <= successes <= total` and `total >= 1`.
    """
    if total < 1:
        raise ValueError(f"total: found {total}, accepted is at least 1")
    if not 0 <= successes <= total:
        raise ValueError(f"successes: found {successes}, accepted is 0 to {total}")
    rate = successes / total
    low, high = _wilson(rate, total)
    return Proportion(rate=rate, low=low, high=high, total=total)


def mean_interval(values: Sequence[float] | NDArray[np.float64]) -> MeanInterval:
    """The mean of independent values with the interval `mean +- 1.96 * std(values, ddof=1) / sqrt(N)`.

    values: [N] finite, N >= 1. Raises ValueError for anything else.
    """
    array = _finite("values", values)
    if not len(array):
        raise ValueError("values: found none, accepted is at least one")
    mean = float(array.mean())
    if len(array) == 1:
        return MeanInterval(mean=mean, low=None, high=None)
    margin = Z95 * float(array.std(ddof=1)) / math.sqrt(len(array))
    return MeanInterval(mean=mean, low=mean - margin, high=mean + margin)


def mean_change(
    before: Sequence[tuple[float, float]], after: Sequence[tuple[float, float]], *, num_looks: int = 1
) -> MeanInterval:
    """The mean of `after` minus that of `before`, each a few independent means with their standard errors.

    `change +- z * sqrt(sum(errors_before^2) / n_before^2 + sum(errors_after^2) / n_after^2)`. num_looks: of how many
    changes this is one, where a large one was looked for: z is the normal quantile at `1 - 0.025 / num_looks`, so that
    with 95% all their intervals hold (Bonferroni). Raises ValueError for anything empty or not finite.
    """
    (mean_before, error_before), (mean_after, error_after) = (_mean_and_error(rows) for rows in (before, after))
    change = mean_after - mean_before
    margin = NormalDist().inv_cdf(1 - 0.025 / num_looks) * math.hypot(error_before, error_after)
    return MeanInterval(mean=change, low=change - margin, high=change + margin)


def _mean_and_error(rows: Sequence[tuple[float, float]]) -> tuple[float, float]:
    if not rows:
        raise ValueError("values: found none, accepted is at least one")
    values, errors = _finite("values", [value for value, _ in rows]), _finite("errors", [error for _, error in rows])
    return float(values.mean()), float(np.sqrt((errors**2).sum())) / len(rows)


def pair_agreement(pairs_a: Sequence[Pairs], pairs_b: Sequence[Pairs]) -> PairRate | None:
    """Of the completion pairs that both labelers rank strictly, the share in which they prefer the same one.

    pairs_a, pairs_b: per prompt, the (winner, loser) indices of one labeler, as in `Comparison.preferred`; the same
    prompts in the same order. A pair that either labeler ties is left out (`three_way_agreement` counts those).
    Returns None where no pair is ranked strictly by both. Raises ValueError where the number of prompts differs.
    """
    _check_same_prompts(pairs_a, pairs_b)
    agreed, counted = [], []
    for a, b in zip(pairs_a, pairs_b, strict=True):
        same = len(set(a) & set(b))
        opposite = len(set(a) & {(loser, winner) for winner, loser in b})
        agreed.append(same)
        counted.append(same + opposite)
    return pair_rate(agreed, counted)


def three_way_agreement(
    pairs_a: Sequence[Pairs], pairs_b: Sequence[Pairs], num_completions: Sequence[int]
) -> PairRate | None:
    """The share of all completion pairs on which two labelers say the same of {first, second, tie}.

    Takes what `pair_agreement` takes, and the number of completions of each prompt, `K`: `K * (K - 1) / 2` pairs count.
    Returns None where there is no pair. Raises ValueError where the number of prompts differs.
    """
    _check_same_prompts(pairs_a, pairs_b)
    _check_same_prompts(pairs_a, num_completions)
    agreed, counted = [], []
    for a, b, completions in zip(pairs_a, pairs_b, num_completions, strict=True):
        total = completions * (completions - 1) // 2
        differing = {frozenset(pair) for pair in set(a) ^ set(b)}
        agreed.append(total - len(differing))
        counted.append(total)
    return pair_rate(agreed, counted)


def reward_accuracy(scores: Sequence[Sequence[float]], comparisons: "Sequence[Comparison]") -> PairRate | None:
    """The share of preferred pairs in which the reward model scores the winner strictly higher.

    scores: per comparison, [K] finite scores in the order of its completions. Returns None where no pair is preferred.
    Raises ValueError where scores and completions differ in number or a score is not finite.
    """
    _check_same_prompts(comparisons, scores)
    correct, counted = [], []
    for row, comparison in zip(scores, comparisons, strict=True):
        values = _finite("scores", row)
        if len(values) != len(comparison.completions):
            raise ValueError(
                f"scores: found {len(values)}, accepted is one a completion, {len(comparison.completions)}"
            )
        correct.append(sum(bool(values[winner] > values[loser]) for winner, loser in comparison.preferred))
        counted.append(len(comparison.preferred))
    return pair_rate(correct, counted)


def tax_recovery(
    tax_ptx: Sequence[float], tax_ppo: Sequence[float], seed: int = 0, *, num_resamples: int = 2000
) -> MeanInterval | None:
    """The share of PPO's alignment tax that the pretraining mix gives back: `1 - mean(tax_ptx) / mean(tax_ppo)`.

    tax_ptx, tax_ppo: [N] nats per token by which the loss of each block of pretraining text lies above that of the
    pretrained model, the same blocks in the same order. Above 1 PPO-ptx ends better than it was pretrained. The
    interval resamples blocks, both taxes of a block together, and takes the 2.5% and 97.5% quantiles.
    None where PPO paid no clear tax (the 95% interval of its mean is not above 0): there is nothing to give back.
    """
    ptx, ppo = _finite("tax_ptx", tax_ptx), _finite("tax_ppo", tax_ppo)
    _check_same_prompts(ptx.tolist(), ppo.tolist())
    low = mean_interval(ppo).low
    if low is None or low <= 0:
        return None
    share, (low, high) = (
        1 - float(ptx.sum() / ppo.sum()),
        bootstrap_interval(np.divide, (ptx, ppo), seed, num_resamples),
    )
    return MeanInterval(mean=share, low=1 - high, high=1 - low)


def pair_rate(successes: Sequence[float], counts: Sequence[float]) -> PairRate | None:
    """`r = sum(successes) / sum(counts)` over M prompts, with an interval for pairs that cluster by prompt.

    successes: the sum over a prompt's pairs of what each counts, 0 to 1. The standard error is the ratio estimator's:
    `sqrt(M/(M-1) * sum((successes - r * counts)^2)) / sum(counts)` (Cochran 1977, 6.3, without the correction for
    finite populations). Where that is 0 or has no meaning (one prompt, or every prompt at the same rate) the interval
    is Wilson's with the prompts as trials.
    """
    clusters = [(s, n) for s, n in zip(successes, counts, strict=True) if n]
    if not clusters:
        return None
    correct, total = np.asarray(clusters, dtype=np.float64).T
    rate = float(correct.sum() / total.sum())
    residuals = correct - rate * total
    num_prompts = len(clusters)
    # Rounding leaves a residual of the order of eps * count in prompts that sit exactly at the common rate.
    if num_prompts == 1 or np.all(np.abs(residuals) <= 8 * np.finfo(np.float64).eps * total):
        low, high = _wilson(rate, num_prompts)
    else:
        variance = num_prompts / (num_prompts - 1) * float((residuals**2).sum())
        low, high = _normal_interval(rate, math.sqrt(variance) / float(total.sum()))
    return PairRate(rate=rate, low=low, high=high, num_pairs=int(total.sum()))


def _bootstrap_over_users(
    values: NDArray[np.float64], users: Sequence[Hashable] | None, seed: int, num_resamples: int
) -> tuple[float, float]:
    """2.5% and 97.5% quantiles of the rate over `num_resamples` draws of as many users as there are."""
    return bootstrap_interval(np.divide, _sums_by_user(values, users), seed, num_resamples)


def bootstrap_interval(
    statistic: Callable[..., NDArray[np.float64]],
    columns: Sequence[NDArray[np.float64]],
    seed: int = 0,
    num_resamples: int = 2000,
) -> tuple[float, float]:
    """2.5% and 97.5% quantiles of a statistic of sums over draws of as many entries as there are.

    columns: [N] each, an entry per independent thing. statistic: takes the sums of each column, [R], and gives [R].
    """
    generator = np.random.default_rng(seed)
    number = len(columns[0])
    rows = max(1, BOOTSTRAP_CHUNK // number)
    found = []
    for start in range(0, num_resamples, rows):
        drawn = generator.integers(0, number, size=(min(rows, num_resamples - start), number))
        found.append(statistic(*(column[drawn].sum(axis=1) for column in columns)))
    low, high = np.quantile(np.concatenate(found), (0.025, 0.975))
    return float(low), float(high)


def _sums_by_user(
    values: NDArray[np.float64], users: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum of outcomes and number of prompts per user, users in the order in which they first appear."""
    if users is None:
        return values, np.ones_like(values)
    if len(users) != len(values):
        raise ValueError(f"users: found {len(users)}, accepted is one an outcome, {len(values)}")
    index: dict[Hashable, int] = {}
    # An unknown user's key holds the position, so that no two of them meet.
    keys = [("unknown", i) if user in ("", None) else ("user", user) for i, user in enumerate(users)]
    rows = np.array([index.setdefault(key, len(index)) for key in keys])
    sums, counts = np.zeros(len(index)), np.zeros(len(index))
    np.add.at(sums, rows, values)
    np.add.at(counts, rows, 1.0)
    return sums, counts


def _normal_interval(rate: float, standard_error: float) -> tuple[float, float]:
    return max(0.0, rate - Z95 * standard_error), min(1.0, rate + Z95 * standard_error)


def _wilson(rate: float, total: int) -> tuple[float, float]:
    shrink = 1 + Z95**2 / total
    center = (rate + Z95**2 / (2 * total)) / shrink
    margin = Z95 * math.sqrt(rate * (1 - rate) / total + Z95**2 / (4 * total**2)) / shrink
    # At 0 and 1 the interval ends there exactly; rounding would leave the rate just outside of it.
    return (0.0 if rate == 0 else max(0.0, center - margin)), (1.0 if rate == 1 else min(1.0, center + margin))


def _finite(name: str, values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name}: found the shape {array.shape}, accepted is one number a prompt")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: found {array[~np.isfinite(array)][0]}, accepted are finite numbers")
    return array


def _check_same_prompts(a: Sequence[object], b: Sequence[object]) -> None:
    if len(a) != len(b):
        raise ValueError(f"prompts: found {len(a)} and {len(b)}, accepted are the same prompts in the same order")
