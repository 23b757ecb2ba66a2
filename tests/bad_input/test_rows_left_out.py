"""The rows of a step's data: what is left out and counted, what is held out, and what the commands say of it."""

import json
import shlex
from pathlib import Path

import pytest
from table import STEPS, make_world, rows
from tiny import tiny_encoder

from instructrl import cli
from instructrl.data.hygiene import drop_equal_pairs, prompt_text
from instructrl.data.readers import read_comparisons
from instructrl.models.scoring import RewardModel
from instructrl.runs.reading import Reader
from instructrl.types import Comparison

LONG = " ".join(["w1"] * 13)  # the limit is 12


def reader(long_prompts="drop"):
    return Reader(tiny_encoder(), long_prompts)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


KINDS = {
    "demonstrations": lambda prompt: {"prompt": prompt, "completion": "w2"},
    "comparisons": lambda prompt: {"prompt": prompt, "chosen": "w2", "rejected": "w3"},
    "prompts": lambda prompt: {"prompt": prompt, "user": prompt[:2]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_long_prompts_are_left_out_and_counted(kind, folder):
    rows(*map(KINDS[kind], ["w1", LONG, "w2", LONG, "w3"]))()
    read = reader()
    records = getattr(read, kind)("rows.jsonl")
    assert [prompt_text(row) for row in records] == ["w1", "w2", "w3"]
    assert [records.where(place) for place in range(3)] == ["rows.jsonl:1", "rows.jsonl:3", "rows.jsonl:5"]
    (note,) = read.notes
    assert note.startswith("rows.jsonl: 2 of 5 rows are left out, their prompts have more than 12 tokens (")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: found a prompt of more than 12 tokens, accepted are up"):
        getattr(reader("error"), kind)("rows.jsonl")
    rows(KINDS[kind](LONG))()
    with pytest.raises(ValueError, match=r"rows\.jsonl: found prompts of more than 12 tokens alone, in 1 rows"):
        getattr(reader(), kind)("rows.jsonl")
    rows(*map(KINDS[kind], ["w1", "w2"]))()
    read = reader()
    getattr(read, kind)("rows.jsonl")
    assert read.notes == []


SAME = " ".join(["w1"] * 8)  # of the limit of a response, so that what follows is cut
EQUAL = {
    "cut": (f"{SAME} w2", f"{SAME} w3"),
    "text": ("w4", "w4"),
    "tokens": ("w4 w5", "w4  w5"),
    "unknown words": ("one", "two"),
}


@pytest.mark.parametrize("case", EQUAL)
def test_pairs_of_equal_responses_are_left_out_and_counted(case, folder):
    first, second = EQUAL[case]
    pair = {"prompt": "w1", "chosen": first, "rejected": second}
    three = {"prompt": "w2", "completions": [first, "w9", second], "ranks": [0, 1, 2]}
    tie = {"prompt": "w3", "completions": ["w1", "w2"], "ranks": [1, 1]}
    rows(pair, three, tie)()
    read = reader()
    records = read.comparisons("rows.jsonl")
    assert [(row.prompt, row.preferred) for row in records] == [("w2", {(0, 1), (1, 2)}), ("w3", frozenset())]
    assert read.notes == [
        "rows.jsonl: equal responses in 2 of 4 pairs (cut at 8 tokens): these pairs and 1 rows that have no others are "
        "left out, for they teach nothing"
    ]
    kept = drop_equal_pairs(read_comparisons("rows.jsonl"), tiny_encoder())
    assert (kept.records, kept.removed) == (list(records), 1)
    rows(pair)()
    with pytest.raises(ValueError, match=r"rows\.jsonl: found equal responses in 1 of 1 pairs \(cut at 8 tokens\)"):
        reader().comparisons("rows.jsonl")


def test_a_response_that_was_cut_differs_from_one_that_ended():
    row = Comparison(prompt="w1", completions=("w2", "w2"), preferred=frozenset({(0, 1)}), finished=(True, False))
    assert tiny_encoder().without_equal_pairs(row) == row


@pytest.mark.parametrize("kind", ["demonstrations", "comparisons"])
def test_a_share_is_held_out_by_the_hash_of_the_prompt(kind, folder):
    prompts = [f"w{number % 30} w{number // 30}" for number in range(200)]
    rows(*(KINDS[kind](prompt) for prompt in [*prompts, *prompts]))()
    read = reader()
    train, held_out = read.with_validation("rows.jsonl", None, getattr(read, kind))
    sides = [{row.prompt for row in side} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(prompts)
    assert (len(train), len(held_out)) == (360, 40)
    assert read.notes[0].startswith(
        "rows.jsonl: 40 of 400 rows are held out for validation, by the hash of their prompt"
    )
    # The same ones whatever their order and company.
    rows(*(KINDS[kind](prompt) for prompt in reversed(prompts)))()
    assert {row.prompt for row in read.with_validation("rows.jsonl", None, getattr(read, kind))[1]} == sides[1]
    train, held_out = read.with_validation("rows.jsonl", "none", getattr(read, kind))
    assert (len(train), held_out) == (200, None)
    rows(*[KINDS[kind]("w1")] * 3)()
    with pytest.raises(ValueError, match=r"validation: found one prompt in rows\.jsonl, accepted is a file, or none"):
        read.with_validation("rows.jsonl", None, getattr(read, kind))


# ---- the commands


@pytest.fixture
def world(folder):
    make_world(folder)
    return folder


def carried_out(line: str, capsys) -> str:
    """What a command line says on both streams."""
    capsys.readouterr()
    assert cli.main(shlex.split(line)) == 0, capsys.readouterr().err
    return "".join(capsys.readouterr()).replace("\n", " ")


def without(step: str, option: str) -> str:
    """The command line of a step but for one option."""
    words = shlex.split(STEPS[step])
    place = words.index(option)
    return shlex.join(words[:place] + words[place + 2 :])


def test_rm_without_demonstrations_leaves_the_bias_0_and_says_so(world, capsys):
    line = f"{without('rm', '--demonstrations')} --reward-model.batch-size 4"
    out = carried_out(line, capsys)
    assert "bias +0.0000 (there are no --demonstrations that are to score 0)" in out
    assert "of 12 rows are held out for validation" in out
    assert float(RewardModel.load("out/models/reward_model").bias) == 0
    # The command that goes on holds out the same rows.
    assert carried_out(line.replace("--fresh True", ""), capsys)
    with_them = carried_out(f"{STEPS['rm']} --validation none", capsys)
    assert "held out" not in with_them
    assert "accuracy" not in with_them
    assert "there are no" not in with_them


def test_sft_without_validation(world, capsys):
    line = without("sft", "--validation")
    out = carried_out(line, capsys)
    assert "of 12 rows are held out for validation" in out
    assert "validation loss" in out
    out = carried_out(f"{line} --validation none", capsys)
    assert "validation" not in out
    assert "out/models/sft_epoch_01" in out
    metrics = [json.loads(text) for text in Path("out/metrics.jsonl").read_text().splitlines()]
    assert metrics
    assert not any("validation_loss" in row for row in metrics)
    # Finished, it reads its result back.
    assert "out/models/sft_epoch_01" in carried_out(f"{line.replace('--fresh True', '')} --validation none", capsys)


@pytest.mark.parametrize("step", ["ppo", "eval"])
def test_steps_leave_out_long_prompts_and_say_how_many(step, world, capsys):
    rows(*({"prompt": prompt} for prompt in ("w1", LONG, "w2")))()
    out = carried_out(f"{STEPS[step]} --data rows.jsonl", capsys)
    assert "rows.jsonl: 1 of 3 rows are left out, their prompts have more than 12 tokens" in out
    if step == "eval":
        results = json.loads(Path("out/results.json").read_text())
        assert [row["prompt"] for row in results["samples"]] == ["w1", "w2"]


def test_data_check_counts_pairs_of_equal_texts(world, capsys):
    rows({"prompt": "w1", "completions": ["w2", "w2", "w3"], "ranks": [0, 1, 2]})()
    out = carried_out(STEPS["comparisons"], capsys)
    assert out == "1 rows are good 1 of 3 preferred pairs are of equal texts: `rm` leaves them out "
    assert carried_out("data check comparisons comparisons.jsonl", capsys) == "12 rows are good "
