"""How the report shows a run itself: where its time went, and its settings."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from instructrl.evaluation import figures
from instructrl.evaluation.formatting import DASH, count, duration, finite, label, percent
from instructrl.evaluation.table import Cell, TableView

Record = Mapping[str, Any]


def timings(profile: Sequence[Record]) -> TableView:
    """Seconds and tokens a phase, summed over its rows, with a total."""
    seconds: dict[str, float] = {}
    tokens: dict[str, float] = {}
    for row in profile:
        phase = str(row.get("phase", ""))
        seconds[phase] = seconds.get(phase, 0.0) + (finite(row.get("seconds")) or 0.0)
        if (number := finite(row.get("tokens"))) is not None:
            tokens[phase] = tokens.get(phase, 0.0) + number
    total = sum(seconds.values())
    lines = []
    for phase, spent in seconds.items():
        name = figures.PHASE_MODELS.get(phase) or figures.PHASE_TITLES.get(phase, label(phase))
        rate = count(tokens[phase] / spent) if phase in tokens and spent > 0 else DASH
        share = percent(spent / total, 0) if total else DASH
        cells = (duration(spent), share, count(tokens.get(phase)), rate)
        lines.append((Cell(main=name), *(Cell(main=text) for text in cells)))
    if lines:
        lines.append((Cell(main="Total"), Cell(main=duration(total)), *(Cell(main="") for _ in range(3))))
    headings = (("Phase", ""), ("Time", ""), ("Share", ""), ("Tokens", ""), ("Tokens/s", ""))
    return TableView(title="Time", headings=headings, rows=tuple(lines), strong=(len(lines) - 1,))


def parts(profile: Sequence[Record]) -> TableView:
    """Where the time of each phase went, and how much of what its networks computed was padding."""
    lines = []
    for row in profile:
        parts = row.get("parts")
        if not isinstance(parts, Mapping):
            continue
        name = figures.PHASE_MODELS.get(str(row.get("phase"))) or label(str(row.get("phase", "")))
        total = finite(row.get("seconds")) or 0.0
        for part, found in parts.items():
            spent = finite(found) or 0.0
            share = percent(spent / total, 0) if total else DASH
            lines.append((Cell(main=name), *(Cell(main=text) for text in (label(str(part)), duration(spent), share))))
            name = ""
        if (padding := finite(row.get("padding"))) is not None:
            lines.append((Cell(main=""), Cell(main="Padding"), Cell(main=""), Cell(main=percent(padding, 0))))
    headings = (("Phase", ""), ("Part", ""), ("Time", ""), ("Share", ""))
    return TableView(title="Inside a phase", headings=headings, rows=tuple(lines), wide=False)


def flat(config: Record, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Dotted names and values, in the order of the configuration."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
