"""Settings of the ranking losses, and what each of them makes of a pair."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from instructrl.ops import checks


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingSettings:
    """Of `ranking.pairwise_ranking_loss`.

    label_smoothing: from 0 to below 0.5; the share of labels that are taken to be the wrong way round.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        checks.within("label_smoothing", self.label_smoothing, 0.0, 0.5)
        if self.label_smoothing == 0.5:
            raise ValueError("label_smoothing: found 0.5, accepted is a number below: at 0.5 no order is preferred")


class ComparisonTerms(NamedTuple):
    """What a pair's loss is made of, with x the difference of its scores minus its own margin and `margin`.

    A win is `L(x) + label_smoothing * x` with `L(x) = log(1 + exp(-x) + davidson * exp(-x / 2))`. A tie is `tie_weight`
    times a win of either, minus `tie_constant`.
    """

    margin: float = 0.0
    label_smoothing: float = 0.0
    davidson: float = 0.0
    tie_weight: float = 1.0
    tie_constant: float = 0.0


class TieModel(NamedTuple):
    """parameter_without_ties: the lowest parameter that is accepted, with which nothing is ever tied."""

    parameter_without_ties: float
    terms: Callable[[float], ComparisonTerms]


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def _rao_kupper(theta: float) -> ComparisonTerms:
    # P(tie) = (theta^2 - 1) P(i wins) P(j wins), both as if the margin log(theta) had been passed.
    return ComparisonTerms(margin=_log(theta), tie_weight=1.0, tie_constant=_log((theta - 1.0) * (theta + 1.0)))


def _davidson(nu: float) -> ComparisonTerms:
    # P(tie) = nu sqrt(P(i wins) P(j wins)).
    return ComparisonTerms(davidson=nu, tie_weight=0.5, tie_constant=_log(nu))


TIE_MODELS: dict[str, TieModel] = {
    "rao_kupper": TieModel(1.0, _rao_kupper),
    "davidson": TieModel(0.0, _davidson),
}
_LARGEST_PARAMETER = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class TieSettings:
    """Of `ranking.tied_ranking_loss`, where the models are spelled out.

    model: one of `TIE_MODELS`. parameter: theta of "rao_kupper", at least 1; nu of "davidson", at least 0. With 2 of
        the former, or 1 of the latter, equal scores win, tie and lose with the same probability.
    """

    model: str = "rao_kupper"
    parameter: float = 2.0

    def __post_init__(self) -> None:
        checks.one_of("model", self.model, tuple(TIE_MODELS))
        checks.within("parameter", self.parameter, TIE_MODELS[self.model].parameter_without_ties, _LARGEST_PARAMETER)

    @property
    def terms(self) -> ComparisonTerms:
        """What a win and a tie cost."""
        return TIE_MODELS[self.model].terms(self.parameter)

    @property
    def has_ties(self) -> bool:
        """Whether a tie has a probability above 0."""
        return self.parameter > TIE_MODELS[self.model].parameter_without_ties
