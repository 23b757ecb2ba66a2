"""The tables of the report that describe the data of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from instructrl.evaluation.formatting import DASH, count, decimal, finite, label, percent
from instructrl.evaluation.table import Cell, TableView

Record = Mapping[str, Any]


def sizes(rows: Sequence[Record]) -> TableView:
    """The paper's table 6: split and source down, data set across, a total where a split has several sources."""
    sets = list(dict.fromkeys(str(row.get("set")) for row in rows))
    numbers: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        key = str(row.get("split")), str(row.get("source"))
        cell = numbers.setdefault(key, {})
        cell[str(row.get("set"))] = cell.get(str(row.get("set")), 0) + (finite(row.get("num_prompts")) or 0)
    lines, strong = [], []
    for split in dict.fromkeys(split for split, _ in numbers):
        sources = [source for other, source in numbers if other == split]
        for source in sources:
            cells = [Cell(main=count(numbers[split, source].get(name))) for name in sets]
            lines.append((Cell(main=label(split), detail=source), *cells))
        if len(sources) > 1:
            strong.append(len(lines))
            # None where the run has no such split: 0 would be one without prompts.
            known = [[n for source in sources if (n := numbers[split, source].get(name)) is not None] for name in sets]
            totals = [Cell(main=count(sum(found) if found else None)) for found in known]
            lines.append((Cell(main=label(split), detail="total"), *totals))
    headings = (("Split", ""), *((name, "") for name in sets))
    return TableView(
        title="Prompts that the run uses", headings=headings, rows=tuple(lines), strong=tuple(strong), wide=False
    )


def lengths(rows: Sequence[Record]) -> TableView:
    """The paper's tables 9 and 11: how long prompts and completions are."""
    keys = ("count", "mean", "std", "min", "p25", "p50", "p75", "max")
    names = ("Count", "Mean", "Std", "Min", "25%", "50%", "75%", "Max")
    lines = []
    for row in rows:
        digits = {"mean": 1, "std": 1}
        cells = [Cell(main=decimal(row.get(key), digits.get(key, 0))) for key in keys]
        lines.append((Cell(main=str(row.get("set", "")), detail=str(row.get("split", ""))), *cells))
    headings = (("Set", ""), *((name, "") for name in names))
    return TableView(title="Lengths in tokens", headings=headings, rows=tuple(lines))


def hygiene(rows: Sequence[Record]) -> TableView:
    """What each step of the cleaning removed."""
    lines = tuple(
        (
            Cell(main=label(str(row.get("step", ""))), detail=_reasons(row.get("reasons") or {})),
            Cell(main=count(row.get("removed"))),
            Cell(main=count(row.get("left"))),
        )
        for row in rows
    )
    headings = (("Step", ""), ("Removed", ""), ("Left", ""))
    return TableView(title="Hygiene", headings=headings, rows=lines, wide=False)


def _reasons(reasons: Record) -> str:
    """What was removed for each of several reasons."""
    return ", ".join(f"{reason} {count(number)}" for reason, number in reasons.items()) if len(reasons) > 1 else ""


def overlap(rows: Sequence[Record]) -> TableView:
    """Test prompts that a training set holds, in some sense."""
    lines = []
    for row in rows:
        number, total = finite(row.get("count")), finite(row.get("total"))
        share = percent(number / total) if number is not None and total else DASH
        lines.append((Cell(main=label(str(row.get("what", "")))), Cell(main=count(number)), Cell(main=share)))
    headings = (("Test prompts that stand", ""), ("Number", ""), ("Share", ""))
    return TableView(title="Test prompts seen in training", headings=headings, rows=tuple(lines), wide=False)
