"""The main table: one row a model, one column for every quantity that at least one model has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from instructrl.evaluation.formatting import (
    MISSING,
    count,
    decimal,
    decimal_range,
    estimate,
    finite,
    percent,
    percent_range,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What a cell says, and the interval or remark beside it."""

    main: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A heading, the unit or meaning under it, and one cell a row."""

    heading: str
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
        return rate and Cell(main=percent(rate.value), detail=percent_range(rate))

    def likert(model: Mapping[str, Any]) -> Cell | None:
        mean = estimate(model.get("likert"))
        return mean and Cell(main=decimal(mean.value), detail=decimal_range(mean))

    def plain(key: str, write: Callable[[Any], str]) -> Callable[[Mapping[str, Any]], Cell | None]:
        return lambda model: None if finite(model.get(key)) is None else Cell(main=write(model[key]))

    readers = [
        (f"Win rate against {baseline}" if baseline else "Win rate", "95% interval", win_rate),
        ("Likert", "1 to 7", likert),
        ("Reward", "model score", plain("score", decimal)),
        ("KL", "nats a response", plain("kl", decimal)),
        ("Corpus loss", "nats a token", plain("corpus_loss", lambda value: decimal(value, 3))),
        ("Facts", "answered right", plain("fact_accuracy", percent)),
        ("Length", "tokens", plain("response_tokens", lambda value: decimal(value, 1))),
        ("Finished", "ended by itself", plain("finished", percent)),
    ]
    columns = []
    for heading, unit, read in readers:
        cells = [read(model) for model in models]
        if any(cells):
            cells = tuple(cell or Cell(main=MISSING) for cell in cells)
            columns.append(Column(heading=heading, unit=unit, cells=cells))
    return columns


def results_table(results: Mapping[str, Any]) -> Table:
    """The main table for a terminal. results: what `results.json` holds. Text is shown as is, never as markup."""
    run = results.get("run") or {}
    models = results.get("models") or []
    table = Table(title=Text(str(run.get("name", "results"))), title_justify="left", row_styles=("", "dim"))
    table.add_column("Model", no_wrap=True)
    columns = main_columns(results)
    for column in columns:
        table.add_column(Text(f"{column.heading}\n{column.unit}"), justify="right")
    for row, model in enumerate(models):
        cells = [column.cells[row] for column in columns]
        texts = [Text.assemble(cell.main, *([("\n" + cell.detail, "dim")] if cell.detail else [])) for cell in cells]
        table.add_row(Text(str(model.get("name", ""))), *texts)
    judge, prompts = run.get("judge"), _num_prompts(models)
    if judge and prompts:
        table.caption = Text(f"{count(prompts)} held-out prompts, judged by the {judge}")
        table.caption_justify = "left"
    return table


def _num_prompts(models: list[Mapping[str, Any]]) -> float | None:
    numbers = [finite((model.get("win_rate") or {}).get("num_prompts")) for model in models]
    return max((number for number in numbers if number is not None), default=None)
