"""Files of data: what `instructrl data check` and the steps say of them."""

import json
from pathlib import Path

import pyarrow
from pyarrow import parquet
from table import Row, rows, text, zipped

_GOOD = {"prompt": "w1", "completion": "w2"}
_PAIR = {"prompt": "w1", "completions": ["w2", "w3"]}
_GZ = "data check prompts rows.jsonl.gz"
_PARQUET = "data check prompts rows.parquet"


def _line(what: str, line: object, kind: str = "demonstrations", message: str = "") -> Row:
    """A bad second line."""
    first: object = {**_PAIR, "ranks": [1, 2]} if kind == "comparisons" else _GOOD
    return Row(what=what, step=kind, make=rows(first, line), message=message)


def _table(what: str, columns: dict, message: str = "") -> Row:
    def make() -> None:
        parquet.write_table(pyarrow.table(columns), "rows.parquet")

    return Row(what=what, options=_PARQUET, make=make, message=message)


def _cut_parquet() -> None:
    parquet.write_table(pyarrow.table({"prompt": ["w1"] * 1000}), "rows.parquet")
    Path("rows.parquet").write_bytes(Path("rows.parquet").read_bytes()[:-20])


def _transcript(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": content} for place, content in enumerate(contents)]


FILES = [
    Row(
        what="missing file",
        step="demonstrations",
        message="rows.jsonl: found no such file, accepted is a readable file",
    ),
    Row(
        what="folder for a file",
        step="prompts",
        make=lambda: Path("rows.jsonl").mkdir(),
        message="rows.jsonl: found no such file, accepted is a readable file",
    ),
    Row(
        what="unknown ending",
        options="data check prompts rows.csv",
        make=text("rows.csv", "prompt\nw1\n"),
        message="rows.csv: found no known ending, accepted are .jsonl, .jsonl.gz, .parquet, .txt or hub:NAME[:SPLIT]",
    ),
    Row(
        what="empty file",
        step="prompts",
        make=text("rows.jsonl", ""),
        message="rows.jsonl:1: found an empty file, accepted is at least one row",
    ),
    Row(
        what="blank lines alone",
        step="corpus",
        make=text("rows.jsonl", "\n \n\n"),
        message="rows.jsonl:1: found an empty file, accepted is at least one row",
    ),
    Row(
        what="truncated gzip",
        options=_GZ,
        make=zipped(cut=-9),
        message="rows.jsonl.gz:1: found a damaged gzip file (…), accepted is a whole one",
    ),
    Row(
        what="gzip with a changed bit",
        options=_GZ,
        make=zipped(flip=-6),
        message="rows.jsonl.gz:1: found a damaged gzip file (…), accepted is a whole one",
    ),
    Row(
        what="no gzip under its name",
        options=_GZ,
        make=text("rows.jsonl.gz", '{"prompt": "w1"}\n'),
        message="rows.jsonl.gz:1: found a damaged gzip file (…), accepted is a whole one",
    ),
    Row(
        what="gzip of nothing",
        options=_GZ,
        make=text("rows.jsonl.gz", b""),
        message="rows.jsonl.gz:1: found an empty file, accepted is at least one row",
    ),
    Row(
        what="Latin-1",
        step="prompts",
        make=text("rows.jsonl", '{"prompt": "w1"}\n{"prompt": "é"}\n'.encode("latin-1")),
        message="rows.jsonl:2: found the byte 0xe9 at byte 13 of the row, accepted is UTF-8",
    ),
    Row(
        what="UTF-16",
        step="prompts",
        make=text("rows.jsonl", '{"prompt": "w1"}'.encode("utf-16")),
        message="rows.jsonl:1: found the byte 0xff at byte 1 of the row, accepted is UTF-8",
    ),
    Row(
        what="NUL bytes",
        step="prompts",
        make=text("rows.jsonl", b'{"prompt": "w1"}\n\0\0\0\0\n'),
        message="rows.jsonl:2: found a NUL, accepted is one JSON object a line",
    ),
    Row(
        what="parquet that is none",
        options=_PARQUET,
        make=text("rows.parquet", "PAR1 nothing"),
        message="rows.parquet: found ArrowInvalid: …, accepted is a parquet file",
    ),
    Row(
        what="truncated parquet",
        options=_PARQUET,
        make=_cut_parquet,
        message="rows.parquet: found ArrowInvalid: …, accepted is a parquet file",
    ),
    _table(
        "parquet without rows",
        {"prompt": pyarrow.array([], pyarrow.string())},
        message="rows.parquet:1: found no rows, accepted is at least one row",
    ),
    _table(
        "parquet without the column",
        {"text": ["w1"]},
        message="rows.parquet:1: prompt: found the columns text, accepted are prompt (or …",
    ),
    _table(
        "null in a parquet column",
        {"prompt": ["w1", None]},
        message="rows.parquet:2: prompt: found the columns prompt, accepted are prompt (or …",
    ),
    _table(
        "numbers in a parquet column",
        {"prompt": [1.5]},
        message="rows.parquet:1: prompt: found float 1.5, accepted is a text",
    ),
    Row(
        what="no such data set",
        options="data check prompts hub:nowhere",
        message="hub:nowhere:train: found …, accepted is hub:NAME[:SPLIT]",
    ),
    Row(
        what="plain text for demonstrations",
        options="data check demonstrations rows.txt",
        make=text("rows.txt", "w1\n"),
        message="rows.txt:1: prompt: found the columns text, accepted are prompt (or …",
    ),
]

LINES = [
    _line(
        "line cut off",
        '{"prompt": "w1", "comple',
        message="rows.jsonl:2: found … at character 18, accepted is one JSON object a line",
    ),
    _line(
        "list for an object",
        [1, 2],
        message="rows.jsonl:2: found JSON of type list, accepted is one JSON object a line",
    ),
    _line(
        "number for an object", "3", message="rows.jsonl:2: found JSON of type int, accepted is one JSON object a line"
    ),
    _line(
        "two objects in a line",
        json.dumps(_GOOD) * 2,
        message="rows.jsonl:2: found … at character 37, accepted is one JSON object a line",
    ),
    _line(
        "nesting without end",
        "[" * 200_000,
        message="rows.jsonl:2: found JSON nested too deep, accepted is a flat object",
    ),
    _line(
        "number of 5,000 digits",
        '{"prompt": ' + "1" * 5000 + "}",
        message="rows.jsonl:2: found Exceeds the limit (4300 digits) …, accepted is one JSON object a line",
    ),
    _line(
        "missing column",
        {"prompt": "w1"},
        message="rows.jsonl:2: completion: found the columns prompt, accepted are prompt (or …",
    ),
    _line(
        "column of another name",
        {"task": "w1", "completion": "w2"},
        message=("rows.jsonl:2: prompt: found the columns task, completion, accepted are prompt (or …"),
    ),
    _line(
        "name of a column of 1,000 letters",
        {"x" * 1000: "w1"},
        message="rows.jsonl:2: prompt: found the columns x…, accepted are prompt (or …",
    ),
    _line(
        "null for a text",
        {"prompt": "w1", "completion": None},
        message=("rows.jsonl:2: completion: found the columns prompt, completion, accepted are prompt (or …"),
    ),
    _line(
        "number for a text",
        {"prompt": 3, "completion": "w2"},
        message="rows.jsonl:2: prompt: found int 3, accepted is a text",
    ),
    _line(
        "empty prompt",
        {"prompt": "", "completion": "w2"},
        message="rows.jsonl:2: prompt: found an empty text, accepted is a text of at least one character",
    ),
    _line(
        "NUL in a text",
        {"prompt": "w1\0", "completion": "w2"},
        message="rows.jsonl:2: prompt: found a NUL at character 3, accepted is a text without NUL",
    ),
    _line(
        "half a surrogate pair",
        '{"prompt": "\\ud800", "completion": "w2"}',
        message="rows.jsonl:2: prompt: found half a surrogate pair at character 1, accepted is Unicode text",
    ),
    _line(
        "True for a user", {**_GOOD, "user": True}, message="rows.jsonl:2: user: found bool True, accepted is a text"
    ),
    _line(
        "no messages",
        {"messages": []},
        message="rows.jsonl:2: messages: found list [], accepted is a list of at least one message",
    ),
    _line(
        "message of an unknown role",
        {"messages": [{"role": "critic", "content": "w1"}]},
        message="rows.jsonl:2: messages[0].role: found str 'critic', accepted are system, user, assistant, tool",
    ),
    _line(
        "message without content",
        {"messages": [{"role": "user"}]},
        message="rows.jsonl:2: messages[0].content: found NoneType None, accepted is a text",
    ),
    _line(
        "messages that end with the user's",
        {"messages": _transcript("w1", "w2", "w3")},
        message="rows.jsonl:2: messages: found a last message of user, accepted is a last message of assistant",
    ),
    _line(
        "answer to nothing",
        {"messages": _transcript("", "w2")[1:]},
        message=(
            "rows.jsonl:2: messages: found no text of a user before the answer, accepted is a message of user there"
        ),
    ),
    _line(
        "prompt of a number", {"prompt": 3}, "prompts", message="rows.jsonl:2: prompt: found int 3, accepted is a text"
    ),
    Row(
        what="list for a text",
        step="corpus",
        make=rows({"text": "w1"}, {"text": ["w1"]}),
        message="rows.jsonl:2: text: found list ['w1'], accepted is a text",
    ),
    Row(
        what="line of 10 MB, cut off",
        step="prompts",
        make=lambda: Path("rows.jsonl").write_text('{"prompt": "' + "w1 " * 3_500_000),
        message="rows.jsonl:1: found … at character 12, accepted is one JSON object a line",
    ),
    _line(
        "K = 1",
        {"prompt": "w1", "completions": ["w2"], "ranks": [1]},
        "comparisons",
        message="rows.jsonl:2: completions: found 1, accepted are at least 2 (K = 1 cannot be compared)",
    ),
    _line(
        "text for completions",
        {"prompt": "w1", "completions": "w2", "ranks": [1]},
        "comparisons",
        message="rows.jsonl:2: completions: found str 'w2', accepted is a list of at least 2 completions",
    ),
    _line(
        "completions without a prompt",
        {"completions": ["w2", "w3"], "ranks": [1, 2]},
        "comparisons",
        message=("rows.jsonl:2: prompt: found the columns completions, ranks, accepted are prompt (or …"),
    ),
    _line(
        "ranks of the wrong length",
        {**_PAIR, "ranks": [1, 2, 3]},
        "comparisons",
        message="rows.jsonl:2: ranks: found 3 ranks, accepted are 2 finite numbers, one a completion, lower is better",
    ),
    _line(
        "rank that is a text",
        {**_PAIR, "ranks": [1, "2"]},
        "comparisons",
        message="rows.jsonl:2: ranks: found str '2', accepted are 2 finite numbers, one a completion, lower is better",
    ),
    _line(
        "rank that is NaN",
        {**_PAIR, "ranks": [1, float("nan")]},
        "comparisons",
        message=(
            "rows.jsonl:2: ranks: found float nan, accepted are 2 finite numbers, one a completion, lower is better"
        ),
    ),
    _line(
        "rank that is missing",
        {"prompt": "w1", "completions": [{"completion": "w2"}] * 2},
        "comparisons",
        message=(
            "rows.jsonl:2: completions[].rank: found NoneType None, accepted are 2 finite numbers, one a "
            "completion, lower is better"
        ),
    ),
    _line(
        "no ranks",
        _PAIR,
        "comparisons",
        message="rows.jsonl:2: ranks: found the columns prompt, completions, accepted is one of ranks and preferences",
    ),
    _line(
        "ranks and preferences",
        {**_PAIR, "ranks": [1, 2], "preferences": []},
        "comparisons",
        message="rows.jsonl:2: ranks: found both, accepted is one of ranks and preferences",
    ),
    _line(
        "preference for a completion that is not there",
        {**_PAIR, "preferences": [[0, 2]]},
        "comparisons",
        message=(
            "rows.jsonl:2: preferences: found list [0, 2], accepted are pairs [winner, loser] of two different "
            "numbers from 0 to 1"
        ),
    ),
    _line(
        "preference over itself",
        {**_PAIR, "preferences": [[1, 1]]},
        "comparisons",
        message=(
            "rows.jsonl:2: preferences: found list [1, 1], accepted are pairs [winner, loser] of two different "
            "numbers from 0 to 1"
        ),
    ),
    _line(
        "preference of three",
        {**_PAIR, "preferences": [[0, 1, 1]]},
        "comparisons",
        message=(
            "rows.jsonl:2: preferences: found list [0, 1, 1], accepted are pairs [winner, loser] of two "
            "different numbers from 0 to 1"
        ),
    ),
    _line(
        "transcripts without a common turn",
        {"chosen": "w1", "rejected": "w2"},
        "comparisons",
        message=(
            "rows.jsonl:2: chosen: found 1 characters in common with rejected, accepted are transcripts that "
            "share the text up to a '\\n\\nAssistant:', or a prompt column"
        ),
    ),
    _line(
        "dialogues that part early",
        {"chosen": _transcript("w1", "w2"), "rejected": _transcript("w3", "w4")},
        "comparisons",
        message=(
            "rows.jsonl:2: rejected: found other messages before the last than in chosen, accepted are the same ones"
        ),
    ),
]

ROWS = [*FILES, *LINES]
