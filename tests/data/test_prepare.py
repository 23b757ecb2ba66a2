"""Preparation from raw files to splits, on a small generated set with every kind of dirt."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from instructrl.data.prepare import prepare
from instructrl.data.readers import DataError, read_comparisons, read_demonstrations, read_prompts, write_jsonl
from instructrl.data.settings import PrepareConfig
from instructrl.types import Comparison, Demonstration, Prompt

NUM_USERS = 40
SPLITS = ("train", "valid", "test")
LONG = " ".join(["w3"] * 90)  # 269 characters


def raw_prompts():
    """Five prompts a user; on top of them what the steps take away, each by a user of its own."""
    prompts = [
        Prompt(text=f"w1 w{user % 100} w{number} p{user}", user=f"u{user}", source=("labeler", "customer")[user % 2])
        for user in range(NUM_USERS)
        for number in range(5)
    ]
    prompts += [Prompt(text=f"{LONG} w{number}", user="prefix") for number in range(3)]
    prompts += [Prompt(text=f"w1 c{number}", user="many") for number in range(9)]
    prompts += [Prompt(text=f"mail p{user}@example.org", user=f"u{user}") for user in range(NUM_USERS)]
    return prompts + [Prompt(text=f"w1 w2 w3 w4 w5 w6 w7 w8 w9 p{user}", user=f"u{user}") for user in range(NUM_USERS)]


@pytest.fixture
def config(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    prompts = raw_prompts()
    demonstrations = [Demonstration(prompt=prompt.text, completion="w1 w2", user=prompt.user) for prompt in prompts]
    comparisons = [
        Comparison(
            prompt=prompt.text,
            completions=("w1", "w1 w2 w3 w4 w5 w6 w7 w8 w9", "w2"),
            preferred=frozenset({(0, 1), (0, 2)}),
            user=prompt.user,
        )
        for prompt in prompts
    ]
    write_jsonl(tmp_path / "p.jsonl", prompts[:100])
    write_jsonl(tmp_path / "p2.jsonl", prompts[100:])
    write_jsonl(tmp_path / "d.jsonl", demonstrations)
    write_jsonl(tmp_path / "c.jsonl", comparisons)
    return PrepareConfig(
        out=str(tmp_path / "out"),
        tokenizer=str(tmp_path / "tokenizer"),
        prompts=(str(tmp_path / "p.jsonl"), str(tmp_path / "p2.jsonl")),
        demonstrations=(str(tmp_path / "d.jsonl"),),
        comparisons=(str(tmp_path / "c.jsonl"),),
        cap_per_user=7,
        valid_fraction=0.3,
        test_fraction=0.2,
        max_prompt_tokens=8,
        max_response_tokens=8,
    )


def read_split(config, split):
    return {
        "SFT": list(read_demonstrations(f"{config.out}/demonstrations.{split}.jsonl")),
        "RM": list(read_comparisons(f"{config.out}/comparisons.{split}.jsonl")),
        "PPO": list(read_prompts(f"{config.out}/prompts.{split}.jsonl")),
    }


def test_a_user_and_a_prompt_are_in_one_split_everywhere(config):
    prepare(config)
    users, prompts = {}, {}
    for split in SPLITS:
        sets = read_split(config, split)
        for record in sets["SFT"] + sets["RM"]:
            assert prompts.setdefault(record.prompt, split) == split
        for record in sets["PPO"]:
            assert prompts.setdefault(record.text, split) == split
        for records in sets.values():
            assert all(users.setdefault(record.user, split) == split for record in records)
    assert len(set(users.values())) == 3


def test_what_is_left_is_clean(config):
    prepare(config)
    mails = {}
    for split in SPLITS:
        sets = read_split(config, split)
        prompts = [record.text for record in sets["PPO"]]
        assert len(set(prompts)) == len(prompts)
        mails[split] = sum("@" in text for text in prompts)
        assert all(len(text.split()) <= 8 for text in prompts)
        assert sum(record.user == "many" for record in sets["PPO"]) in (0, 7)
        # The second completion has nine words; the pair (0, 2) is (0, 1) without it.
        assert {(record.completions, record.preferred) for record in sets["RM"]} == {
            (("w1", "w2"), frozenset({(0, 1)}))
        }
    # Personal data is taken from the training split alone.
    assert mails["train"] == 0
    assert mails["valid"] > 0


def test_the_report_adds_up(config, tmp_path):
    report = prepare(config)
    rows = {row["step"]: row for row in report.hygiene}
    assert rows["PPO: read"]["left"] == len(raw_prompts())
    assert rows["PPO: long common prefix"]["removed"] == 2
    assert rows["PPO: at most 7 prompts a user"]["removed"] == 2
    left = rows["PPO: at most 7 prompts a user"]["left"]
    mails = rows["PPO train: personal data"]["removed"]
    assert report.personal_data["PPO"] == {"email": mails}
    lengths = sum(rows[f"PPO {split}: length"]["removed"] for split in SPLITS)
    kept = sum(rows[f"PPO {split}: length"]["left"] for split in SPLITS)
    assert kept == left - mails - lengths
    assert kept == sum(row["num_prompts"] for row in report.sizes if row["set"] == "PPO")
    assert kept == sum(row["count"] for row in report.lengths if row["set"] == "PPO")
    assert {row["source"] for row in report.sizes if row["set"] == "PPO"} >= {"labeler", "customer"}
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["sizes"] == report.sizes
    assert written["config"]["seed"] == 0
    assert "| PPO: long common prefix | 2 |" in (tmp_path / "out" / "report.md").read_text()
    names = {f"{kind}.{split}.jsonl" for kind in ("demonstrations", "comparisons", "prompts") for split in SPLITS}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"report.json", "report.md"}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".jsonl"}


def test_the_same_seed_gives_the_same_files_and_another_other_ones(config, tmp_path):
    prepare(config)
    first = contents(tmp_path / "out")
    prepare(config)
    assert contents(tmp_path / "out") == first
    fields = {name: getattr(config, name) for name in config.__slots__}
    prepare(PrepareConfig(**{**fields, "seed": 1}))
    assert contents(tmp_path / "out") != first


def test_the_same_prompt_of_two_users_is_not_in_train_and_test(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    # Each kind by other users: the split by user alone would put some prompts on both sides.
    write_jsonl(tmp_path / "p.jsonl", [Prompt(text=f"w{n}", user=f"u{n}") for n in range(100)])
    write_jsonl(tmp_path / "d.jsonl", [Demonstration(prompt=f"w{n}", completion="", user=f"v{n}") for n in range(100)])
    config = PrepareConfig(
        out=str(tmp_path / "out"),
        tokenizer=str(tmp_path / "tokenizer"),
        prompts=(str(tmp_path / "p.jsonl"),),
        demonstrations=(str(tmp_path / "d.jsonl"),),
        valid_fraction=0.5,
        test_fraction=0.0,
    )
    report = prepare(config)
    train = {record.prompt for record in read_demonstrations(f"{config.out}/demonstrations.train.jsonl")}
    valid = {record.text for record in read_prompts(f"{config.out}/prompts.valid.jsonl")}
    assert train
    assert not train & valid
    assert {row["step"]: row["removed"] for row in report.hygiene}["SFT train: prompt also in valid or test"] > 0


def test_grouped_by_source_and_with_personal_data(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    prompts = [Prompt(text=f"a@example.org w{n}", user=f"u{n}", source=f"o{n % 8}") for n in range(80)]
    write_jsonl(tmp_path / "p.jsonl", prompts)
    config = PrepareConfig(
        out=str(tmp_path / "out"),
        tokenizer=str(tmp_path / "tokenizer"),
        prompts=(str(tmp_path / "p.jsonl"),),
        group_by="source",
        cap_per_user=4,
        valid_fraction=0.4,
        personal_data=False,
    )
    report = prepare(config)
    assert report.personal_data == {}
    by_split = [
        {row["source"]: row["num_prompts"] for row in report.sizes if row["split"] == split} for split in SPLITS
    ]
    sources = [source for counts in by_split for source in counts if source]
    assert sorted(sources) == sorted({f"o{n}" for n in range(8)})
    assert all(count == 4 for counts in by_split for source, count in counts.items() if source)


def test_a_bad_row_is_named(config, tmp_path):
    with (tmp_path / "p2.jsonl").open("a") as file:
        file.write("{}\n")
    line = len(raw_prompts()) - 100 + 1
    with pytest.raises(DataError, match=rf"p2\.jsonl:{line}: prompt: found"):
        prepare(config)
    assert not (tmp_path / "out").exists()


def test_nothing_left(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_jsonl(tmp_path / "p.jsonl", [Prompt(text="a@example.org")])
    config = PrepareConfig(
        out=str(tmp_path / "out"), tokenizer=str(tmp_path / "tokenizer"), prompts=(str(tmp_path / "p.jsonl"),)
    )
    with pytest.raises(DataError, match="prompts: found no record left for training"):
        prepare(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "prepare: found no sources"),
        ({"prompts": "x"}, "prompts: found the text 'x', accepted is a tuple"),
        ({"group_by": "x"}, "group_by: found 'x', accepted are user, source"),
        ({"cap_per_user": 0}, "cap_per_user: found 0"),
        ({"valid_fraction": 0.9}, "valid_fraction, test_fraction: found"),
        ({"test_fraction": -0.1}, "valid_fraction, test_fraction: found"),
    ],
)
def test_config_that_cannot_be(fields, message):
    prompts = {"prompts": ("x",)} if fields else {}
    with pytest.raises(ValueError, match=message):
        PrepareConfig(**{"out": "o", "tokenizer": "t", **prompts, **fields})


def test_a_split_that_is_empty_is_told(config, tmp_path):
    prompts = [Prompt(text=f"w1 w{number}", user=f"u{number}") for number in range(3)]
    write_jsonl(tmp_path / "few.jsonl", prompts)
    few = replace(config, prompts=(str(tmp_path / "few.jsonl"),), demonstrations=(), comparisons=())
    with pytest.warns(UserWarning, match="no rows; .* too few of user") as caught:
        prepare(few)
    empty = [split for split in SPLITS if not Path(f"{config.out}/prompts.{split}.jsonl").read_bytes()]
    assert empty
    told = [str(x.message) for x in caught if "no rows" in str(x.message)]
    assert [text.partition(":")[0] for text in told] == [f"{config.out}/prompts.{s}.jsonl" for s in empty]
