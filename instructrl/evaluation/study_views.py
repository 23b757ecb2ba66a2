"""How a study is shown: a plot of every metric with a line of each series, the paper's figure beside, and all numbers.

study: what `study.json` holds. rows: study, series, x, label, seed, metrics {name: {value, low, high}}, diverged.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from instructrl.evaluation import plots
from instructrl.evaluation.figures import Plot
from instructrl.evaluation.formatting import DASH, Estimate, decimal, decimal_range, finite, label
from instructrl.evaluation.paper_figures import PAPER_FIGURES, PAPER_WORDS, PaperFigure
from instructrl.evaluation.sections import Section
from instructrl.evaluation.statistics import mean_interval
from instructrl.evaluation.style import MODEL_COLOURS, model_indices
from instructrl.evaluation.table import Cell, TableView

Record = Mapping[str, Any]
_PER_CENT = ("win_rate", "held_in", "held_out", "accuracy")


def study_sections(study: Record) -> list[Section]:
    """Ours, the paper's, and the table."""
    shown = [plot for name in study["shown"] if (plot := metric_plot(study, name)) is not None]
    papers = [_paper_plot(figure, i) for i, figure in enumerate(PAPER_FIGURES.get(study["study"], ()))]
    words = PAPER_WORDS.get(study["study"], "")
    made = [
        Section(id="ours", title="Here", lead=_lead(study), legend=_legend(study), plots=tuple(shown)),
        Section(id="paper", title="In the paper", lead=words, plots=tuple(papers)),
        Section(id="numbers", title="All numbers", tables=(table(study),)),
    ]
    return [section for section in made if not section.empty or section.lead]


def study_sentences(study: Record) -> list[str]:
    """What the page begins with."""
    rows = study["rows"]
    lost = [f"{row['series']}, {row['label']}" for row in rows if row["diverged"]]
    found = [str(study["what"])]
    if study["kind"] == "folds":
        found += _folds_sentences(rows)
    if lost:
        names = "; ".join(dict.fromkeys(lost))
        found.append(
            f"Diverged: {names}. A policy has diverged where a number was not finite, where it is more than a "
            "nat a token from its start, or where its gold score lies clearly below that of the start."
        )
    return found


def _folds_sentences(rows: Sequence[Record]) -> list[str]:
    said = []
    for name, whose in (("held_in", "labelers of their own groups"), ("held_out", "labelers of the group left out")):
        values = [row["metrics"][name]["value"] for row in rows if name in row["metrics"]]
        if values:
            found = mean_interval([100 * value for value in values])
            spread = "" if found.low is None or found.high is None else f" ± {decimal((found.high - found.low) / 2, 1)}"
            said.append(f"Accuracy on {whose}: {decimal(found.mean, 1)}{spread}% over {len(values)} reward models.")
    return said


def all_series(study: Record) -> list[str]:
    return list(dict.fromkeys(str(row["series"]) for row in study["rows"]))


def colours(study: Record) -> dict[str, int]:
    """Series and the models of dashed lines; the latter keep theirs of every report."""
    return model_indices([*study.get("references", {}), *all_series(study)])


def metric_plot(study: Record, name: str) -> Plot | None:
    """One metric over x, or over another metric; the mean over seeds where there are several. None without values."""
    index, scale = colours(study), 100.0 if name in _PER_CENT else 1.0
    drawn = [_curve(study, series, name, MODEL_COLOURS[index[series]], scale) for series in all_series(study)]
    drawn = [curve for curve in drawn if curve.xs or curve.lost]
    if not any(curve.xs for curve in drawn):
        return None
    dashed = {
        model: (scale * found["value"], MODEL_COLOURS[index[model]])
        for model, metrics in study.get("references", {}).items()
        if (found := metrics.get(name)) and finite(found.get("value")) is not None
    }
    title = str(study["shown"][name]) + (", %" if scale == 100.0 else "")
    against = study["against"]
    axis = ("√KL, nats", False) if against == "sqrt_kl" else (str(study["x_label"]), bool(study["log_x"]))
    svg = plots.curves(drawn, name=f"study-{name}", what=title, axis=axis, dashed=dashed)
    notes = [f"Dashed: {', '.join(dashed)}."] if dashed else []
    notes += ["Crosses: diverged, no numbers."] if any(curve.lost for curve in drawn) else []
    return Plot(title=title, svg=svg, caption=" ".join(notes))


