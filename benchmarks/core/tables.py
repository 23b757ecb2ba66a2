"""What commands take and write: options, Markdown tables, JSON. Imports nothing of ours."""

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"


def command(doc: str | None, **options: Any) -> argparse.Namespace:
    """The words of a command line. options: by name, the default, or the type of what is None unless it is given, or
    the choices, a tuple for one of them, the first if none is given, a list for some, all if none is. False is for a
    flag, True for what must be given. A name that ends with "_" is a word without a name."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in options.items():
        if isinstance(value, bool):
            settings: dict[str, Any] = {"required": True} if value else {"action": "store_true"}
        elif isinstance(value, tuple):
            settings = {"choices": value, "default": value[0]}
        elif isinstance(value, list):
            settings = {"nargs": "+", "choices": value or None, "default": value}
        else:
            settings = {"type": value} if isinstance(value, type) else {"type": type(value), "default": value}
        parser.add_argument(name[:-1] if name.endswith("_") else f"--{name.replace('_', '-')}", **settings)
    return parser.parse_args()


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, without the columns in which there is nothing. Bars in a cell become slashes."""
    lines = [[cell.replace("|", "/") for cell in row] for row in (columns, *rows)]
    kept = [place for place in range(len(columns)) if place == 0 or any(line[place] for line in lines[1:])]
    first, *rest = [f"| {' | '.join(line[place] for place in kept)} |\n" for line in lines]
    return first + "| --- " * len(kept) + "|\n" + "".join(rest)


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
