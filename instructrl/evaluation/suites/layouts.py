"""Files of public sets as rows, each mistake one line with file and row."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# A text of UTF-16 that was cut in a character leaves one in JSON.
HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class LayoutError(ValueError):
    """A file of another layout than its suite reads."""


def table_rows(path: Path, columns: Sequence[str], *, delimiter: str = ",") -> list[tuple[str, dict[str, str]]]:
    """(where, row) of each line of a table with a header. columns: that it has to have, others may stand beside them.

    A table of tabs has no quotes; one of commas has. Raises LayoutError where a column is missing, and for a row of
    another number of cells.
    """
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    rows = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, quoting=quoting, strict=True)
            header = reader.fieldnames or []
            missing = [column for column in columns if column not in header]
            if missing:
                found = ", ".join(map(repr, header))[:80] or "no header"
                raise LayoutError(f"{path}: found {found}, accepted is a header with {', '.join(columns)}")
            for number, row in enumerate(reader, 1):
                place = f"{path}, row {number}"
                if None in row or None in row.values():
                    cells = sum(value is not None for key, value in row.items() if key is not None)
                    cells += len(row.get(None, []))  # pyright: ignore[reportCallIssue, reportArgumentType]
                    raise LayoutError(f"{place}: found {cells} cells, accepted are {len(header)}")
                rows.append((place, dict(row)))
    except UnicodeDecodeError:
        raise LayoutError(f"{path}: found bytes that are not UTF-8, accepted is a text file") from None
    except csv.Error as error:
        raise LayoutError(f"{path}, row {len(rows) + 1}: found {error}, accepted is a table") from None
    return _some(rows, path)


def json_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(where, object) of each line of a file of JSON lines. Raises LayoutError for a line that is no object."""
    rows = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows.append((f"{path}, row {number}", _object(line, f"{path}, row {number}")))
    except UnicodeDecodeError:
        raise LayoutError(f"{path}: found bytes that are not UTF-8, accepted is a text file") from None
    return _some(rows, path)


def json_file(path: Path) -> dict[str, Any]:
    """A file that is one JSON object. Raises LayoutError for another."""
    try:
        return _object(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError:
        raise LayoutError(f"{path}: found bytes that are not UTF-8, accepted is a text file") from None


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{place}: found no JSON ({error}), accepted is an object") from None
    if not isinstance(value, dict):
        raise LayoutError(f"{place}: found {type(value).__name__}, accepted is a JSON object")
    return value


def _some(rows: list, path: Path) -> list:
    if not rows:
        raise LayoutError(f"{path}: found no rows, accepted is at least one")
    return rows


def text_at(row: Mapping[str, Any], key: str, place: str) -> str:
    """A text of a row. Raises LayoutError where there is none, an empty one, or one with half a character, as JSON can
    have it and no tokenizer reads."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip() or HALF_CHARACTER.search(value):
        found = "nothing" if key not in row else repr(value)[:60]
        raise LayoutError(f"{place}: {key}: found {found}, accepted is a text")
    return value


def rows_at(row: Mapping[str, Any], key: str, place: str) -> list[tuple[str, dict[str, Any]]]:
    """(where, object) of each entry of a list of objects. Raises LayoutError for anything else."""
    found = []
    for number, value in enumerate(list_at(row, key, place), 1):
        if not isinstance(value, dict):
            raise LayoutError(f"{place}: {key} {number}: found {repr(value)[:60]}, accepted is a JSON object")
        found.append((f"{place}, {key} {number}", value))
    return found


def list_at(row: Mapping[str, Any], key: str, place: str) -> list[Any]:
    """A list of a row, which may be empty. Raises LayoutError for anything else."""
    return _of_kind(row, key, place, list, "a list")


def object_at(row: Mapping[str, Any], key: str, place: str) -> dict[str, Any]:
    """A JSON object in a row. Raises LayoutError for anything else."""
    return _of_kind(row, key, place, dict, "a JSON object")


def texts_at(row: Mapping[str, Any], key: str, place: str) -> list[str]:
    """A list of texts, which may be empty itself. Raises LayoutError for anything else."""
    return [text_at({key: value}, key, place) for value in list_at(row, key, place)]


def label_at(row: Mapping[str, Any], key: str, place: str, labels: Mapping[str | int, int]) -> int:
    """What a label means. labels: each that is accepted. Raises LayoutError for another."""
    value = row.get(key)
    # True is 1 to Python, and not to a file.
    kinds = bool if isinstance(value, bool) else str | int
    if not isinstance(value, kinds) or value not in labels or not any(isinstance(label, kinds) for label in labels):
        found = "nothing" if key not in row else repr(value)[:60]
        raise LayoutError(f"{place}: {key}: found {found}, accepted are {', '.join(map(repr, labels))}")
    return labels[value]


def _of_kind(row: Mapping[str, Any], key: str, place: str, kind: type, name: str) -> Any:
    value = row.get(key)
    if not isinstance(value, kind):
        found = "nothing" if key not in row else repr(value)[:60]
        raise LayoutError(f"{place}: {key}: found {found}, accepted is {name}")
    return value


def text_lines(path: Path) -> list[str]:
    """The lines of a text file, without a last empty one. Raises LayoutError where there are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # str.splitlines also splits inside of sentences
    except UnicodeDecodeError:
        raise LayoutError(f"{path}: found bytes that are not UTF-8, accepted is a text file") from None
    return _some(lines[:-1] if lines[-1] == "" else lines, path)
