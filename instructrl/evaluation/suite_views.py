"""How public test sets are shown: a figure and tables of each, in the report and in a terminal.

entry: one of `suites` in `results.json`: suite, title, what, notes, and rows of a model, prompt, shots, metric, group,
unit, value, low, high, num_items.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
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
    """All items, and where there are groups, each of them."""
    return [
        view
        for title, grouped in ((f"{entry.get('title')}", False), (f"{entry.get('title')}, by group", True))
        if (view := _table(entry, title, grouped)).rows
    ]


def _table(entry: Record, title: str, grouped: bool, *, with_paper: bool = True) -> TableView:
    models, lines = models_of(entry), _lines(entry, grouped=grouped)
    paper = {asked: _in_paper(entry, asked) for asked in lines} if with_paper and not grouped else {}
    beside = MODELS if any(paper.values()) else ()
    headings = (
        ("", ""),
        *((model, "") for model in models),
        ("Items", ""),
        *((f"Paper: {model}", f"{SIZES[0]} ({', '.join(SIZES[1:])})") for model in beside),
    )
    rows = tuple(
        (
            Cell(main=_named(asked)),
            *(_cell(found.get(model), asked[3]) for model in models),
            Cell(main=_num_items([*found.values()])),
            *(_paper_cell(paper[asked].get(model), asked[3]) for model in beside),
        )
        for asked, found in lines.items()
    )
    return TableView(title=title, headings=headings, rows=rows)


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
    return Plot(title=str(entry.get("title")), svg=svg, caption=_caption(entry))


def _caption(entry: Record) -> str:
    notes = [str(note) for note in entry.get("notes") or []]
    if any(_in_paper(entry, asked) for asked in _lines(entry, grouped=False)):
        notes.append("The paper's models are of another scale, and were asked by another program")
        notes += [NOTES[name]] if (name := str(entry.get("suite"))) in NOTES else []
    return " ".join(
        f"{text[:1].upper()}{text[1:].rstrip('.')}." for text in (str(entry.get("what", "")), *notes) if text
    )


def terminal_tables(results: Record) -> list[Table]:
    """A table for each suite, groups left out. Text is shown as is, never as markup."""
    tables = []
    for entry in results.get("suites") or []:
        view = _table(entry, str(entry.get("title")), False, with_paper=False)
        table = Table(title=Text(view.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for heading, _ in view.headings:
            table.add_column(Text(heading), justify="right" if heading else "left")
        for row in view.rows:
            table.add_row(*(Text(cell.main) for cell in row))
        notes = [str(note) for note in entry.get("notes") or []]
        table.caption, table.caption_justify = Text("\n".join(notes)), "left"
        tables.append(table)
    return tables
