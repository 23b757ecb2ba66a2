"""The main table: one row a model, one column for every quantity that at least one model has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from instructrl.evaluation.formatting import (
    DASH,
    decimal,
    decimal_range,
    estimate,
    finite,
    percent,
    percent_range,
)
from instructrl.evaluation.narrative import judge_sentence, num_prompts, prompts

AT_EQUAL_LENGTHS = "At equal lengths"
_ROOM = 8  # columns in a terminal of 80 characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What a cell says, and the interval or remark beside it."""

    main: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableView:
    """headings: text and unit; the first one is the row's name. notes: what people have to know of it, a line each.
    prose: cells are words, which are broken into lines."""

    title: str
    headings: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]
    colours: tuple[int | None, ...] = ()
    strong: tuple[int, ...] = ()
    wide: bool = True
    notes: tuple[str, ...] = ()
    prose: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A heading, a shorter one for a terminal, the unit or meaning under it, and one cell a row."""

    heading: str
    short: str
    unit: str
    cells: tuple[Cell, ...]


def main_columns(results: Mapping[str, Any]) -> list[Column]:
    """The columns of the main table after the models' names, those without any value left out."""
    run = results.get("run") or {}
    models = results.get("models") or []
    baseline = run.get("baseline")

    def win_rate(model: Mapping[str, Any]) -> Cell | None:
        if baseline is not None and model.get("name") == baseline:
            return Cell(main=percent(0.5), detail="baseline")
        rate = estimate(model.get("win_rate"))
        return rate and Cell(main=percent(rate.value), detail=percent_range(rate, DASH))

    def at_equal_lengths(model: Mapping[str, Any]) -> Cell | None:
        rate = None if model.get("name") == baseline else estimate(model.get("length_controlled"))
        return rate and Cell(main=percent(rate.value), detail=percent_range(rate, DASH))

    def likert(model: Mapping[str, Any]) -> Cell | None:
        mean = estimate(model.get("likert"))
        return mean and Cell(main=decimal(mean.value), detail=decimal_range(mean, DASH))

    def plain(key: str, write: Callable[[Any], str]) -> Callable[[Mapping[str, Any]], Cell | None]:
        return lambda model: None if finite(model.get(key)) is None else Cell(main=write(model[key]))

    readers = [
        (f"Win rate against {baseline}" if baseline else "Win rate", "Win rate", "95% interval", win_rate),
        (AT_EQUAL_LENGTHS, "Equal", "length-controlled", at_equal_lengths),
        ("Likert", "Likert", "1 to 7", likert),
        ("Reward", "Reward", "model score", plain("score", decimal)),
        ("KL", "KL", "nats a response", plain("kl", lambda value: decimal(value, 1))),
        ("Corpus loss", "Corpus", "nats a token", plain("corpus_loss", lambda value: decimal(value, 3))),
        ("Facts", "Facts", "answered right", plain("fact_accuracy", lambda value: percent(value, 0))),
        ("Length", "Tokens", "tokens", plain("response_tokens", lambda value: decimal(value, 1))),
        ("Finished", "Ended", "ended by itself", plain("finished", lambda value: percent(value, 0))),
    ]
    columns = []
    for heading, short, unit, read in readers:
        cells = [read(model) for model in models]
        if any(cells):
            cells = tuple(cell or Cell(main=DASH) for cell in cells)
            columns.append(Column(heading=heading, short=short, unit=unit, cells=cells))
    return columns


def results_table(results: Mapping[str, Any]) -> Table:
    """The main table for a terminal. results: what `results.json` holds. Text is shown as is, never as markup."""
    run = results.get("run") or {}
    models = results.get("models") or []
    table = Table(
        title=Text(str(run.get("name", "results"))), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.collapse_padding = True
    table.add_column("Model", no_wrap=True)
    columns = main_columns(results)
    if len(columns) > _ROOM:
        columns = [column for column in columns if column.heading != AT_EQUAL_LENGTHS]
    for column in columns:
        table.add_column(column.short, justify="right", no_wrap=True)
    for row, model in enumerate(models):
        # Of the intervals a terminal of 80 columns has room for the first, the win rate's.
        texts = [Text(column.cells[row].main) for column in columns]
        if texts and columns[0].cells[row].detail:
            texts[0] = Text.assemble(columns[0].cells[row].main, ("\n" + columns[0].cells[row].detail, "dim"))
        table.add_row(Text(str(model.get("name", ""))), *texts)
    if not models:
        return table
    judge = run.get("judge")
    if judge and num_prompts(results):
        lines = [f"{prompts(results)}, judged by the {judge}; win rate against {run.get('baseline')}"]
        lines += [sentence] if (sentence := judge_sentence(results)) else []
        table.caption = Text("\n".join(lines))
        table.caption_justify = "left"
    return table
