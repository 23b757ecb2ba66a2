"""Readers: every source and layout of columns, streaming, round trips. Errors: test_reader_errors.py."""

import gzip
import json
import tracemalloc

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from instructrl.data.columns import common_prefix_chars
from instructrl.data.readers import (
    check,
    read_comparisons,
    read_corpus,
    read_demonstrations,
    read_prompts,
    write_jsonl,
)
from instructrl.types import Comparison, Demonstration, Document, Prompt

ROWS = [{"prompt": f"p{number}", "completion": f"c{number}\n\u2028é", "user": f"u{number % 2}"} for number in range(7)]
EXPECTED = [Demonstration(prompt=row["prompt"], completion=row["completion"], user=row["user"]) for row in ROWS]


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def written(path, *rows):
    path.write_text(lines(*rows), encoding="utf-8")
    return path


def as_jsonl(folder):
    return written(folder / "rows.jsonl", *ROWS)


def as_gzip(folder):
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(lines(*ROWS).encode()))
    return path


def as_parquet(folder):
    path = folder / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=3)
    return path


def as_hub_parquet(folder):
    (folder / "set").mkdir()
    as_parquet(folder / "set")
    return f"hub:{folder / 'set'}"


def as_hub_split(folder):
    (folder / "set").mkdir()
    written(folder / "set" / "train.jsonl", ROWS[0])
    written(folder / "set" / "test.jsonl", *ROWS)
    return f"hub:{folder / 'set'}:test"


@pytest.mark.parametrize("source", [as_jsonl, as_gzip, as_parquet, as_hub_parquet, as_hub_split])
def test_every_source_gives_the_same_records_in_any_order(source, tmp_path):
    records = read_demonstrations(source(tmp_path))
    assert list(records) == EXPECTED
    assert [records[number] for number in (6, 0, -1, 3)] == [EXPECTED[number] for number in (6, 0, 6, 3)]
    assert list(records[5:1:-2]) == EXPECTED[5:1:-2]
    assert list(records[2:][1::2]) == EXPECTED[2:][1::2]
    assert check(records) == len(EXPECTED)
    with pytest.raises(IndexError):
        records[7]


def test_blank_lines_byte_order_mark_and_a_missing_last_newline(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "a"}\r\n\n  \n{"prompt": "b"}\n\n{"prompt": "c"}')
    assert [prompt.text for prompt in read_prompts(path)] == ["a", "b", "c"]


# --- columns


COMPARISONS = {
    "ranks": {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 1.5, 2]},
    "preferences": {"prompt": "p", "completions": ["a", "b", "c"], "preferences": [[1, 0], [1, 2]]},
    "nemo": {
        "context": [{"role": "user", "content": "p"}],
        "completions": [
            {"rank": 1, "completion": [{"role": "assistant", "content": "a"}]},
            {"rank": 0, "completion": "b"},
            {"rank": 1, "completion": "c"},
        ],
    },
}


@pytest.mark.parametrize("layout", COMPARISONS)
def test_layouts_of_k_completions(layout, tmp_path):
    expected = Comparison(prompt="p", completions=("a", "b", "c"), preferred=frozenset({(1, 0), (1, 2)}))
    assert list(read_comparisons(written(tmp_path / "x.jsonl", COMPARISONS[layout]))) == [expected]


def test_layouts_in_parquet_with_columns_that_other_rows_leave_null(tmp_path):
    path = tmp_path / "x.parquet"
    rows = [{"ranks": None, "preferences": None, **COMPARISONS[layout]} for layout in ("ranks", "preferences")]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    parquet.write_table(pyarrow.table(columns), path)
    assert [row.preferred for row in read_comparisons(path)] == [frozenset({(1, 0), (1, 2)})] * 2


def test_preferences_may_be_a_cycle_or_none(tmp_path):
    cycle = [[0, 1], [1, 2], [2, 0]]
    rows = [{"prompt": "p", "completions": ["a", "b", "c"], "preferences": pairs} for pairs in (cycle, [])]
    assert [row.preferred for row in read_comparisons(written(tmp_path / "x.jsonl", *rows))] == [
        frozenset({(0, 1), (1, 2), (2, 0)}),
        frozenset(),
    ]


def turns(*contents):
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]


PAIRS = {
    "prompt": {"prompt": "p", "chosen": "a", "rejected": "b"},
    "one message each": {"prompt": turns("p"), "chosen": turns("", "a")[1:], "rejected": turns("", "b")[1:]},
    "messages": {"prompt": "p", "chosen": turns("p", "a"), "rejected": turns("p", "b")},
}


