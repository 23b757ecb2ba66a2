"""The table of docs/conventions.md: which setting each trainer's preset has.

    python tests/ops/presets_page.py

writes the page's table and notes anew; a test holds them to `instructrl.ops.presets`.
"""

import dataclasses
from pathlib import Path

from instructrl.ops.presets import PRESETS

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "conventions.md"
_START, _END = "<!-- presets -->", "<!-- end of presets -->"


def values(record: object, prefix: str = "") -> dict[str, object]:
    """Fields of nested records, by path."""
    found: dict[str, object] = {}
    for field in dataclasses.fields(record):  # pyright: ignore[reportArgumentType]
        value = getattr(record, field.name)
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            found |= values(value, f"{name}.")
        elif field.name != "beyond":
            found[name] = value
    return found


def _text(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")


def table() -> str:
    """A row a setting, the default first; in bold what differs from it. Settings that nobody changes have no row."""
    columns = {name: values(preset) for name, preset in PRESETS.items()}
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    lines = [f"| setting | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for name in names:
        cells = [_text(column.get(name)) for column in columns.values()]
        if len(set(cells)) == 1:
            continue
        marked = [cell if cell == cells[0] else f"**{cell}**" for cell in cells]
        lines.append(f"| `{name}` | {' | '.join(marked)} |")
    return "\n".join(lines)


def notes() -> str:
    return "\n".join(f"- `{name}`: {'; '.join(preset.beyond)}." for name, preset in PRESETS.items() if preset.beyond)


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(_START)
    after = rest.partition(_END)[2]
    PAGE.write_text(f"{before}{_START}\n{table()}\n\nWhat no setting expresses:\n\n{notes()}\n{_END}{after}")
