"""How judges and benchmarks of reward models are shown: tables of the report and of a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from instructrl.evaluation.formatting import DASH, Estimate, count, decimal, estimate, percent, percent_range
from instructrl.evaluation.pairing_views import matrix_table
from instructrl.evaluation.table import Cell, TableView

Record = Mapping[str, Any]
_FEW_ROWS = 3  # that stand side by side in a terminal


def judges_table(results: Record) -> TableView:
    """What each judge prefers beside what is better: the longer response, the first one; and how steady it is."""
    rows = tuple(
        (
            Cell(main=str(row.get("judge"))),
            Cell(main=count(row.get("num_judgements")), detail=_without(row)),
            *(_share(row.get(key)) for key in ("longer_preferred", "first_preferred", "same_after_swap")),
            *(_share((row.get("among_themselves") or {}).get(key)) for key in ("strict", "with_median")),
        )
        for row in results.get("judges") or []
    )
    headings = (
        ("Judge", ""),
        ("Verdicts", ""),
        ("For the longer", "by over 30 characters"),
        ("For the first", "of decided pairs"),
        ("Same swapped", "of pairs judged in both orders"),
        ("Two alike", "of its verdicts on a pair"),
        ("One and the rest", "median of the others"),
    )
    return TableView(title="Judges", headings=headings, rows=rows)


def agreements_table(results: Record) -> TableView:
    """Each two judges who have judged the same pairs."""
    rows = tuple(
        (
            Cell(main=" and ".join(map(str, row.get("judges") or []))),
            Cell(main=count(row.get("num_pairs"))),
            *(_share(row.get(key)) for key in ("strict", "three_way")),
            Cell(main=decimal(row.get("kappa"))),
            _share(row.get("with_median")),
            *(Cell(main=decimal(row.get(key))) for key in ("spearman", "kendall")),
            Cell(main=count(row.get("num_models"))),
        )
        for row in results.get("agreements") or []
    )
    headings = (
        ("Judges", ""),
        ("Pairs", ""),
        ("Agreed", "of pairs both decide"),
        ("With ties", "of all pairs"),
        ("Kappa", "Cohen"),
        ("With the median", "of the second's verdicts"),
        ("Spearman", "order of models"),
        ("Kendall", "order of models"),
        ("Models", ""),
    )
    return TableView(title="Agreement of judges", headings=headings, rows=rows)


def benchmark_tables(results: Record) -> list[TableView]:
    """Of each benchmark the mean, the sections and the subsets."""
    return [_benchmark(entry) for entry in results.get("benchmarks") or []]


def _benchmark(entry: Record) -> TableView:
    mean = f"Mean of the {entry.get('mean_of')}"
    lines = [
        (mean, entry.get("mean"), entry.get("num_items")),
        *((f"Section {name}", found, None) for name, found in (entry.get("sections") or {}).items()),
        *((name, found, found.get("num_items")) for name, found in (entry.get("subsets") or {}).items()),
    ]
    rows = tuple(
        (Cell(main=str(name)), _share(found), Cell(main=DASH if number is None else count(number)))
        for name, found, number in lines
    )
    title = f"{entry.get('file')}: {entry.get('model')}"
    return TableView(
        title=title, headings=(("", ""), ("Accuracy", ""), ("Rows", "")), rows=rows, strong=(0,), wide=False
    )


def _without(row: Record) -> str:
    number = row.get("num_without_verdict")
    return f"{count(number)} without" if number else ""


def _share(record: Any) -> Cell:
    found = estimate(record)
    return Cell(main=DASH) if found is None else Cell(main=percent(found.value), detail=percent_range(found, DASH))


def models_table(results: Record) -> TableView:
    """Each model by the judge that is shown: against the baseline where there is one, and its rating."""
    run, ratings = results.get("run") or {}, {row["model"]: row for row in results.get("ratings") or []}
    baseline = run.get("baseline")
    rows = tuple(
        (
            Cell(main=str(row.get("name"))),
            Cell(main=percent(0.5), detail="baseline") if row.get("name") == baseline else _share(row.get("win_rate")),
            _share(row.get("length_controlled")),
            _counts(row),
            Cell(main=count(row.get("average_length"))),
            _rating(ratings.get(row.get("name"))),
        )
        for row in results.get("models") or []
    )
    headings = (
        ("Model", ""),
        ("Win rate", ""),
        ("Equal lengths", ""),
        ("Won, tied, lost", ""),
        ("Characters", ""),
        ("Rating", ""),
    )
    against = f", against {baseline}" if baseline else ""
    return TableView(title=f"By {run.get('judge')}{against}", headings=headings, rows=rows)


def _counts(row: Record) -> Cell:
    """Of verdicts against the baseline; a dash of the baseline itself, and where there is none."""
    found = [row.get(f"num_{kind}") for kind in ("wins", "ties", "losses")]
    return Cell(main=DASH if None in found else " ".join(map(count, found)))


def _rating(row: Record | None) -> Cell:
    if row is None:
        return Cell(main=DASH)
    found = Estimate(value=row["rating"], low=row.get("low"), high=row.get("high"))
    bounds = "" if found.low is None or found.high is None else f"{count(found.low)}{DASH}{count(found.high)}"
    return Cell(main=count(found.value), detail=bounds)


def terminal_tables(results: Record) -> list[Table]:
    """All of them that have rows. Text is shown as is, never as markup."""
    views: Sequence[TableView] = (
        models_table(results),
        matrix_table(results),
        _upright(judges_table(results)),
        _upright(agreements_table(results)),
        *benchmark_tables(results),
    )
    return [_terminal_table(view) for view in views if view.rows]


def _upright(view: TableView) -> TableView:
    """A table of few rows with a column for each, and what its headings say in front: all columns fit."""
    if len(view.rows) > _FEW_ROWS:
        return view
    names = ((row[0].main, "") for row in view.rows)
    rows = tuple(
        (Cell(main=heading, detail=more), *(row[at] for row in view.rows))
        for at, (heading, more) in enumerate(view.headings)
        if at and any(row[at].main != DASH for row in view.rows)
    )
    return TableView(title=view.title, headings=(view.headings[0], *names), rows=rows)


def _terminal_table(view: TableView) -> Table:
    """Columns of dashes alone are left out: a terminal is narrow. Names are broken into lines, and never cut."""
    table = Table(title=Text(view.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.collapse_padding = True
    shown = [at for at in range(len(view.headings)) if at == 0 or any(row[at].main != DASH for row in view.rows)]
    for at in shown:
        table.add_column(Text(view.headings[at][0]), justify="right" if at else "left", overflow="fold")
    for row in view.rows:
        cells = [row[at] for at in shown]
        table.add_row(*(Text.assemble(c.main, (f"\n{c.detail}", "dim")) if c.detail else Text(c.main) for c in cells))
    return table
