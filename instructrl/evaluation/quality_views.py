"""How the report shows reward models beside people: a plot of their agreement, and a table of what length does."""

from collections.abc import Mapping
from typing import Any

from instructrl.evaluation import plots
from instructrl.evaluation.figures import Plot, whole_percent
from instructrl.evaluation.formatting import (
    DASH,
    Estimate,
    count,
    decimal,
    decimal_range,
    estimate,
    label,
    percent,
    percent_range,
)
from instructrl.evaluation.style import ACCENT, INK, MUTED
from instructrl.evaluation.table import Cell, TableView

Record = Mapping[str, Any]


def agreement_plot(record: Record) -> Plot | None:
    """Accuracy of each reward model on each set of held-out comparisons, and the agreement of people.

    record: the `reward_model` entry of the results.
    """
    colours = {"reward model": ACCENT, "judge": INK}
    rows = [
        plots.Row(label=_named(row), estimate=rate, colour=colours.get(str(row.get("model")), MUTED))
        for row in record.get("held_out") or []
        if (rate := estimate(row.get("accuracy")))
    ]
    if not rows:
        return None
    if people := estimate(record.get("annotators")):
        rows.append(plots.Row(label="Annotators, pandalm", estimate=people, colour=MUTED))
    lowest = min(row.estimate.value if row.estimate.low is None else row.estimate.low for row in rows)
    svg = plots.interval_rows(
        rows,
        name="held-out",
        what="Agreement with people",
        scale=plots.Scale(write=percent, tick=whole_percent, reference=0.5, limits=(min(0.45, lowest), 1.0)),
    )
    caption = (
        "Share of the pairs in which people prefer one response that the model ranks the same way, on comparisons that "
        "nothing was trained on. Annotators: how often two of them prefer the same response. Dashed: chance. Intervals "
        "take prompts, not pairs, as independent."
    )
    return Plot(title="Agreement with people, set by set", svg=svg, caption=caption)


def length_table(record: Record) -> TableView:
    """Whether longer responses score higher, and whether people prefer them. record: as `agreement_plot`."""
    rows = tuple(
        (
            Cell(main=_named(row)),
            _cell(estimate(row.get("length_correlation")), decimal, decimal_range),
            *(
                _cell(estimate(row.get(key)), percent, percent_range)
                for key in ("prefers_longer", "people_prefer_longer")
            ),
            Cell(main=count((row.get("prefers_longer") or {}).get("num_pairs"))),
        )
        for row in record.get("held_out") or []
    )
    headings = (
        ("Model", ""),
        ("Score and length", "correlation"),
        ("Model for the longer", "of pairs"),
        ("People for the longer", "of pairs"),
        ("Pairs", ""),
    )
    return TableView(title="Length of the responses", headings=headings, rows=rows)


def _named(row: Record) -> str:
    return f"{label(str(row.get('model', '')))}, {row.get('data', '')}"


def _cell(found: Estimate | None, write: Any, write_range: Any) -> Cell:
    return Cell(main=DASH) if found is None else Cell(main=write(found.value), detail=write_range(found, DASH))
