"""Rows of a data file, read when they are asked for.

- `.jsonl`: 8 bytes a row are held, the offset of its line; access is one `pread`.
- `.jsonl.gz`: the same; the file is unpacked once into an unnamed temporary file (in `TMPDIR`), gone with the reader.
- `.txt`: 8 bytes a document are held; documents are separated by blank lines.
- `.parquet`: the metadata and the row groups used last are held; access reads a row group. Shuffled access to a file of
  many row groups is therefore slow: JSON lines are the format for that.
- `hub:NAME[:SPLIT]`: nothing is held, `datasets` maps its Arrow files into memory.

Lines, rows and documents are counted from 1 in error messages. Blank lines of a `.jsonl` file are passed over.
"""

import gzip
import json
import os
import shutil
import tempfile
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from instructrl import progress

CACHED_ROW_GROUPS = 2
SCAN_BYTES = 1 << 20
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".txt")


class DataError(ValueError):
    """Data that cannot be used. The message reads `file:line: column: found X, accepted Y`."""


class Rows(Protocol):
    """Rows by number, from 0, each a mapping of column to value."""

    def __len__(self) -> int: ...

    def row(self, number: int) -> dict[str, Any]:
        """The columns of a row. Raises DataError where they cannot be read."""
        ...

    def where(self, number: int) -> str:
        """File and line of a row, for messages."""
        ...


class LineRows:
    """Rows that are slices of a file: `starts` says where each begins (ascending), `end` where the last ends."""

    def __init__(self, name: str, file: BinaryIO, starts: array, end: int) -> None:
        if not starts:
            raise DataError(f"{name}:1: found an empty file, accepted is at least one row")
        self.name = name
        self._file = file
        self._starts = starts
        self._end = end

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, number: int) -> str:
        return f"{self.name}:{self._line(self._starts[number])}"

    def _line(self, offset: int) -> int:
        # Lines are counted only for a message: an index of line numbers would double the memory.
        counted, position = 1, 0
        while position < offset:
            block = os.pread(self._file.fileno(), min(SCAN_BYTES, offset - position), position)
            counted += block.count(b"\n")
            position += len(block)
        return counted

    def _text(self, number: int) -> str:
        start = self._starts[number]
        end = self._starts[number + 1] if number + 1 < len(self._starts) else self._end
        # pread keeps no position, so that forked workers and threads can share the file.
        line = os.pread(self._file.fileno(), end - start, start)
        try:
            return line.decode("utf-8-sig" if start == 0 else "utf-8").rstrip()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.name}:{self._line(start + error.start)}: found the byte 0x{line[error.start]:02x} at byte "
                f"{error.start + 1} of the row, accepted is UTF-8"
            ) from None


class JsonRows(LineRows):
    """One JSON object a line."""

    def row(self, number: int) -> dict[str, Any]:
        text = self._text(number)
        try:
            value = json.loads(text)
        except RecursionError:
            raise DataError(f"{self.where(number)}: found JSON nested too deep, accepted is a flat object") from None
        except json.JSONDecodeError as error:
            found = "a NUL" if "\0" in text[error.pos : error.pos + 1] else f"{error.msg} at character {error.colno}"
            raise DataError(f"{self.where(number)}: found {found}, accepted is one JSON object a line") from None
        except ValueError as error:  # a number with more digits than Python converts
            raise DataError(f"{self.where(number)}: found {error}, accepted is one JSON object a line") from None
        if not isinstance(value, dict):
            raise DataError(
                f"{self.where(number)}: found JSON of type {type(value).__name__}, accepted is one JSON object a line"
            )
        return value


class TextRows(LineRows):
    """Documents between blank lines, in the column `text`; the line breaks inside a document stay."""

    def row(self, number: int) -> dict[str, Any]:
        return {"text": self._text(number)}