@pytest.mark.parametrize("layout", PAIRS)
def test_layouts_of_pairs(layout, tmp_path):
    expected = Comparison(prompt="p", completions=("a", "b"), preferred=frozenset({(0, 1)}), labeler="l", user="7")
    row = {**PAIRS[layout], "labeler": "l", "user": 7}
    assert list(read_comparisons(written(tmp_path / "x.jsonl", row))) == [expected]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("\n\nHuman: q\n\nAssistant: yes", "\n\nHuman: q\n\nAssistant: you", "\n\nHuman: q\n\nAssistant:"),
        ("\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant:", "\n\nHuman: q\n\nAssistant:"),
        (
            "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: s",
            "\n\nHuman: q\n\nAssistant: b\n\nHuman: r\n\nAssistant: s",
            "\n\nHuman: q\n\nAssistant:",
        ),
    ],
    ids=["words that begin alike", "one ends at the turn", "part before the last turn"],
)
def test_transcripts_part_at_the_last_turn_they_share(chosen, rejected, prompt, tmp_path):
    (record,) = read_comparisons(written(tmp_path / "x.jsonl", {"chosen": chosen, "rejected": rejected}))
    assert record.prompt == prompt
    assert tuple(prompt + text for text in record.completions) == (chosen, rejected)


@given(st.text(alphabet="ab", max_size=30), st.text(alphabet="ab", max_size=30))
def test_common_prefix(first, second):
    count = common_prefix_chars(first, second)
    assert first[:count] == second[:count]
    assert count == min(len(first), len(second)) or first[count] != second[count]


def test_messages_are_rendered_in_one_way(tmp_path):
    path = written(
        tmp_path / "x.jsonl",
        {"messages": turns("q", "a")},
        {"messages": [{"role": "system", "content": "s"}, *turns("q", "a", "r", "b")]},
    )
    rendered = "System:\ns\n\nUser:\nq\n\nAssistant:\na\n\nUser:\nr\n\nAssistant:\n"
    demonstrations = [(row.prompt, row.completion) for row in read_demonstrations(path)]
    assert demonstrations == [("q", "a"), (rendered, "b")]
    assert [row.text for row in read_prompts(path)] == ["q", rendered]


def test_corpus_of_text_and_of_jsonl(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("\n\nfirst\nstill first\n \t\n\n\nsécond\r\n\r\nthird".encode())
    assert [row.text for row in read_corpus(path)] == ["first\nstill first", "sécond", "third"]
    path = written(tmp_path / "x.jsonl", {"text": "a", "source": "s"}, {"text": ""})
    assert list(read_corpus(path)) == [Document(text="a", source="s"), Document(text="")]


# --- streaming


def peak_bytes(function):
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".txt"])
def test_a_file_is_not_held(suffix, tmp_path):
    path = tmp_path / f"big{suffix}"
    text = "x" * 4000
    num_rows = 4000
    row = (text + "\n\n" if suffix == ".txt" else lines({"text": text})).encode()
    if suffix.endswith("gz"):
        path.write_bytes(gzip.compress(row * num_rows))
    else:
        path.write_bytes(row * num_rows)

    def read_all():
        assert sum(len(document.text) for document in read_corpus(path)) == num_rows * len(text)

    # 16 MB of text; the index takes 8 bytes a row, unpacking a few blocks of 1 MiB.
    assert peak_bytes(read_all) < num_rows * len(row) / 3


def test_a_parquet_file_is_read_by_row_group(tmp_path, monkeypatch):
    path = as_parquet(tmp_path)
    groups = []
    real = parquet.ParquetFile.read_row_group

    def counted(self, group, columns):
        groups.append((group, columns))
        return real(self, group, columns=columns)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    records = read_prompts(path)
    assert groups == []
    assert [records[number].text for number in (0, 2, 6)] == ["p0", "p2", "p6"]
    assert groups == [(0, ["prompt", "user"]), (2, ["prompt", "user"])]


# --- writing

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
NAME = TEXT
FILLED = TEXT.filter(bool)


@st.composite
def comparisons(draw):
    completions = draw(st.lists(TEXT, min_size=2, max_size=4))
    index = st.integers(0, len(completions) - 1)
    pairs = draw(st.frozensets(st.tuples(index, index).filter(lambda pair: pair[0] != pair[1])))
    groups = draw(st.fixed_dictionaries({name: NAME for name in ("user", "source", "category", "labeler")}))
    return Comparison(prompt=draw(FILLED), completions=tuple(completions), preferred=pairs, **groups)


GROUPS = {"user": NAME, "source": NAME, "category": NAME}
RECORDS = {
    "prompts": (st.builds(Prompt, text=FILLED, **GROUPS), read_prompts),
    "demonstrations": (st.builds(Demonstration, prompt=FILLED, completion=TEXT, **GROUPS), read_demonstrations),
    "comparisons": (comparisons(), read_comparisons),
    "documents": (st.builds(Document, text=TEXT, source=NAME), read_corpus),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_round_trip(kind, tmp_path_factory):
    strategy, read = RECORDS[kind]
    path = tmp_path_factory.mktemp(kind) / "x.jsonl"

    @given(st.lists(strategy, min_size=1, max_size=5))
    def round_trip(records):
        assert write_jsonl(path, records) == len(records)
        assert list(read(path)) == records

    round_trip()


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "x.jsonl"
    write_jsonl(path, [Prompt(text="old")])

    def failing():
        yield Prompt(text="new")
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError):
        write_jsonl(path, failing())
    assert [prompt.text for prompt in read_prompts(path)] == ["old"]
