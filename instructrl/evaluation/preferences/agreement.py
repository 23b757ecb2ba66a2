"""How far judges agree with people and with each other, and what they have a bias for."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from statistics import median

import numpy as np

from instructrl.evaluation.preferences.judgements import Judgement
from instructrl.evaluation.statistics import PairRate, pair_rate

# Characters by which a response has to be longer to count as the longer one, as in alpaca_eval.
MIN_GAP = 30

# An instruction and two responses to it, sorted, each with its model or without
Pair = tuple[str, tuple[str, str], tuple[str, str]]
Verdicts = dict[Pair, list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Of two judges on the pairs that both have judged; all None where there are none.

    strict: of pairs that both decide, the share decided alike. three_way: of all pairs, the share with the same one of
    first, second, tie. kappa: Cohen's, `(three_way - chance) / (1 - chance)`. with_median: the mean of
    `1 - |verdict of the first judge - median verdict of the second|`. num_pairs: different pairs of responses.
    """

    strict: PairRate | None
    three_way: PairRate | None
    kappa: float | None
    with_median: PairRate | None
    num_pairs: int


def agreement(first: Sequence[Judgement], second: Sequence[Judgement]) -> Agreement:
    """Of two judges. Where one has judged a pair several times, every verdict of one meets every one of the other.

    Pairs are told apart by their models too, where every judgement names them; else equal responses are no pair.
    """
    one, other = _side_by_side(first, second)
    both = [pair for pair in one if pair in other]
    meetings = [(pair[0], [*product(one[pair], other[pair])]) for pair in both]
    medians = [(pair[0], [1 - abs(verdict - median(other[pair])) for verdict in one[pair]]) for pair in both]
    return _agreement(meetings, medians)


def agreement_within(judgements: Sequence[Judgement]) -> Agreement:
    """Of people with each other, where several of them have judged a pair: each two verdicts on it meet, and each
    verdict meets the median of the others, which is the human agreement of AlpacaEval's table of evaluators (its
    majority, in expectation over how a split one is decided). Pairs as `agreement` has them."""
    (verdicts,) = _side_by_side(judgements)
    several = {pair: found for pair, found in verdicts.items() if len(found) > 1}
    meetings = [(pair[0], [*combinations(found, 2)]) for pair, found in several.items()]
    medians = [
        (pair[0], [1 - abs(one - median(found[:i] + found[i + 1 :])) for i, one in enumerate(found)])
        for pair, found in several.items()
    ]
    return _agreement(meetings, medians)


def _side_by_side(*judges: Sequence[Judgement]) -> list[Verdicts]:
    """Per pair what each judge said of it, each time: 0 for the response that is sorted first."""
    named = all(row.models is not None for rows in judges for row in rows)
    found: list[Verdicts] = []
    for rows in judges:
        verdicts: Verdicts = {}
        for row in rows:
            models = row.models if named and row.models is not None else ("", "")
            sides = list(zip(row.texts, models, strict=True))
            if row.outcome is not None and sides[0] != sides[1]:
                low, high = sorted(sides)
                verdicts.setdefault((row.instruction, low, high), []).append(
                    row.outcome if low == sides[0] else 1 - row.outcome
                )
        found.append(verdicts)
    return found


def _agreement(
    meetings: Sequence[tuple[str, list[tuple[float, float]]]], medians: Sequence[tuple[str, list[float]]]
) -> Agreement:
    classes = [(key, [(_decided(a), _decided(b)) for a, b in met]) for key, met in meetings]
    strict = [(key, [float(a == b) for a, b in met if a and b]) for key, met in classes]
    three_way = [(key, [float(a == b) for a, b in met]) for key, met in classes]
    return Agreement(
        strict=_by_instruction(strict),
        three_way=_by_instruction(three_way),
        kappa=_kappa([one for _, met in classes for one in met]),
        with_median=_by_instruction(medians),
        num_pairs=len(meetings),
    )


def _decided(outcome: float) -> int:
    """-1 for the first, 1 for the second, 0 for a tie."""
    return int(np.sign(outcome - 0.5))


def _kappa(met: Sequence[tuple[int, int]]) -> float | None:
    """None where chance alone would agree always."""
    if not met:
        return None
    table = np.zeros((3, 3))
    for a, b in met:
        table[a + 1, b + 1] += 1 / len(met)
    chance = float(table.sum(axis=0) @ table.sum(axis=1))
    return None if chance > 1 - 1e-12 else (float(table.trace()) - chance) / (1 - chance)


def _by_instruction(rows: Iterable[tuple[str, list[float]]]) -> PairRate | None:
    """The mean of all values, with an interval that takes instructions as independent."""
    sums: dict[str, list[float]] = {}
    for key, values in rows:
        sums.setdefault(key, []).extend(values)
    return pair_rate([sum(values) for values in sums.values()], [len(values) for values in sums.values()])


def longer_preferred(judgements: Iterable[Judgement], min_gap: int = MIN_GAP) -> PairRate | None:
    """Of decided pairs in which one response is more than `min_gap` characters longer, how often it is preferred."""
    rows = []
    for row in judgements:
        gap = len(row.texts[1]) - len(row.texts[0])
        if row.outcome is not None and (decided := _decided(row.outcome)) and abs(gap) > min_gap:
            rows.append((row.instruction, [float(decided * gap > 0)]))
    return _by_instruction(rows)


def first_preferred(judgements: Iterable[Judgement]) -> PairRate | None:
    """Of decided pairs, how often the first response is preferred. A bias of the judge where the order was random, a
    fact about the models where one of them always came first."""
    decided = [(row.instruction, _decided(row.outcome)) for row in judgements if row.outcome is not None]
    return _by_instruction((key, [float(at < 0)]) for key, at in decided if at)


def same_after_swap(judgements: Iterable[Judgement]) -> PairRate | None:
    """Of pairs that were judged in both orders, how often the same response (or none) is preferred in both."""
    orders: dict[tuple[str, str, str], list[int]] = {}
    for row in judgements:
        if row.outcome is not None and row.texts[0] != row.texts[1]:
            orders.setdefault((row.instruction, *row.texts), []).append(_decided(row.outcome))
    rows = []
    for (instruction, first, second), found in orders.items():
        if first < second and (turned := orders.get((instruction, second, first))):
            rows.append((instruction, [float(a == -b) for a, b in product(found, turned)]))
    return _by_instruction(rows)


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation: Pearson's of the ranks, equal values sharing the mean of theirs. None below three
    values, and where one side has no spread."""
    return _of_pairs(first, second, lambda a, b: _pearson(_ranks(a), _ranks(b)))


def kendall(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b (1945): `(concordant - discordant) / sqrt(untied in first * untied in second)` over all pairs.
    None as for `spearman`."""

    def tau(a: np.ndarray, b: np.ndarray) -> float:
        over = np.triu_indices(len(a), 1)
        one, other = (np.sign(x[:, None] - x)[over] for x in (a, b))
        return float(one @ other) / math.sqrt(float(np.abs(one).sum() * np.abs(other).sum()))

    return _of_pairs(first, second, tau)


def _of_pairs(
    first: Sequence[float], second: Sequence[float], statistic: Callable[[np.ndarray, np.ndarray], float]
) -> float | None:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(a) < 3 or not np.ptp(a) or not np.ptp(b):
        return None
    return statistic(a, b)


def _ranks(values: np.ndarray) -> np.ndarray:
    return (values[:, None] > values).sum(axis=1) + ((values[:, None] == values).sum(axis=1) + 1) / 2


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))
