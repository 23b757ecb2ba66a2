"""Layouts of columns: what was asked is put together from wherever it stands, taken once, or refused; never dropped."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from instructrl.data.readers import DataError, read_comparisons, read_demonstrations, read_prompts


def written(folder, row, suffix):
    path = folder / f"x.{suffix}"
    if suffix == "jsonl":
        path.write_text(json.dumps(row) + "\n")
    else:
        parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    return path


def said(*turns):
    """Messages; "s:..." is the system's, the others are "u:..." and "a:..."."""
    names = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": names[turn[0]], "content": turn[2:]} for turn in turns]


def shared_gpt(*turns):
    names = {"s": "system", "u": "human", "a": "gpt"}
    return [{"from": names[turn[0]], "value": turn[2:]} for turn in turns]


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


SYSTEM = "System:\nS\n\nUser:\nq\n\nAssistant:\n"
TURNS = "User:\nq\n\nAssistant:\nb\n\nUser:\nr\n\nAssistant:\n"
SYSTEM_TURNS = f"System:\nS\n\n{TURNS}"

# columns that ask -> the prompt: the same in demonstrations, comparisons and prompts
ASKING = {
    "prompt": ({"prompt": "q"}, "q"),
    "instruction": ({"instruction": "q", "input": ""}, "q"),
    "instruction, input": ({"instruction": "q", "input": "i"}, "q\n\ni"),
    "input alone": ({"input": "q"}, "q"),
    "empty instruction": ({"instruction": "", "input": "q"}, "q"),
    "question": ({"question": "q"}, "q"),
    "question, context": ({"question": "q", "context": "c"}, "q\n\nc"),
    "prompt, context": ({"prompt": "q", "context": "c"}, "q\n\nc"),
    "context alone": ({"context": "q"}, "q"),
    "context of messages": ({"context": said("u:q")}, "q"),
    "prompt, the same question": ({"prompt": "q", "question": "q"}, "q"),
    "system, prompt": ({"system": "S", "prompt": "q"}, SYSTEM),
    "empty system": ({"system": "", "prompt": "q"}, "q"),
    "system_prompt, question": ({"system_prompt": "S", "question": "q"}, SYSTEM),
    "system, prompt of messages": ({"system": "S", "prompt": said("u:q")}, SYSTEM),
    "the same system twice": ({"system": "S", "prompt": said("s:S", "u:q")}, SYSTEM),
    "prompt of turns": ({"prompt": said("s:S", "u:q", "a:b", "u:r")}, SYSTEM_TURNS),
    "parts of content": ({"prompt": [{"role": "user", "content": parts("q", "q")}]}, "qq"),
    "a single message": ({"prompt": {"role": "user", "content": "q"}}, "q"),
}
ANSWERS = ("completion", "output", "answer", "response")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("asking", ASKING)
def test_what_asks_is_the_prompt_of_every_record(asking, suffix, tmp_path):
    columns, prompt = ASKING[asking]
    (found,) = read_prompts(written(tmp_path, columns, suffix))
    assert found.text == prompt
    for answer in ANSWERS:
        for value in ("a", said("a:a")):
            (row,) = read_demonstrations(written(tmp_path, {**columns, answer: value}, suffix))
            assert (row.prompt, row.completion) == (prompt, "a")
    pair = {"chosen": "a", "rejected": "b"}
    several = {"completions": ["a", "b"], "ranks": [0, 1]}
    for answers in (pair, {name: said(f"a:{text}") for name, text in pair.items()}, several):
        (compared,) = read_comparisons(written(tmp_path, {**columns, **answers}, suffix))
        assert (compared.prompt, compared.completions, compared.preferred) == (prompt, ("a", "b"), {(0, 1)})


