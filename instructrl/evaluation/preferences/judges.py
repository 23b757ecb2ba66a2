"""The entries of `results.json` that compare judges: what each has a bias for, and how far they agree."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from instructrl.evaluation.preferences.agreement import (
    agreement,
    agreement_within,
    first_preferred,
    kendall,
    longer_preferred,
    same_after_swap,
    spearman,
)
from instructrl.evaluation.preferences.entries import Gamed
from instructrl.evaluation.preferences.judgements import Judgement, baseline_of, judged_models
from instructrl.evaluation.statistics import PairRate


def by_judge(judgements: Sequence[Judgement]) -> dict[str, list[Judgement]]:
    """Judges in the order in which they first appear."""
    found: dict[str, list[Judgement]] = {}
    for row in judgements:
        found.setdefault(row.judge, []).append(row)
    return found


def judged(judgements: Sequence[Judgement], baseline: str | None = None, gamed: Gamed | None = None) -> dict[str, Any]:
    """All entries: `baseline`, the models by the first judge that knows any, `judges`, and `agreements`.

    baseline: the model that others are compared with; unset it is the first one of every pair, where that is the same
    one. Raises ValueError for a baseline that is no model.
    """
    judges = by_judge(judgements)
    names = {name for row in judgements for name in row.models or ()}
    if baseline is not None and baseline not in names:
        raise ValueError(
            f"baseline: found {baseline!r}, accepted are {', '.join(sorted(names)) or 'models, and none is named'}"
        )
    baseline = baseline or baseline_of(judgements)
    models = {name: judged_models(rows, baseline, gamed) for name, rows in judges.items()}
    first = next((name for name in judges if models[name]), None)
    shares = {
        name: {row["name"]: row["share_won"] for row in found.get("models", ()) if row["share_won"] is not None}
        for name, found in models.items()
    }
    agreements = []
    for one, other in combinations(judges, 2):
        found = agreement(judges[one], judges[other])
        if found.num_pairs:
            agreements.append({"judges": [one, other], **asdict(found), **_orders(shares[one], shares[other])})
    entries = [_judge(name, rows, models[name]) for name, rows in judges.items()]
    shown = {} if first is None else models[first]
    return {"baseline": baseline, "judge": first, **shown, "judges": entries, "agreements": agreements}


def _judge(name: str, rows: Sequence[Judgement], models: Mapping[str, Any]) -> dict[str, Any]:
    within = agreement_within(rows)
    rates: dict[str, PairRate | None] = {
        "longer_preferred": longer_preferred(rows),
        "first_preferred": first_preferred(rows),
        "same_after_swap": same_after_swap(rows),
    }
    return {
        "judge": name,
        "num_judgements": len(rows),
        "num_without_verdict": sum(row.outcome is None for row in rows),
        "among_themselves": asdict(within) if within.num_pairs else None,
        **{key: None if rate is None else asdict(rate) for key, rate in rates.items()},
        "models": models.get("models", []),
    }


def _orders(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, Any]:
    """Rank correlations of the models that both judges have judged, by the share of their pairs that they won."""
    both = [name for name in first if name in second]
    a, b = [first[name] for name in both], [second[name] for name in both]
    return {"num_models": len(both), "spearman": spearman(a, b), "kendall": kendall(a, b)}
