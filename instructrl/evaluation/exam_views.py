"""How the report shows the exams of a world (`exams` of the results): what alignment costs on them (paper, figures 28
and 29), truth by prompt (figure 6) and toxicity by prompt (figure 7), with the paper's numbers of the same beside."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from instructrl.evaluation import plots
from instructrl.evaluation.figures import Plot, colours
from instructrl.evaluation.formatting import decimal, estimate, label, percent, percent_range
from instructrl.evaluation.style import INK, model_indices
from instructrl.evaluation.suite_views import models_of, paper_table, suite_plot, suite_tables
from instructrl.evaluation.table import TableView

Record = Mapping[str, Any]

TAX_LEAD = (
    "Points of 100 by which a model lies below GPT on tasks that no user asks for. In the paper, PPO falls below GPT "
    "on SQuADv2, DROP, HellaSwag and translation, and the mix gives most of it back (figures 28 and 29, another scale)."
)
CONDUCT_LEAD = (
    "Replies to questions about facts, and continuations of beginnings, a part of them rude; with each of the prompts. "
    "An abstention is true and not informative. The tables have the paper's numbers of the same, on another scale."
)
# Exams of conduct -> the paper's set, what names of prompts and metrics are there, and the metrics that are drawn.
_CONDUCT: Mapping[str, tuple[str, Mapping[str, str], tuple[str, ...]]] = {
    "exam of truth": ("truthfulqa", {"instruction + QA": "QA + instruct"}, ("true", "true and informative")),
    "exam of toxicity": ("realtoxicity", {"toxic": "toxicity"}, ("toxic",)),
}


def tax_plots(results: Record) -> list[Plot]:
    """The tax of all exams by number of examples, and that of each exam."""
    tax = (results.get("exams") or {}).get("tax") or {}
    ways = {name: found for name, found in tax.items() if isinstance(found, Mapping)}
    groups = [_group(results, label(name), found.get("tax") or {}) for name, found in ways.items()]
    by_exam = (ways.get("all") or {}).get("exams") or {}
    each = [_group(results, label(name), found) for name, found in by_exam.items()]
    found = []
    for name, title, shown, note in (
        ("all", "Alignment tax on exams, points", groups, _recovered(ways)),
        ("each", "Alignment tax by exam, points", each, "With and without examples together."),
    ):
        if drawn := [group for group in shown if group.estimates]:
            svg = plots.interval_groups(drawn, name=f"exam-tax-{name}", what=title, write=_whole, reference=0.0)
            found.append(Plot(title=title, svg=svg, caption=f"{note} Bars: 95% intervals over questions.".strip()))
    return found


def _whole(value: float) -> str:
    return decimal(value, 0)


def _group(results: Record, name: str, found: Record) -> plots.Group:
    colour = colours(results)
    estimates = [(value, colour.get(model, INK)) for model, record in found.items() if (value := estimate(record))]
    return plots.Group(label=name, estimates=tuple(estimates))


def _recovered(ways: Mapping[str, Record]) -> str:
    """What the mix gives back, where that is known."""
    told = [
        f"{name} {percent(found.value, 0)} ({percent_range(found)})"
        for name, way in ways.items()
        if (found := estimate(way.get("recovered")))
    ]
    return f"Of PPO’s tax, PPO-ptx has back: {'; '.join(told)}." if told else ""  # noqa: RUF001


def skill_plots(results: Record) -> list[Plot]:
    """The score in each exam of skills."""
    return _drawn(results, [entry for entry in _entries(results) if entry["suite"] not in _CONDUCT])


def conduct_plots(results: Record) -> list[Plot]:
    """Truth and toxicity by prompt: true, and true and informative; toxic."""
    shown = [
        _only(entry, lambda row, entry=entry: row["metric"] in _drawn_metrics(entry)) for entry in _conduct(results)
    ]
    return _drawn(results, shown)


def conduct_tables(results: Record) -> list[TableView]:
    """All numbers of both, of groups of questions those that are drawn, and the paper's."""
    shown = [
        _only(entry, lambda row, entry=entry: not row["group"] or row["metric"] in _drawn_metrics(entry))
        for entry in _conduct(results)
    ]
    return [view for entry in shown for view in (*suite_tables(entry), paper_table(_as_in_paper(entry))) if view.rows]


def legend(results: Record) -> tuple[tuple[str, int], ...]:
    """The models that sat the exams."""
    indices = model_indices(colours(results))
    names = dict.fromkeys(name for entry in _entries(results) for name in models_of(entry))
    return tuple((name, indices[name]) for name in names if name in indices)


def _entries(results: Record) -> Sequence[Record]:
    return (results.get("exams") or {}).get("entries") or []


def _conduct(results: Record) -> list[Record]:
    return [entry for entry in _entries(results) if entry["suite"] in _CONDUCT]


def _drawn_metrics(entry: Record) -> tuple[str, ...]:
    return _CONDUCT[entry["suite"]][2]


def _only(entry: Record, kept: Callable[[Record], bool]) -> Record:
    return {**entry, "rows": [row for row in entry["rows"] if kept(row)]}


def _drawn(results: Record, entries: Sequence[Record]) -> list[Plot]:
    indices = model_indices(colours(results))
    return [plot for entry in entries if (plot := suite_plot(entry, indices))]


def _as_in_paper(entry: Record) -> Record:
    """An entry whose suite, prompts and metrics have the paper's names."""
    suite, names, _ = _CONDUCT[entry["suite"]]
    rows = [{**row, **{key: names.get(row[key], row[key]) for key in ("prompt", "metric")}} for row in entry["rows"]]
    return {**entry, "suite": suite, "rows": rows}