class ParquetRows:
    """Rows of a parquet file."""

    def __init__(self, path: Path, columns: Iterable[str]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise DataError(
                f"{path}: found no pyarrow to read parquet with; install it: pip install instructrl[parquet]"
            ) from None
        self.name = str(path)
        self._errors = (pyarrow.ArrowException, OSError)
        try:
            self._file = parquet.ParquetFile(path)
        except self._errors as error:
            raise DataError(f"{path}: found {_first_line(error)}, accepted is a parquet file") from None
        metadata = self._file.metadata
        self._ends = list(accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))
        if not self._ends or self._ends[-1] == 0:
            raise DataError(f"{path}:1: found no rows, accepted is at least one row")
        self._all = self._file.schema_arrow.names
        self._wanted = [column for column in self._all if column in set(columns)]
        self._group = lru_cache(maxsize=CACHED_ROW_GROUPS)(self._read_group)

    def __len__(self) -> int:
        return self._ends[-1]

    def where(self, number: int) -> str:
        return f"{self.name}:{number + 1}"

    def _read_group(self, group: int) -> Any:
        return self._file.read_row_group(group, columns=self._wanted)

    def row(self, number: int) -> dict[str, Any]:
        if not self._wanted:  # named, so that the message about the missing column can show what is there
            return dict.fromkeys(self._all)
        group = bisect_right(self._ends, number)
        first = self._ends[group - 1] if group else 0
        try:
            return self._group(group).slice(number - first, 1).to_pylist()[0]
        except (*self._errors, ValueError, OverflowError) as error:  # such as a date that Python does not have
            raise DataError(f"{self.where(number)}: found {_first_line(error)}, accepted is a readable row") from None


class HubRows:
    """Rows of a split of a data set that `datasets.load_dataset` finds: a name on the Hub, or a folder."""

    def __init__(self, name: str, columns: Iterable[str]) -> None:
        try:
            import datasets
            from datasets.exceptions import DatasetsError
        except ImportError:
            raise DataError(
                f"hub:{name}: found no datasets library to load it with; install it: pip install instructrl[hub]"
            ) from None
        path, _, split = name.partition(":")
        split = split or "train"
        self.name = f"hub:{path}:{split}"
        try:
            dataset = datasets.load_dataset(path, split=split)
        except (ValueError, OSError, DatasetsError) as error:
            raise DataError(f"{self.name}: found {_first_line(error)}, accepted is hub:NAME[:SPLIT]") from error
        if not len(dataset):
            raise DataError(f"{self.name}:1: found no rows, accepted is at least one row")
        wanted = [column for column in dataset.column_names if column in set(columns)]
        self._dataset = dataset.select_columns(wanted) if wanted else dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def where(self, number: int) -> str:
        return f"{self.name}:{number + 1}"

    def row(self, number: int) -> dict[str, Any]:
        return self._dataset[number]


def open_rows(source: str | Path, columns: Iterable[str]) -> Rows:
    """The rows of a file or of `hub:NAME[:SPLIT]`.

    source: a path that ends in one of SUFFIXES, or `hub:` and a name. columns: those that are of use; the columnar
    formats read no others. Raises DataError for a source that is not there, is empty or is of no known kind.
    """
    if str(source).startswith("hub:"):
        return HubRows(str(source).removeprefix("hub:"), columns)
    path = Path(source)
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path}: found no known ending, accepted are {', '.join(SUFFIXES)} or hub:NAME[:SPLIT]")
    if not path.is_file():
        raise DataError(f"{path}: found no such file, accepted is a readable file")
    if path.suffix == ".parquet":
        return ParquetRows(path, columns)
    # The file lives as long as the rows do, and is closed with them.
    with progress.wait(f"looking for the rows of {path}"):
        file = _unpacked(path) if path.suffix == ".gz" else path.open("rb")
        file.seek(0)
        if path.suffix == ".txt":
            return TextRows(str(path), file, array("Q", _document_starts(file)), file.tell())
        return JsonRows(str(path), file, array("Q", _line_starts(file)), file.tell())


def _line_starts(file: BinaryIO) -> Iterator[int]:
    position = 0
    for line in file:
        if line.strip():
            yield position
        position += len(line)


def _document_starts(file: BinaryIO) -> Iterator[int]:
    position, inside = 0, False
    for line in file:
        blank = not line.strip()
        if not blank and not inside:
            yield position
        inside = not blank
        position += len(line)


def _unpacked(path: Path) -> BinaryIO:
    file = tempfile.TemporaryFile(prefix="instructrl-")  # noqa: SIM115 - the rows keep it
    try:
        with gzip.open(path, "rb") as packed:
            shutil.copyfileobj(packed, file, SCAN_BYTES)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        file.seek(0)
        line = 1 + sum(block.count(b"\n") for block in iter(lambda: file.read(SCAN_BYTES), b""))
        file.close()
        raise DataError(f"{path}:{line}: found a damaged gzip file ({error}), accepted is a whole one") from None
    return file


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
