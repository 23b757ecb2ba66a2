"""Errors of the readers: each names file and line, what was found and what is accepted."""

import builtins
import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from instructrl.data.readers import DataError, check, read_comparisons, read_corpus, read_demonstrations, read_prompts


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def written(path, *rows):
    path.write_text(lines(*rows), encoding="utf-8")
    return path


def turns(*contents):
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]


# Each case: the second line of a file, and what the message says after `file:2: `.

GOOD = {"prompt": "p", "completion": "c"}
PAIR = {"prompt": "p", "completions": ["a", "b"]}
BAD_DEMONSTRATIONS = {
    "missing": ('{"prompt": "p"}', "completion: found the columns prompt, accepted are prompt (or instruction"),
    "nothing": ("{}", "prompt: found the columns (none), accepted are prompt (or"),
    "null": ('{"prompt": "p", "completion": null}', "completion: found the columns"),
    "type": ('{"prompt": "p", "completion": 3}', "completion: found int 3, accepted is a text"),
    "empty": ('{"prompt": "", "completion": "c"}', "prompt: found an empty text"),
    "json": ('{"prompt": "p"', "found Expecting ',' delimiter at character 15, accepted is one JSON object a line"),
    "list": ("[1]", "found JSON of type list, accepted is one JSON object a line"),
    "nul": ('{"prompt": "a\\u0000", "completion": "c"}', "prompt: found a NUL at character 2"),
    "raw nul": ('\0{"prompt": "a", "completion": "c"}', "found a NUL, accepted is one JSON object a line"),
    "surrogate": ('{"prompt": "a\\ud800", "completion": "c"}', "prompt: found half a surrogate pair at character 2"),
    "nested": ("[" * 200_000, "found JSON nested too deep"),
    "digits": ('{"prompt": ' + "1" * 5000 + "}", "found Exceeds the limit"),
    "user": ('{"prompt": "p", "completion": "c", "user": true}', "user: found bool True, accepted is a text"),
    "role": (
        '{"messages": [{"role": "critic", "content": ""}]}',
        "messages[0].role: found str 'critic', accepted are system",
    ),
    "content": ('{"messages": [{"role": "user"}]}', "messages[0].content: found NoneType None, accepted is a text"),
    "turns": ('{"messages": []}', "messages: found list [], accepted is a list of at least one message"),
    "last": (lines({"messages": turns("q")}), "messages: found a last message of user, accepted is a last message of"),
    "no user": (lines({"messages": turns("", "a")[1:]}), "messages: found no text of a user before the answer"),
}
BAD_COMPARISONS = {
    "columns": (GOOD, "completions: found the columns prompt, completion, accepted are prompt (or instr"),
    "no prompt": ({"completions": ["a", "b"], "ranks": [1, 2]}, "prompt: found the columns completions, ranks"),
    "one": ({"prompt": "p", "completions": ["a"], "ranks": [1]}, "completions: found 1, accepted are at least 2"),
    "text": ({"prompt": "p", "completions": "ab", "ranks": [1, 2]}, "completions: found str 'ab', accepted is a list"),
    "of": ({"prompt": "p", "completions": ["a", True], "ranks": [1, 2]}, "completions[1]: found bool True"),
    "no order": (PAIR, "ranks: found the columns prompt, completions, accepted is one of ranks and preferences"),
    "two orders": ({**PAIR, "ranks": [1, 2], "preferences": []}, "ranks: found both, accepted is one of"),
    "length": ({**PAIR, "ranks": [1]}, "ranks: found 1 ranks, accepted are 2 finite numbers"),
    "ranks": ({**PAIR, "ranks": "12"}, "ranks: found str '12', accepted are 2 finite numbers"),
    "rank": ({**PAIR, "ranks": [1, "2"]}, "ranks: found str '2', accepted are 2 finite numbers"),
    "true": ({**PAIR, "ranks": [1, True]}, "ranks: found bool True"),
    "nan": ({**PAIR, "ranks": [1, float("nan")]}, "ranks: found float nan"),
    "winners": ({**PAIR, "preferences": {}}, "preferences: found dict {}, accepted are pairs [winner, loser]"),
    "triple": ({**PAIR, "preferences": [[0, 1, 1]]}, "preferences: found list [0, 1, 1], accepted are pairs"),
    "itself": ({**PAIR, "preferences": [[1, 1]]}, "preferences: found list [1, 1], accepted are pairs"),
    "range": ({**PAIR, "preferences": [[0, 2]]}, "preferences: found list [0, 2], accepted are pairs"),
    "negative": ({**PAIR, "preferences": [[0, -1]]}, "preferences: found list [0, -1], accepted are pairs"),
    "nemo": ({"prompt": "p", "completions": [{"completion": "a"}, {"completion": "b"}]}, "completions[].rank: found N"),
    "hh": ({"chosen": "abc", "rejected": "abd"}, "chosen: found 2 characters in common with rejected, accepted are"),
    "dialogues": ({"chosen": turns("p", "a"), "rejected": turns("q", "b")}, "rejected: found other messages before"),
    "answers": ({"prompt": "p", "chosen": turns("a"), "rejected": "b"}, "chosen: found a first message of user"),
}


