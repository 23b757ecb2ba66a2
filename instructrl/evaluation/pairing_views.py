"""How the report shows models against each other: ratings, win rates at equal lengths, and the table of all pairs."""

from collections.abc import Mapping
from typing import Any

from instructrl.evaluation import plots
from instructrl.evaluation.figures import Plot, colours, whole_percent
from instructrl.evaluation.formatting import DASH, Estimate, count, estimate, finite, percent, percent_range
from instructrl.evaluation.narrative import win_rates
from instructrl.evaluation.style import MUTED
from instructrl.evaluation.table import Cell, TableView

Record = Mapping[str, Any]


def ratings_plot(results: Record) -> Plot | None:
    """A dot and an interval a model, the best one first."""
    found = [(str(row.get("model", "")), rating) for row in results.get("ratings") or [] if (rating := _rating(row))]
    if not found:
        return None
    colour = colours(results)
    rows = [
        plots.Row(label=name, estimate=rating, colour=colour.get(name, MUTED))
        for name, rating in sorted(found, key=lambda item: -item[1].value)
    ]
    ends = [value for row in rows for value in (row.estimate.value, row.estimate.low, row.estimate.high) if value]
    svg = plots.interval_rows(
        rows,
        name="ratings",
        what="Bradley-Terry ratings",
        scale=plots.Scale(write=count, tick=count, reference=1000.0, limits=(min(ends), max(ends))),
    )
    caption = (
        "Bradley-Terry strengths on the scale of Elo's ratings: 100 points more are preferred in 64% of the pairs, 400 "
        "in 91%. The mean of the models is 1,000. Bars: 95% intervals from resampling prompts or users."
    )
    return Plot(title="Ratings", svg=svg, caption=caption)


def length_plot(results: Record) -> Plot | None:
    """Each model's win rate with the one that is expected at equal lengths below it."""
    colour, baseline = colours(results), (results.get("run") or {}).get("baseline")
    at_equal = {
        str(model.get("name")): estimate(model.get("length_controlled")) for model in results.get("models") or []
    }
    groups = [
        plots.Group(label=name, estimates=((rate, colour[name]), (equal, MUTED)))
        for name, rate in win_rates(results).items()
        if name != baseline and (equal := at_equal.get(name))
    ]
    if not groups:
        return None
    what = "Win rate, and win rate at equal lengths"
    svg = plots.interval_groups(groups, name="length-controlled", what=what, write=whole_percent, reference=0.5)
    caption = (
        f"Against {baseline}, with 95% intervals. Grey: AlpacaEval 2's length-controlled win rate, which a logistic "
        "regression on the difference of the lengths expects for responses that are equally long."
    )
    return Plot(title=what, svg=svg, caption=caption)


def matrix_table(results: Record) -> TableView:
    """How often the model of a row is preferred to that of a column; without rows where there are two models."""
    matrix = results.get("win_rate_matrix") or {}
    names = [str(name) for name in matrix.get("models") or []]
    rows = tuple(
        (Cell(main=name), *(_cell(estimate(rate)) for rate in rates))
        for name, rates in zip(names, matrix.get("rates") or [], strict=True)
    )
    return TableView(
        title="How often the model of a row is preferred to that of a column, ties half",
        headings=(("", ""), *((name, "") for name in names)),
        rows=rows if len(names) > 2 else (),
    )


def _rating(row: Record) -> Estimate | None:
    return estimate({"mean": row.get("rating"), "low": finite(row.get("low")), "high": finite(row.get("high"))})


def _cell(rate: Estimate | None) -> Cell:
    return Cell(main=DASH) if rate is None else Cell(main=percent(rate.value), detail=percent_range(rate, DASH))
