"""What commands take and write: options that all of them have, Markdown tables, JSON. Imports nothing of ours."""

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

RESULTS_HELP = "folder for the files (default: $OUT, benchmarks/results/MACHINE)"
RESULTS = Path(__file__).resolve().parents[1] / "results"


def command(
    doc: str | None, rounds: int = 0, only: str = "", out: str = "write the figures to this file"
) -> argparse.ArgumentParser:
    """A parser with --out, unless it is ""; --rounds where there is a number of them; --only for `only` whose name
    contains it."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    if out:
        parser.add_argument("--out", type=Path, help=out)
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds)
    if only:
        parser.add_argument("--only", default="", help=f"{only} whose name contains this")
    return parser


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table. Bars in a cell become slashes."""
    lines = [[cell.replace("|", "/") for cell in row] for row in (columns, *rows)]
    first, *rest = [f"| {' | '.join(line)} |\n" for line in lines]
    return first + "| --- " * len(columns) + "|\n" + "".join(rest)


def median_ratio(above: list[float], below: list[float]) -> float:
    """The median of the rounds' own ratios."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def spread(values: list[float], form: str = ".3g") -> str:
    """The median, and the middle half in brackets."""
    low, middle, high = (format(x, form) for x in quartiles(values))
    return f"{middle} [{low}, {high}]"


def write_json(path: Path, found: object, indent: int | None = None) -> None:
    path.write_text(json.dumps(found, indent=indent) + "\n", encoding="utf-8")