def _curve(study: Record, series: str, name: str, colour: str, scale: float) -> plots.Curve:
    groups: dict[tuple[str, float], list[Record]] = {}
    for row in study["rows"]:
        if row["series"] == series:
            groups.setdefault((row["label"], row["x"]), []).append(row)
    points, lost = [], []
    for (_, x), rows in groups.items():
        measured = [row["metrics"] for row in rows if name in row["metrics"]]
        place = _place(study, x, measured)
        if measured and place is not None:
            points.append((place, _over_seeds([found[name] for found in measured], scale)))
        elif not measured and not study["against"] and any(row["diverged"] for row in rows):
            lost.append(x)
    points.sort(key=lambda point: point[0])
    xs, estimates = [x for x, _ in points], [found for _, found in points]
    return plots.Curve(label=series, xs=xs, estimates=estimates, colour=colour, lost=lost)


def _place(study: Record, x: float, measured: Sequence[Record]) -> float | None:
    against = study["against"]
    if not against:
        return x
    places = [found[against]["value"] for found in measured if against in found]
    return sum(places) / len(places) if places else None


def _over_seeds(found: Sequence[Record], scale: float) -> Estimate:
    """Of one seed its own interval, over prompts; of several that over seeds."""
    if len(found) == 1:
        low, high = finite(found[0]["low"]), finite(found[0]["high"])
        known = low is not None and high is not None
        bounds = (scale * low, scale * high) if known else (None, None)  # type: ignore[operator]
        return Estimate(value=scale * found[0]["value"], low=bounds[0], high=bounds[1])
    over = mean_interval([scale * one["value"] for one in found])
    return Estimate(value=over.mean, low=over.low, high=over.high)


def table(study: Record) -> TableView:
    """A row of each point and seed, all metrics with their intervals."""
    names = list(dict.fromkeys(name for row in study["rows"] for name in row["metrics"]))
    rows = tuple(
        (
            Cell(main=f"{row['series']}, {row['label']}", detail=_detail(study, row)),
            Cell(main="diverged" if row["diverged"] else DASH),
            *(_cell(row["metrics"].get(name)) for name in names),
        )
        for row in study["rows"]
    )
    headings = (("Point", str(study["x_label"])), ("", ""), *((label(name), "") for name in names))
    return TableView(title="", headings=headings, rows=rows)


def _detail(study: Record, row: Record) -> str:
    return f"{row['x']:.4g}" + (f", seed {row['seed']}" if study["seeds"] > 1 else "")


def _cell(found: Record | None) -> Cell:
    if not found:
        return Cell(main=DASH)
    value = Estimate(value=found["value"], low=finite(found["low"]), high=finite(found["high"]))
    return Cell(main=decimal(value.value, 3), detail=decimal_range(value, DASH, 3))


# What the numbers of a kind of study are made of.
_MEASURED_ON = {
    "policies": ("On prompts of validation users.", "prompts or blocks of text"),
    "folds": ("On comparisons that the reward model did not learn from.", "prompts"),
    "passes": ("On a tenth of the prompts, which no reward model here learned from.", "prompts"),
}


def _lead(study: Record) -> str:
    where, units = _MEASURED_ON[study["kind"]]
    over = f"over {study['seeds']} seeds" if study["seeds"] > 1 else f"over {units}, of one seed"
    return f"{where} Bars: 95% intervals {over}."


def _legend(study: Record) -> tuple[tuple[str, int], ...]:
    index = colours(study)
    return tuple((name, index[name]) for name in [*all_series(study), *study.get("references", {})])


def _paper_plot(figure: PaperFigure, number: int) -> Plot:
    """On an axis of its own: nothing of it is comparable in size."""
    names = [*figure.lines, *figure.dashed]
    colour = {name: MODEL_COLOURS[6 + i % 4] for i, name in enumerate(names)}
    drawn = [
        plots.Curve(
            label=name,
            xs=[x for x, _ in points],
            estimates=[Estimate(value=y, low=None, high=None) for _, y in points],
            colour=colour[name],
        )
        for name, points in figure.lines.items()
    ]
    dashed = {name: (y, colour[_solid(name, figure)]) for name, y in figure.dashed.items()}
    title = f"{figure.title} ({figure.source})"
    axis = (figure.x_label, figure.log_x)
    svg = plots.curves(drawn, name=f"paper-{number}", what=f"The paper: {title}", axis=axis, dashed=dashed)
    lines = f"Lines from the top: {', '.join(_by_height(figure))}." if len(figure.lines) > 1 else ""
    return Plot(title=title, svg=svg, caption=" ".join(filter(None, (lines, figure.note))))


def _solid(name: str, figure: PaperFigure) -> str:
    """The line that a dashed one is of: `GPT on DROP` has the colour of `DROP`."""
    of = re.sub(r"^GPT on ", "", name)
    return of if of in figure.lines else name


def _by_height(figure: PaperFigure) -> list[str]:
    return sorted(figure.lines, key=lambda name: -max(y for _, y in figure.lines[name]))
