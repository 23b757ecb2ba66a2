"""How the report shows what each judge says of the same responses (`judged` of the results, `judged.py`).

Win rates by judge and distribution of prompts (paper, figure 3), Likert scores by judge (figure 31), and the labels of
table 3, each with the number of responses that it applies to (figure 4).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from instructrl.evaluation import plots
from instructrl.evaluation.figures import Plot, colours, whole_percent
from instructrl.evaluation.formatting import DASH, count, decimal, estimate, finite, label, percent, percent_range
from instructrl.evaluation.paper_figures import BY_JUDGE, BY_JUDGE_HEADINGS, MARK
from instructrl.evaluation.style import INK, model_indices
from instructrl.evaluation.table import Cell, TableView

Record = Mapping[str, Any]

LEAD = (
    "The same responses, judged blind by labelers whose rankings trained the reward model, by labelers who label "
    "nothing else, and by the rubric as a control."
)
# Distributions of prompts, as results name them, and in words.
_PROMPTS = {"instruct": "instructions", "gpt": "for plain text"}


def judge_rows(results: Record) -> Sequence[Record]:
    """Of each judge its name and its models."""
    return (results.get("judged") or {}).get("judges") or []


def judged_plots(results: Record) -> list[Plot]:
    """Win rates and Likert scores, a row a judge and a dot a model."""
    baseline = (results.get("judged") or {}).get("baseline")
    rates = _groups(results, lambda model: model.get("win_rate"), "", without=baseline)
    present = {name for judge in judge_rows(results) for model in judge["models"] for name in _by_distribution(model)}
    names = [*(name for name in _PROMPTS if name in present), *sorted(present - {*_PROMPTS})]
    split = [
        group
        for name in names
        for group in _groups(
            results,
            lambda model, name=name: _by_distribution(model).get(name),
            f", {_PROMPTS.get(name, label(name))}",
            without=baseline,
        )
    ]
    likerts = _groups(results, lambda model: model.get("likert"), "")
    found = []
    for groups, name, title, note in (
        (rates, "win-rate", "Win rate by judge", f"Against {baseline}, with 95% intervals."),
        (split, "distribution", "Win rate by judge and prompts", f"Against {baseline}, with 95% intervals."),
    ):
        if groups:
            svg = plots.interval_groups(groups, name=f"judged-{name}", what=title, write=whole_percent, reference=0.5)
            found.append(Plot(title=title, svg=svg, caption=note))
    if likerts:
        title = "Likert score by judge, 1 to 7"
        svg = plots.interval_groups(likerts, name="judged-likert", what=title, write=decimal, reference=None)
        found.append(Plot(title=title, svg=svg, caption="Means with 95% intervals."))
    return found


def _by_distribution(model: Record) -> Record:
    return (model.get("win_rate_by") or {}).get("distribution") or {}


def _groups(results: Record, read: Any, suffix: str, without: Any = None) -> list[plots.Group]:
    """A group a judge. read: model's row -> a record with an interval."""
    colour, found = colours(results), []
    for judge in judge_rows(results):
        estimates = tuple(
            (value, colour.get(str(model["name"]), INK))
            for model in judge["models"]
            if model["name"] != without and (value := estimate(read(model)))
        )
        if estimates:
            found.append(plots.Group(label=f"{label(str(judge['judge']))}{suffix}", estimates=estimates))
    return found


def label_tables(results: Record) -> list[TableView]:
    """Of each judge, the share of responses with each label, and of how many."""
    return [view for judge in judge_rows(results) if (view := _labels(results, judge)).rows]


def _labels(results: Record, judge: Record) -> TableView:
    models = judge["models"]
    flags = list(dict.fromkeys(flag for model in models for flag in model.get("flags") or {}))
    indices = model_indices([*colours(results), *(str(model["name"]) for model in models)])
    rows = tuple(
        (Cell(main=str(model["name"])), *(_share((model.get("flags") or {}).get(flag)) for flag in flags))
        for model in models
    )
    return TableView(
        title=f"Labels by the {judge['judge']}",
        headings=(("Model", ""), *((label(flag), "") for flag in flags)),
        rows=rows if flags else (),
        colours=tuple(indices[str(model["name"])] for model in models),
    )


def _share(record: Any) -> Cell:
    found = estimate(record)
    if found is None:
        return Cell(main=DASH)
    of = f" of {count(record['total'])}" if finite(record.get("total")) is not None else ""
    return Cell(main=percent(found.value), detail=f"{percent_range(found, DASH)}{of}")


def paper_table(results: Record) -> TableView:
    """What the paper's figures have of the same; without rows where nothing was judged here."""
    rows = tuple(
        (Cell(main=model), *(Cell(main=value) for value in values))
        for model, values in BY_JUDGE.items()
        if judge_rows(results)
    )
    headings = (("Model", ""), *BY_JUDGE_HEADINGS)
    return TableView(title="In the paper: another scale", headings=headings, rows=rows, notes=(MARK,) if rows else ())
