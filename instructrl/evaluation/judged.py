"""What several judges make of the same responses: the `judged` entry of the results.

baseline    the contender that the others are compared with
judges      one row a judge, in the order given:
    judge           "training labelers", "held-out labelers", "rubric" ...
    num_labelers    how many people that is, None for one that is no person
    models          one row a contender: `name`; `win_rate` against the baseline, with its intervals over prompts
                    and over users; `likert`, a mean with its interval, None where the judge gives none; `score`,
                    the mean of what the judge gave in its own unit, None for a judge that ranks; `flags`, the rate
                    of each yes/no question among the responses for which it was answered, with their number;
                    `win_rate_by`, for each grouping the win rate in each group of prompts
    win_rate_matrix, ratings    all contenders against each other, as `preferences/entries.py` has them
differences judges by twos: `judges`, the two names; `models`, one row a contender: how much higher the first
            judge's win rate is than the second's (`difference`, from -1 to 1, with the 95% interval that resamples
            users, the verdicts of both judges on a prompt together); and `agreement`, in which share of pairs of
            responses that both order they prefer the same one
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from instructrl.evaluation.contenders import Performance
from instructrl.evaluation.results import all_against_all, label_rates, outcomes
from instructrl.evaluation.statistics import mean_interval, pair_agreement, paired_difference, win_rate
from instructrl.types import Comparison, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A judge, or several people who took turns, with the performances as they judged them. num_labelers: None for a
    judge that is no person. ranks: its scores order the responses to one prompt and have no unit."""

    judge: str
    performances: Sequence[Performance]
    num_labelers: int | None = None

    @property
    def ranks(self) -> bool:
        return self.num_labelers is not None

    def named(self, name: str) -> Performance:
        """The contender of this name. Raises ValueError where there is none."""
        for performance in self.performances:
            if performance.name == name:
                return performance
        raise ValueError(f"baseline: found {name!r}, accepted are {[p.name for p in self.performances]}")


def judged(
    panels: Sequence[Panel], prompts: Sequence[Prompt], groupings: Mapping[str, Sequence[str]], *, baseline: str = "SFT"
) -> dict[str, Any]:
    """The entry that the top of this file describes.

    panels: the same contenders on the same prompts. groupings: name -> the group of each prompt, "" for none, such as
    `use case` -> `generation`. Raises ValueError where no contender has the baseline's name.
    """
    return {
        "baseline": baseline,
        "judges": [_judge(panel, prompts, groupings, baseline) for panel in panels],
        "differences": [_difference(one, other, prompts, baseline) for one, other in combinations(panels, 2)],
    }


def _judge(
    panel: Panel, prompts: Sequence[Prompt], groupings: Mapping[str, Sequence[str]], baseline: str
) -> dict[str, Any]:
    reference = panel.named(baseline)
    users = [prompt.user for prompt in prompts]
    return {
        "judge": panel.judge,
        "num_labelers": panel.num_labelers,
        "models": [_model(panel, each, reference, users, groupings) for each in panel.performances],
        **all_against_all(panel.performances, prompts),
    }


def _model(
    panel: Panel,
    performance: Performance,
    reference: Performance,
    users: Sequence[str],
    groupings: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    won = outcomes(performance, reference)
    likerts = [row.likert for row in performance.judgements if row.likert is not None]
    return {
        "name": performance.name,
        "win_rate": asdict(win_rate(won, users)),
        "likert": asdict(mean_interval(likerts)) if likerts else None,
        "score": None if panel.ranks else asdict(mean_interval([row.score for row in performance.judgements])),
        "flags": label_rates(performance),
        "win_rate_by": {
            name: {
                group: asdict(win_rate(won[chosen], [users[i] for i in chosen.tolist()]))
                for group in sorted({*groups} - {""})
                if len(chosen := np.flatnonzero(np.array(groups) == group))
            }
            for name, groups in groupings.items()
        },
    }


def _difference(one: Panel, other: Panel, prompts: Sequence[Prompt], baseline: str) -> dict[str, Any]:
    users = [prompt.user for prompt in prompts]
    rows = []
    for performance in one.performances:
        if performance.name != baseline:
            first, second = (outcomes(panel.named(performance.name), panel.named(baseline)) for panel in (one, other))
            rows.append({"name": performance.name, "difference": asdict(paired_difference(first, second, users))})
    agreement = pair_agreement(_orders(one), _orders(other))
    return {
        "judges": [one.judge, other.judge],
        "models": rows,
        "agreement": None if agreement is None else asdict(agreement),
    }


def _orders(panel: Panel) -> list[frozenset[tuple[int, int]]]:
    """Which contenders are preferred to which, of each prompt."""
    performances = sorted(panel.performances, key=lambda each: each.name)
    scores = zip(*([row.score for row in each.judgements] for each in performances), strict=True)
    return [Comparison.pairs_from_ranks([-score for score in row]) for row in scores]
