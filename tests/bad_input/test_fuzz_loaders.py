"""Random files: readers, options and reports either take them or raise ValueError that names the file."""

import datetime
import decimal
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from instructrl.commands import options
from instructrl.data.readers import check, read_comparisons, read_corpus, read_demonstrations, read_prompts
from instructrl.evaluation.report import write_report
from instructrl.runs.named import RUNS

READERS = (read_demonstrations, read_comparisons, read_prompts, read_corpus)
COLUMNS = (
    *("prompt", "completion", "messages", "completions", "ranks", "preferences", "context"),
    *("chosen", "rejected", "text", "user", "source", "category", "labeler"),
)
PARQUET_TYPES = (
    *("string", "binary", "int64", "float64", "bool", "date", "time"),
    *("list", "struct", "decimal", "null", "map", "dictionary"),
)
bounded = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400)]),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["\0", "\ud800", "", " ", "\n\nAssistant:", "user", "assistant"]),
)
# What stands in columns, so that most rows are wrong in one place only.
_messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": _leaves}),
    max_size=3,
)
_pairs = st.lists(st.lists(st.integers(-1, 3), max_size=3), max_size=4)
_values = st.one_of(
    st.recursive(
        _leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
        max_leaves=8,
    ),
    _messages,
    _pairs,
    st.lists(st.text(min_size=1, max_size=3), max_size=4),
    st.lists(st.one_of(st.integers(), st.floats()), max_size=4),
)
_rows = st.dictionaries(st.one_of(st.sampled_from(COLUMNS), st.text(max_size=5)), _values, max_size=6)
_good_lines = b"".join(
    json.dumps({"prompt": f"w{i}", "completion": "w2", "text": "w3"}).encode() + b"\n" for i in range(30)
)