def assert_bad_second_line(path, read, message):
    records = read(path)
    assert records[0] is not None
    for failing in (lambda: records[1], lambda: check(records)):
        with pytest.raises(DataError) as caught:
            failing()
        assert str(caught.value).startswith(f"{path}:2: {message}")


@pytest.mark.parametrize("case", BAD_DEMONSTRATIONS)
def test_bad_demonstration(case, tmp_path):
    line, message = BAD_DEMONSTRATIONS[case]
    path = tmp_path / "x.jsonl"
    path.write_text(lines(GOOD) + line.rstrip("\n") + "\n" + lines(GOOD))
    assert_bad_second_line(path, read_demonstrations, message)


@pytest.mark.parametrize("case", BAD_COMPARISONS)
def test_bad_comparison(case, tmp_path):
    row, message = BAD_COMPARISONS[case]
    path = written(tmp_path / "x.jsonl", {**PAIR, "ranks": [1, 2]}, row)
    assert_bad_second_line(path, read_comparisons, message)


def test_bad_row_of_a_prompt_and_of_a_document(tmp_path):
    path = written(tmp_path / "x.jsonl", {"prompt": "p", "text": "t"}, {"other": 1})
    assert_bad_second_line(path, read_prompts, "prompt: found the columns other, accepted are prompt (or")
    assert_bad_second_line(path, read_corpus, "text: found the columns other, accepted is text")


def test_bad_utf8_is_named_with_its_own_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n\n{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match=r"x\.jsonl:3: found the byte 0xff at byte 13 of the row, accepted is UTF-8"):
        check(read_prompts(path))
    path = tmp_path / "x.txt"
    path.write_bytes(b"first\n\nsecond\nstill \xff\n")
    with pytest.raises(DataError, match=r"x\.txt:4: found the byte 0xff"):
        check(read_corpus(path))


def test_bad_parquet_row_is_named_by_its_number(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a", "b", None]}), path, row_group_size=2)
    records = read_prompts(path)
    with pytest.raises(DataError, match=r"x\.parquet:3: prompt: found the columns prompt, accepted are"):
        check(records)
    with pytest.raises(DataError, match=r"x\.parquet:1: text: found the columns prompt, accepted is text"):
        read_corpus(path)[0]


def test_bad_hub_row_and_split(tmp_path):
    written(tmp_path / "train.jsonl", {"prompt": "a"}, {"prompt": ""})
    with pytest.raises(DataError, match=r"^hub:.*:train:2: prompt: found an empty text"):
        check(read_prompts(f"hub:{tmp_path}"))
    with pytest.raises(DataError, match=r'^hub:.*:nope: found ValueError: Unknown split "nope".*accepted is hub:NAME'):
        read_prompts(f"hub:{tmp_path}:nope")
    with pytest.raises(DataError, match=r"^hub:.*accepted is hub:NAME"):
        read_prompts(f"hub:{tmp_path / 'absent'}")


def test_check_lists_several_rows(tmp_path):
    path = written(tmp_path / "x.jsonl", {}, {"prompt": "p"}, {"prompt": 1}, {})
    with pytest.raises(DataError) as caught:
        check(read_prompts(path), max_errors=2)
    first, second, last = str(caught.value).splitlines()
    assert first.startswith(f"{path}:1: prompt: found the columns (none)")
    assert second.startswith(f"{path}:3: prompt: found int 1")
    assert last == "stopped after 2 of them, at row 3 of 4"


@pytest.mark.parametrize("name", ["x.jsonl", "x.txt", "x.jsonl.gz"])
def test_empty_file(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"") if name.endswith("gz") else b" \n\n")
    with pytest.raises(DataError, match=f"{name}:1: found an empty file, accepted is at least one row"):
        read_corpus(path)


def test_empty_and_broken_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(DataError, match=r"x\.parquet:1: found no rows"):
        read_prompts(path)
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"x\.parquet: found ArrowInvalid.*accepted is a parquet file"):
        read_prompts(path)


@pytest.mark.parametrize("damage", ["truncated", "no gzip", "flipped"])
def test_damaged_gzip(damage, tmp_path):
    whole = gzip.compress(lines(*({"prompt": f"p{number}", "completion": "c"} for number in range(7))).encode())
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # in the checksum
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes({"truncated": whole[:-9], "no gzip": b"{}", "flipped": bytes(flipped)}[damage])
    with pytest.raises(DataError, match=r"bad\.jsonl\.gz:\d+: found a damaged gzip file \(.*accepted is a whole one"):
        read_demonstrations(path)


@pytest.mark.parametrize(
    ("name", "message"), [("x.json", "found no known ending, accepted are .jsonl"), ("x.jsonl", "found no such file")]
)
def test_no_such_source(name, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "library", "extra"), [("x.parquet", "pyarrow", "parquet"), ("hub:x", "datasets", "hub")]
)
def test_optional_libraries_are_asked_for(source, library, extra, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == library:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    parquet.write_table(pyarrow.table({"prompt": ["p"]}), tmp_path / "x.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=rf"pip install instructrl\[{extra}\]"):
        read_prompts(source)
