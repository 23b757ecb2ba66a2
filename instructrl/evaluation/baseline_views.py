"""How the report shows the baselines: what tuning on public-style mixtures gives, and the prefixes that were tried."""

from collections.abc import Mapping, Sequence
from typing import Any

from instructrl.evaluation import plots
from instructrl.evaluation.figures import Plot, colours
from instructrl.evaluation.formatting import DASH, Estimate, decimal, decimal_range, estimate, finite
from instructrl.evaluation.style import INK
from instructrl.evaluation.table import Cell, TableView

Record = Mapping[str, Any]

LEAD = (
    "GPT behind a prefix, and GPT tuned on mixtures of easily scored tasks, as FLAN and T0 are. The reward model "
    "chooses the prefix and the checkpoint by responses to validation prompts."
)
# Figure 13 of the paper and C.5, in words: its scores are those of another reward model.
_PAPER = (
    "Paper, figure 13, on another scale: −6.6 to −5.4, little gain after 400,000 examples; of 4e-6 and 6e-6 the lower "  # noqa: RUF001
    "rate was picked, at 896,000 examples."
)


def mixture_names(results: Record) -> list[str]:
    """The models that were tuned on a mixture."""
    return [str(name) for name in results.get("baselines") or {} if name != "prefixes"]


def mixture_plots(results: Record) -> list[Plot]:
    """Reward score by number of examples, a panel a learning rate and a line a mixture, the chosen ones ringed."""
    found = {name: _scored((results.get("baselines") or {})[name]) for name in mixture_names(results)}
    ends = [end for rows in found.values() for _, score in rows for end in _ends(score)]
    rates = sorted({lr for rows in found.values() for row, _ in rows if (lr := finite(row.get("lr"))) is not None})
    colour, drawn = colours(results), []
    for lr in rates:
        series = [
            line
            for name, rows in found.items()
            if (line := _line(name, [row for row in rows if row[0].get("lr") == lr], colour.get(name, INK)))
        ]
        if not series:
            continue
        title = f"Score by examples at a rate of {lr:.3g}"
        svg = plots.lines(
            series, name=f"mixture-{lr:.3g}", what=title, x_label="examples", limits=(min(ends), max(ends))
        )
        caption = f"Mean reward score, with 95% intervals. Ringed: the one selected of its mixture. {_PAPER}"
        drawn.append(Plot(title=title, svg=svg, caption=caption))
    return drawn


def prefix_table(results: Record) -> TableView:
    """The candidates with their scores, the chosen one in bold."""
    rows = _scored((results.get("baselines") or {}).get("prefixes") or [])
    return TableView(
        title="Prefixes of the prompted model",
        headings=(("Prefix", ""), ("Reward score", "95% interval")),
        rows=tuple(
            (
                Cell(main=str(row.get("prefix", "")), detail="selected" if row.get("selected") else ""),
                Cell(main=decimal(score.value), detail=decimal_range(score, DASH)),
            )
            for row, score in rows
        ),
        strong=tuple(index for index, (row, _) in enumerate(rows) if row.get("selected")),
        wide=False,
        notes=tuple(f"{row.get('prefix', '')}: {row.get('text', '')}" for row, _ in rows),
    )


def _scored(rows: Sequence[Record]) -> list[tuple[Record, Estimate]]:
    """Those with a score, and it as an estimate."""
    found = [(row, estimate({**row, "mean": row.get("score")})) for row in rows]
    return [(row, score) for row, score in found if score is not None]


def _ends(score: Estimate) -> list[float]:
    return [value for value in (score.value, score.low, score.high) if value is not None]


def _line(name: str, rows: Sequence[tuple[Record, Estimate]], colour: str) -> plots.Line | None:
    kept = [(row, score) for row, score in rows if finite(row.get("examples")) is not None]
    if not kept:
        return None
    chosen = [index for index, (row, _) in enumerate(kept) if row.get("selected")]
    return plots.Line(
        label=name,
        xs=[float(row["examples"]) for row, _ in kept],
        ys=[score.value for _, score in kept],
        colour=colour,
        ringed=chosen[0] if chosen else None,
        intervals=[(min(_ends(score)), max(_ends(score))) for _, score in kept],
    )