def refusal(call: Callable[[], object]) -> str:
    """What a ValueError says, "" where there is none. Any other exception is a crash."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def assert_read_or_refused(path: Path) -> None:
    """Each reader takes the file whole, or names it."""
    for read in READERS:
        for line in refusal(lambda read=read: check(read(path))).splitlines():
            assert line.startswith((str(path), "stopped after")), line


def mutated(data: bytes, cut: int, places: list[tuple[int, int]]) -> bytes:
    """Bytes without their end, some of them changed."""
    changed = bytearray(data[: len(data) - cut % len(data)])
    for place, value in places:
        changed[place % len(changed)] = value
    return bytes(changed)


_changes = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4)
_cuts = st.one_of(st.just(0), st.integers(0, 10**6))


@bounded
@given(st.sampled_from([".jsonl", ".jsonl.gz", ".txt", ".parquet"]), st.binary(max_size=200))
def test_random_bytes(tmp_path, ending, data):
    path = tmp_path / f"rows{ending}"
    path.write_bytes(data)
    assert_read_or_refused(path)


@bounded
@given(st.lists(_rows, min_size=1, max_size=3))
def test_random_rows(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert_read_or_refused(path)


@bounded
@given(_rows, st.integers(0, 10**6), st.text(max_size=3))
def test_lines_with_a_change(tmp_path, row, place, inserted):
    line = json.dumps(row)
    place %= len(line) + 1
    path = tmp_path / "rows.jsonl"
    path.write_text(line[:place] + inserted + line[place + 1 :] + "\n", errors="replace")
    assert_read_or_refused(path)


@bounded
@given(_cuts, _changes)
def test_damaged_gzip(tmp_path, cut, changes):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(mutated(gzip.compress(_good_lines, mtime=0), cut, changes))
    assert_read_or_refused(path)


@bounded
@given(st.sampled_from([".jsonl", ".txt"]), _cuts, _changes)
def test_damaged_lines(tmp_path, ending, cut, changes):
    path = tmp_path / f"rows{ending}"
    path.write_bytes(mutated(_good_lines, cut, changes))
    assert_read_or_refused(path)


@settings(bounded, max_examples=150)
@given(st.dictionaries(st.sampled_from(COLUMNS), st.sampled_from(PARQUET_TYPES), min_size=1, max_size=4), st.booleans())
def test_parquet_of_other_types(tmp_path, kinds, missing):
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({name: _column(kind, missing) for name, kind in kinds.items()}), path)
    assert_read_or_refused(path)


@pytest.fixture(scope="module")
def good_parquet() -> bytes:
    file = io.BytesIO()
    columns = {"prompt": ["w1", "w2", "w3"] * 20, "completion": ["w2"] * 60, "text": ["w3"] * 60}
    parquet.write_table(pyarrow.table(columns), file, row_group_size=20, use_dictionary=False, compression="none")
    return file.getvalue()


@bounded
@given(cut=_cuts)
def test_truncated_parquet(tmp_path, good_parquet, cut):
    # Cut alone: what a changed byte does inside of pyarrow is pyarrow's.
    path = tmp_path / "rows.parquet"
    path.write_bytes(mutated(good_parquet, cut, []))
    assert_read_or_refused(path)


@bounded
@given(
    st.one_of(
        st.text(max_size=40).map(str.encode), st.binary(max_size=40), _rows.map(lambda row: json.dumps(row).encode())
    )
)
def test_random_options_in_a_file(tmp_path, data):
    path = tmp_path / "my.yaml"
    path.write_bytes(data)
    assert_parsed_or_refused(["--config", str(path)], str(path))


_words = st.one_of(
    st.sampled_from(["--seed", "--recipe.sft.epochs", "--recipe.ppo.minibatch", "--model.heads", "--recipe", "--"]),
    st.sampled_from(["--recipe.pretraining.adam.lr", "--recipe.ppo.kl-target", "--recipe.ppo.passes.precision"]),
    st.sampled_from(["1", "0", "-1", "nan", "1e400", "None", "", "True", "=", "--seed=", "--seed=3"]),
    st.text(max_size=4),
)


@bounded
@given(st.lists(_words, max_size=5))
def test_random_words(words):
    if not {"-h", "--help"} & set(words):
        assert_parsed_or_refused(words, "")


def assert_parsed_or_refused(words: list[str], start: str) -> None:
    message = refusal(lambda: options.parse(RUNS["smoke"].config, words, program="p", description="d"))
    assert not message or message.startswith(start)
    assert len(message.splitlines()) <= 1


_results = st.dictionaries(
    st.sampled_from(
        ["run", "models", "samples", "config", "versions", "reward_model", "sft_selection", "data", "alignment_tax"]
    ),
    _values,
    max_size=4,
)


@settings(bounded, max_examples=100)
@given(_results, st.lists(_values, max_size=2))
def test_random_results(tmp_path, results, metrics):
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    message = refusal(lambda: write_report(tmp_path))
    assert not message or str(tmp_path) in message


def _column(kind: str, missing: bool) -> pyarrow.Array:
    values = {
        "string": pyarrow.array(["w1", None if missing else "w2"]),
        "binary": pyarrow.array([b"w1", None if missing else b"\xff"]),
        "int64": pyarrow.array([1, None if missing else 2]),
        "float64": pyarrow.array([1.5, float("nan")]),
        "bool": pyarrow.array([True, None if missing else False]),
        "date": pyarrow.array([datetime.date(2020, 1, 1), None]),
        # Beyond what Python's datetime holds.
        "time": pyarrow.array([2**62, 1], pyarrow.timestamp("us")),
        "list": pyarrow.array([["w1", "w2"], None if missing else []]),
        "struct": pyarrow.array([{"role": "user", "content": "w1"}, None if missing else {"role": "tool"}]),
        "decimal": pyarrow.array([decimal.Decimal("1.5"), None]),
        "null": pyarrow.nulls(2),
        "map": pyarrow.array([[("a", 1)], None], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        "dictionary": pyarrow.array(["w1", "w1"]).dictionary_encode(),
    }
    return values[kind]
