"""Rows of `metrics.jsonl`, and what a library has to be able to do with them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from instructrl.tracking.callbacks import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """number: counted from 0 over all phases of a run."""

    number: int
    phase: str
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What an evaluation found. numbers: by name. responses: by the model's name, one to each of the prompts."""

    numbers: Mapping[str, float]
    prompts: Sequence[str]
    responses: Mapping[str, Sequence[str]]


class Library(Protocol):
    """One run in a tracker. Each method may raise one of `failures`, and then is not called again."""

    failures: tuple[type[Exception], ...]

    def start(self) -> None:
        """Begin the run, or go on with it. The first to be called."""
        ...

    def there(self, kept: Sequence[Row]) -> set[int]:
        """Numbers of the rows that it has and that stay. kept: the rows of the run so far; whatever it has behind them
        will come again."""
        ...

    def row(self, row: Row, samples: Sequence[Sample]) -> None:
        """One row, with responses of its step where there are any."""
        ...

    def profile(self, phase: str, values: Mapping[str, float]) -> None:
        """The numbers of a row of `profile.jsonl`."""
        ...

    def results(self, results: Results, number: int) -> None:
        """number: of the row that would come next."""
        ...

    def close(self, failed: bool) -> None:
        """failed: the run did not come to its end."""
        ...


def rows_of(folder: Path) -> Iterator[Row]:
    """The rows of the run in a folder; none where there is no run. What a kill has cut short comes again."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if not line.endswith("\n"):
                return
            found: dict[str, Any] = json.loads(line)
            phase, step = found.pop("phase"), found.pop("step")
            yield Row(number=number, phase=phase, step=step, metrics=found)


def results_of(results: Mapping[str, Any]) -> Results:
    """Of `results.json`: win rates and scores of the models, what public sets say of them, and the responses that are
    shown."""
    numbers = {}
    for model in results["models"]:
        rate = model.get("win_rate") or {}
        values = {"win_rate": rate.get("rate"), "win_rate_low": rate.get("low"), "win_rate_high": rate.get("high")}
        values["score"] = model.get("score")
        numbers |= {f"{model['name']}/{name}": float(x) for name, x in values.items() if isinstance(x, int | float)}
    for entry in results.get("suites") or []:
        for row in entry["rows"]:
            asked = (entry["suite"], row["prompt"], f"{row['shots']}-shot" if row["shots"] else "", row["metric"])
            if not row["group"] and isinstance(row["value"], int | float):
                numbers[f"{row['model']}/{', '.join(filter(None, asked))}"] = float(row["value"])
    shown = results["samples"][:NUM_SHOWN]
    names = list(dict.fromkeys(name for row in shown for name in row["responses"]))
    return Results(
        numbers=numbers,
        prompts=[row["prompt"] for row in shown],
        responses={name: [row["responses"].get(name, {}).get("text", "") for row in shown] for name in names},
    )


# Of the prompts of an evaluation.
NUM_SHOWN = 24
