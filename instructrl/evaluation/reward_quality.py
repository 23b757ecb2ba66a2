"""How often a reward model agrees with people on comparisons that it was not trained on, and how much of it is length.

A row of `results.json` is a reward model on one set of comparisons. Lengths are in tokens.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructrl.evaluation.statistics import (
    MeanInterval,
    PairRate,
    bootstrap_interval,
    pair_rate,
    reward_accuracy,
)
from instructrl.types import Comparison

Lists = Sequence[Sequence[float]]
Array = NDArray[np.float64]


def quality_row(
    model: str, data: str, scores: Lists, lengths: Sequence[Sequence[int]], comparisons: Sequence[Comparison]
) -> dict[str, Any]:
    """A reward model on a set of comparisons, as in `results.json`; what the set cannot tell is None.

    scores, lengths: per comparison, one number a completion. accuracy: as `reward_accuracy`. length_correlation: as
    `length_correlation`. prefers_longer: of the pairs with a preferred response and two lengths, the share in which the
    model scores the longer one higher; people_prefer_longer: in which people prefer it.
    """
    model_longer, people_longer = longer_preferred(scores, lengths, comparisons)
    found = {
        "accuracy": reward_accuracy(scores, comparisons),
        "length_correlation": length_correlation(scores, lengths),
        "prefers_longer": model_longer,
        "people_prefer_longer": people_longer,
    }
    return {"model": model, "data": data, **{key: None if x is None else asdict(x) for key, x in found.items()}}


def annotators_agreement(comparisons: Sequence[Comparison]) -> dict[str, Any] | None:
    """How often two labelers of the same responses prefer the same one, over what both rank strictly and over all pairs
    of labelers. The interval takes prompts as independent."""
    by_responses: dict[tuple[str, tuple[str, ...]], list[Comparison]] = {}
    for row in comparisons:
        by_responses.setdefault((row.prompt, row.completions), []).append(row)
    agreed, counted = Counter[str](), Counter[str]()
    for (prompt, _), rows in by_responses.items():
        for a, b in combinations(rows, 2):
            if a.labeler != b.labeler:
                same, opposite = len(a.preferred & b.preferred), len(a.preferred & {(j, i) for i, j in b.preferred})
                agreed[prompt] += same
                counted[prompt] += same + opposite
    rate = pair_rate(list(agreed.values()), list(counted.values()))
    return None if rate is None else asdict(rate)


def length_correlation(scores: Lists, lengths: Sequence[Sequence[int]], seed: int = 0) -> MeanInterval | None:
    """Pearson's correlation of score and length among the responses to one prompt.

    `r = sum(s * l) / sqrt(sum(s^2) * sum(l^2))`, s and l less their mean over the responses of their prompt, so that a
    prompt that asks for more is no bias. The interval resamples prompts, 2.5% and 97.5% quantiles. None where all
    scores, or all lengths, of each prompt are the same.
    """
    products, scores_squared, lengths_squared = [], [], []
    for score, length in zip(scores, lengths, strict=True):
        s, n = (np.asarray(values, dtype=np.float64) for values in (score, length))
        s, n = s - s.mean(), n - n.mean()
        products.append(s @ n)
        scores_squared.append(s @ s)
        lengths_squared.append(n @ n)
    columns = [np.asarray(column) for column in (products, scores_squared, lengths_squared)]
    sums = [column.sum() for column in columns]
    if not sums[1] * sums[2] > 0:
        return None
    low, high = bootstrap_interval(_correlation, columns, seed)
    return MeanInterval(mean=float(_correlation(*sums)), low=low, high=high)


def _correlation(product: Array, scores_squared: Array, lengths_squared: Array) -> Array:
    below = scores_squared * lengths_squared
    # A draw of prompts without any spread has none.
    return product / np.sqrt(np.where(below > 0, below, np.inf))


def longer_preferred(
    scores: Lists, lengths: Sequence[Sequence[int]], comparisons: Sequence[Comparison]
) -> tuple[PairRate | None, PairRate | None]:
    """How often the longer of two responses is scored higher, and how often people prefer it, over the preferred pairs
    whose lengths differ. None where there is no such pair."""
    model, people, counts = [], [], []
    for score, length, row in zip(scores, lengths, comparisons, strict=True):
        pairs = [(i, j) for i, j in row.preferred if length[i] != length[j]]
        longer = [(i, j) if length[i] > length[j] else (j, i) for i, j in pairs]
        model.append(sum(score[i] > score[j] for i, j in longer))
        people.append(len(set(longer) & set(pairs)))
        counts.append(len(pairs))
    return pair_rate(model, counts), pair_rate(people, counts)