# columns that ask, the turns beside them -> the prompt; the last turn is the answer
TURNS_BESIDE = {
    "nothing": ({}, ("u:q",), "q"),
    "the first message": ({"prompt": "q"}, ("u:q",), "q"),
    "the first of several": ({"prompt": "q"}, ("u:q", "a:b", "u:r"), TURNS),
    "all messages": ({"prompt": said("u:q", "a:b", "u:r")}, ("u:q", "a:b", "u:r"), TURNS),
    "the last of them repeated": ({"prompt": said("u:q", "a:b", "u:r")}, ("u:r",), TURNS),
    "turns that go on": ({"prompt": said("u:q")}, ("a:b", "u:r"), TURNS),
    "turns that go on behind a system": ({"prompt": said("s:S", "u:q")}, ("a:b", "u:r"), SYSTEM_TURNS),
    "system in the prompt alone": ({"prompt": said("s:S", "u:q")}, ("u:q",), SYSTEM),
    "system in the turns alone": ({"prompt": "q"}, ("s:S", "u:q"), SYSTEM),
    "system in a column": ({"system": "S"}, ("u:q",), SYSTEM),
    "system in both": ({"prompt": said("s:S", "u:q")}, ("s:S", "u:q"), SYSTEM),
    "a prompt that is the system's": ({"prompt": said("s:S")}, ("u:q",), SYSTEM),
    "white space around": ({"prompt": "q\n"}, ("u:q", "a:b", "u:r"), TURNS.replace("q", "q\n", 1)),
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("case", TURNS_BESIDE)
def test_turns_go_on_from_what_asks(case, suffix, tmp_path):
    asking, turns, prompt = TURNS_BESIDE[case]
    layouts = {"messages": said, "conversations": shared_gpt}
    for column, make in layouts.items():
        path = written(tmp_path, {**asking, column: make(*turns, "a:a")}, suffix)
        (row,) = read_demonstrations(path)
        assert (row.prompt, row.completion) == (prompt, "a")
        assert [row.text for row in read_prompts(path)] == [prompt]
        if turns[-1][0] == "u":
            (row,) = read_demonstrations(written(tmp_path, {**asking, column: make(*turns), "response": "a"}, suffix))
            assert (row.prompt, row.completion) == (prompt, "a")
    several = {"completions": [said(*turns, f"a:{text}") for text in "ab"], "preferences": [[0, 1]]}
    for answers in ({"chosen": said(*turns, "a:a"), "rejected": said(*turns, "a:b")}, several):
        (compared,) = read_comparisons(written(tmp_path, {**asking, **answers}, suffix))
        assert (compared.prompt, compared.completions, compared.preferred) == (prompt, ("a", "b"), {(0, 1)})


def test_a_prompt_beside_transcripts_that_repeat_it(tmp_path):
    start = "\n\nHuman: q\n\nAssistant:"
    row = {"prompt": start, "chosen": f"{start} a", "rejected": f"{start} b"}
    (found,) = read_comparisons(written(tmp_path, row, "jsonl"))
    assert (found.prompt, found.completions) == (start, (" a", " b"))
    # A prompt that is no transcript belongs to an answer that repeats it.
    (found,) = read_comparisons(written(tmp_path, {"prompt": "q", "chosen": "q a", "rejected": "q b"}, "jsonl"))
    assert (found.prompt, found.completions) == ("q", ("q a", "q b"))


MIXED = {"role": "user", "content": [*parts("q"), {"type": "image_url", "image_url": "x"}]}
PAIR = {"chosen": said("u:q", "a:a"), "rejected": said("u:q", "a:b")}
REFUSED = {
    "another prompt": (read_comparisons, {"prompt": "p", **PAIR}, "chosen: found a first message of user that is not"),
    "another question": (
        read_demonstrations,
        {"prompt": "p", "messages": said("u:q", "a:a")},
        "messages: found a first",
    ),
    "another system": (
        read_demonstrations,
        {"system": "T", "messages": said("s:S", "u:q", "a:a")},
        "messages: found another system message than beside it",
    ),
    "two systems": (read_prompts, {"system": "T", "prompt": said("s:S", "u:q")}, "system: found another system"),
    "two prompts": (read_prompts, {"prompt": "p", "question": "q"}, "question: found something else than in prompt"),
    "two answers": (
        read_demonstrations,
        {"prompt": "p", "output": "a", "response": "b"},
        "response: found something e",
    ),
    "an answer and turns": (
        read_demonstrations,
        {"prompt": "q", "completion": "x", "messages": said("u:q", "a:a")},
        "messages: found something else than in completion",
    ),
    "two transcripts": (
        read_demonstrations,
        {"messages": said("u:q", "a:a"), "conversations": said("u:q", "a:b")},
        "conversations: found something else than in messages",
    ),
    "two comparisons": (
        read_comparisons,
        {"prompt": "q", "completions": ["a", "c"], "ranks": [0, 1], "chosen": "a", "rejected": "b"},
        "chosen: found something else than in completions",
    ),
    "turns that differ": (
        read_comparisons,
        {"prompt": said("u:q"), "chosen": said("a:b", "u:r", "a:a"), "rejected": said("a:c", "u:r", "a:a")},
        "rejected: found other messages before the last than in chosen",
    ),
    "a system alone": (read_comparisons, {"system": "S", "chosen": "a", "rejected": "b"}, "chosen: found no text of a"),
    "a passage beside messages": (
        read_prompts,
        {"prompt": said("u:q"), "context": "c"},
        "context: found a text beside",
    ),
    "earlier turns": (read_prompts, {"prompt": "q", "history": [["p", "a"]]}, "history: found list"),
    "tools that are no JSON": (read_prompts, {"prompt": "q", "tools": "[...]"}, "tools: found str"),
    "tools that are numbers": (read_prompts, {"prompt": "q", "tools": [1]}, "tools: found list"),
    "an image": (
        read_prompts,
        {"messages": [MIXED]},
        "messages[0].content[1].type: found str 'image_url', accepted is",
    ),
    "a call": (
        read_demonstrations,
        {"messages": [*said("u:q"), {"role": "assistant", "content": "a", "tool_calls": [{"name": "f"}]}]},
        'messages: found a last message with {"tool_calls"',
    ),
    "another speaker": (
        read_prompts,
        {"conversations": [{"from": "observation", "value": "q"}]},
        "conversations[0].from: found str 'observation', accepted are system, human, gpt",
    ),
    "an answer by number": (read_demonstrations, {"question": "q", "answer": 2}, "answer: found int 2, accepted is a"),
    "turns as a text": (read_demonstrations, {"messages": "q"}, "messages: found str 'q', accepted is a list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_contradicts_itself_or_would_be_lost_is_refused(case, tmp_path):
    read, row, message = REFUSED[case]
    path = written(tmp_path, row, "jsonl")
    with pytest.raises(DataError) as caught:
        list(read(path))
    assert str(caught.value).startswith(f"{path}:1: {message}")
    assert "\n" not in str(caught.value)


def test_null_columns_and_keys_are_not_there(tmp_path):
    message = {"role": "user", "content": "q", "from": None, "value": None, "tool_calls": None}
    row = {"prompt": None, "system": None, "messages": [message, {**message, "role": "assistant", "content": "a"}]}
    (found,) = read_demonstrations(written(tmp_path, {**row, "completion": None, "history": None}, "jsonl"))
    assert (found.prompt, found.completion) == ("q", "a")
