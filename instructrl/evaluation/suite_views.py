"""How public test sets are shown: a figure and tables of each, in the report and in a terminal.

entry: one of `suites` in `results.json`: suite, title, what, notes, and rows of a model, prompt, shots, metric, group,
unit, value, low, high, num_items.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from instructrl.evaluation import plots
from instructrl.evaluation.figures import Plot
from instructrl.evaluation.formatting import DASH, Estimate, count, decimal, decimal_range, finite, label
from instructrl.evaluation.style import MODEL_COLOURS, MUTED
from instructrl.evaluation.suites.paper import MODELS, NOTES, PAPER, SIZES
from instructrl.evaluation.table import Cell, TableView

Record = Mapping[str, Any]
# Of a unit: what stands under a number, and its decimals.
_DIGITS = {"share": 3, "bits": 3, "points": 1}
_ASKED = ("prompt", "shots", "metric", "unit", "group")


def models_of(entry: Record) -> list[str]:
    return list(dict.fromkeys(str(row["model"]) for row in entry.get("rows") or []))


def _lines(entry: Record, *, grouped: bool) -> dict[tuple, dict[str, Record]]:
    """What is asked (prompt, shots, metric, unit, group) -> model -> its row. grouped: those of a part of the items."""
    found: dict[tuple, dict[str, Record]] = {}
    for row in entry.get("rows") or []:
        if bool(row.get("group")) == grouped:
            found.setdefault(tuple(row.get(name) for name in _ASKED), {})[str(row["model"])] = row
    return found


def _named(asked: tuple, *, with_unit: bool = True) -> str:
    prompt, shots, metric, unit, group = asked
    how = ", ".join(str(part) for part in (prompt, f"{shots}-shot" if shots else "", group) if part)
    what = f"{metric}, {unit}" if with_unit and unit not in ("share", "") else str(metric)
    return f"{how}: {what}" if how else label(what)


def _estimate(row: Record) -> Estimate | None:
    value = finite(row.get("value"))
    return None if value is None else Estimate(value=value, low=finite(row.get("low")), high=finite(row.get("high")))


def _cell(row: Record | None, unit: str) -> Cell:
    found = None if row is None else _estimate(row)
    if found is None:
        return Cell(main=DASH)
    digits = _DIGITS.get(unit, 3)
    return Cell(main=decimal(found.value, digits), detail=decimal_range(found, DASH, digits))


def _num_items(rows: Sequence[Record]) -> str:
    """How many were asked: of models that were asked different numbers, the fewest and the most."""
    counts = sorted({int(row["num_items"]) for row in rows})
    return count(counts[0]) if len(counts) == 1 else f"{count(counts[0])}{DASH}{count(counts[-1])}"


def suite_tables(entry: Record) -> list[TableView]:
    """All items with what is to be known of them, the paper's numbers, and where there are groups, each of them."""
    views = (
        _table(entry, f"{entry.get('title')}", grouped=False),
        paper_table(entry),
        _table(entry, f"{entry.get('title')}, by group", grouped=True),
    )
    return [view for view in views if view.rows or view.notes]


def _table(entry: Record, title: str, *, grouped: bool) -> TableView:
    models = models_of(entry)
    rows = tuple(
        (
            Cell(main=_named(asked)),
            *(_cell(found.get(model), asked[3]) for model in models),
            Cell(main=_num_items([*found.values()])),
        )
        for asked, found in _lines(entry, grouped=grouped).items()
    )
    notes = () if grouped else tuple(str(note) for note in entry.get("notes") or [])
    headings = (("", ""), *((model, "") for model in models), ("Items", ""))
    return TableView(title=title, headings=headings, rows=rows, notes=notes)


def paper_table(entry: Record) -> TableView:
    """Of the same that is asked here; without rows where the paper has nothing."""
    found = {asked: _in_paper(entry, asked) for asked in _lines(entry, grouped=False)}
    rows = tuple(
        (Cell(main=_named(asked)), *(_paper_cell(numbers.get(model), asked[3]) for model in MODELS))
        for asked, numbers in found.items()
        if numbers
    )
    notes = ("The paper's models are of another scale, and were asked by another program",)
    notes += (NOTES[name],) if (name := str(entry.get("suite"))) in NOTES else ()
    headings = (("", ""), *((f"Paper: {model}", f"{SIZES[0]} ({', '.join(SIZES[1:])})") for model in MODELS))
    title = f"{entry.get('title')} in the paper"
    return TableView(title=title, headings=headings, rows=rows, notes=notes if rows else ())


def _in_paper(entry: Record, asked: tuple) -> Mapping[str, Mapping[str, float]]:
    """model -> size -> what the paper has; empty where it has nothing."""
    prompt, shots, metric, *_ = asked
    name = str(metric).partition(" (")[0]  # behind it stands whose measure it is
    return PAPER.get((str(entry.get("suite")), prompt, shots), {}).get(name, {})


def _paper_cell(sizes: Mapping[str, float] | None, unit: str) -> Cell:
    if not sizes:
        return Cell(main=DASH)
    first, *others = (decimal(sizes[size], _DIGITS.get(unit, 3)) for size in SIZES)
    return Cell(main=first, detail=f"({', '.join(others)})")


def suite_plot(entry: Record, colour: Mapping[str, int]) -> Plot | None:
    """The numbers of all items that have the unit of the first. colour: of each model."""
    lines = _lines(entry, grouped=False)
    units = {asked[3]: None for asked in lines}
    groups = []
    for asked, found in lines.items():
        estimates = tuple(
            (value, MODEL_COLOURS[colour[model]] if model in colour else MUTED)
            for model, row in found.items()
            if (value := _estimate(row))
        )
        if estimates and asked[3] == next(iter(units)):
            groups.append(plots.Group(label=_named(asked, with_unit=False), estimates=estimates))
    if not groups:
        return None
    title = f"{entry.get('title')}: {entry.get('what')}"
    svg = plots.interval_groups(groups, name=f"suite-{entry.get('suite')}", what=title, write=decimal, reference=None)
    what = str(entry.get("what", ""))
    return Plot(title=str(entry.get("title")), svg=svg, caption=f"{what[:1].upper()}{what[1:]}." if what else "")


def terminal_tables(results: Record) -> list[Group]:
    """A table for each suite, groups left out, and its notes. Text is shown as is, never as markup."""
    shown = []
    for entry in results.get("suites") or []:
        view = _table(entry, str(entry.get("title")), grouped=False)
        table = Table(title=Text(view.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.collapse_padding = True
        for heading, _ in view.headings:
            table.add_column(Text(heading), justify="right" if heading else "left", overflow="fold")
        for row in view.rows:
            table.add_row(*(Text(cell.main) for cell in row))
        shown.append(Group(table, *(Text(note, style="dim") for note in view.notes), ""))
    return shown
