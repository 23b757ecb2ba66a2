"""Readers and writers of records: demonstrations, comparisons, prompts and plain text for pretraining.

Each reader takes a path that ends in `.jsonl`, `.jsonl.gz`, `.parquet` (or `.txt`, for the corpus), or
`hub:NAME[:SPLIT]`, and returns a lazy sequence: opening it finds the rows, and a row is parsed when it is needed, so
that a file may be larger than memory (see rows.py). A row that cannot be used raises DataError with file and line when
it is read; `check` reads all of them.
"""

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from instructrl import durable, progress
from instructrl.data import columns
from instructrl.data.chat_rendering import ChatTemplateError
from instructrl.data.messages import ColumnError
from instructrl.data.rows import DataError, Rows, open_rows
from instructrl.labels import Label, LabelTask, TaskKey
from instructrl.types import Comparison, Conversation, Demonstration, Document, Prompt

__all__ = [
    "DataError",
    "Records",
    "check",
    "read_comparisons",
    "read_corpus",
    "read_demonstrations",
    "read_prompts",
    "write_jsonl",
]

RecordT = TypeVar("RecordT", Prompt, Demonstration, Comparison, Document, LabelTask, TaskKey, Label)


class Records(Sequence[RecordT], Generic[RecordT]):
    """Records of a source, parsed on access. Slices are lazy too."""

    def __init__(self, rows: Rows, parse: Callable[[Any], RecordT], numbers: Sequence[int] | None = None) -> None:
        self._rows = rows
        self._parse = parse
        self._numbers = range(len(rows)) if numbers is None else numbers

    def at(self, places: Sequence[int]) -> "Records[RecordT]":
        """The records at these places, as lazy as all are."""
        return Records(self._rows, self._parse, array("Q", (self._numbers[place] for place in places)))

    def changed(self, change: Callable[[RecordT], RecordT]) -> "Records[RecordT]":
        """Each record with a change, made when it is asked for."""
        return Records(self._rows, lambda row: change(self._parse(row)), self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def where(self, index: int) -> str:
        """File and line of a record, for messages."""
        return self._rows.where(self._numbers[index])

    @overload
    def __getitem__(self, index: int) -> RecordT: ...

    @overload
    def __getitem__(self, index: slice) -> "Records[RecordT]": ...

    def __getitem__(self, index: int | slice) -> "RecordT | Records[RecordT]":
        if isinstance(index, slice):
            return Records(self._rows, self._parse, self._numbers[index])
        number = self._numbers[index]
        row = self._rows.row(number)
        try:
            return self._parse(row)
        except ColumnError as error:
            raise DataError(f"{self._rows.where(number)}: {error}") from None


def read_demonstrations(source: str | Path) -> Records[Demonstration]:
    """A question and its answer, in any layout of columns.py; optional `user`, `source`, `category`."""
    return Records(open_rows(source, columns.DEMONSTRATION_COLUMNS), columns.parse_demonstration)


def read_comparisons(source: str | Path) -> Records[Comparison]:
    """K completions of a prompt and which of them are preferred, in one of these layouts.

    The question, as in columns.py, with `completions[K]` and `ranks[K]` (lower is better, equal is a tie); with
    `completions[K]` and `preferences`, a list of pairs [winner, loser] that may contain cycles; with
    `completions[K]{rank, completion}`; or with `chosen` and `rejected`. Without a question, these two are whole
    transcripts, which are split after the last turn that they share. Optional `user`, `source`, `category`, `labeler`.
    """
    return Records(open_rows(source, columns.COMPARISON_COLUMNS), columns.parse_comparison)


def read_prompts(source: str | Path) -> Records[Prompt]:
    """A question, in any layout of columns.py; optional `user`, `source`, `category`."""
    return Records(open_rows(source, columns.PROMPT_COLUMNS), columns.parse_prompt)


def read_corpus(source: str | Path) -> Records[Document]:
    """Column `text`, optional `source`; in a `.txt` file, documents are separated by blank lines."""
    return Records(open_rows(source, columns.DOCUMENT_COLUMNS), columns.parse_document)


def holds_comparisons(source: str | Path) -> bool:
    """Whether the first row of a file is a comparison."""
    try:
        read_comparisons(source)[0]
    except DataError:
        return False
    return True


def check_no_comparisons(source: str | Path) -> None:
    """Raise DataError if a file of prompts holds comparisons: PPO would sample on what its reward model has learned,
    where its scores are too good. A file that cannot be read is left to its reader."""
    if holds_comparisons(source):
        raise DataError(
            f"{source}: found comparisons, accepted are prompts that the reward model was not trained on; to use them "
            "all the same, write their column prompt into a file of its own"
        )


@contextmanager
def at_row(records: Records[Any], place: int) -> Iterator[None]:
    """Inside, what a chat template says of a record is told with its file and line, as a DataError."""
    try:
        yield
    except ChatTemplateError as error:
        raise DataError(f"{records.where(place)}: {error}") from None


def check(records: Sequence[Any], *, max_errors: int = 20) -> int:
    """Read every record. Returns their number; raises DataError that lists the first `max_errors` bad rows."""
    errors: list[str] = []
    for number in progress.through("rows", range(len(records))):
        try:
            records[number]
        except DataError as error:
            errors.append(str(error))
            if len(errors) == max_errors:
                errors.append(f"stopped after {max_errors} of them, at row {number + 1} of {len(records)}")
                break
    if errors:
        raise DataError("\n".join(errors))
    return len(records)


def write_jsonl(path: str | Path, records: Iterable[Prompt | Demonstration | Comparison | Document]) -> int:
    """Write records, one JSON object a line, in the columns that the readers take. Returns their number.

    The file appears whole or not at all: it is written under another name and renamed. Empty optional columns are left
    out. Without records, the file is empty, and the readers reject it.
    """
    path = Path(path)
    count = 0
    with durable.whole_file(path) as file:
        for record in records:
            file.write(f"{json.dumps(_row(record), ensure_ascii=False, allow_nan=False)}\n".encode())
            count += 1
    return count


def _row(record: Prompt | Demonstration | Comparison | Document) -> dict[str, Any]:
    if isinstance(record, Document):
        return {"text": record.text, **_filled(record, "source")}
    if isinstance(record, Prompt):
        row = _asked(record.text)
    elif isinstance(record, Demonstration):
        row = {**_asked(record.prompt), "completion": record.completion}
    else:
        preferences = [list(pair) for pair in sorted(record.preferred)]
        row = {**_asked(record.prompt), "completions": list(record.completions), "preferences": preferences}
        row |= _filled(record, "labeler")
    return row | _filled(record, *columns.GROUP_COLUMNS)


def _asked(prompt: str) -> dict[str, Any]:
    """A prompt in columns: a text, or messages with the tools that belong to them."""
    if not isinstance(prompt, Conversation):
        return {"prompt": prompt}
    tools = {columns.TOOLS: json.loads(prompt.tools)} if prompt.tools else {}
    return {"prompt": [message.as_mapping() for message in prompt.messages], **tools}


def _filled(record: Any, *names: str) -> dict[str, str]:
    return {name: value for name in names if (value := getattr(record, name))}
