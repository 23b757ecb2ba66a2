"""Tables of sizes and lengths."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrl.data.tables import (
    completion_length_rows,
    hygiene_markdown,
    length_row,
    lengths_markdown,
    prompt_length_rows,
    size_rows,
    sizes_markdown,
)
from instructrl.types import Comparison, Demonstration, Prompt

PAIR = frozenset({(0, 1)})
SPLITS = {
    "SFT": {
        "train": [
            Demonstration(prompt="w1 w2", completion="w1", source="labeler"),
            Demonstration(prompt="w1 w2", completion="w1 w2 w3", source="labeler"),
            Demonstration(prompt="w1", completion="", source="customer|x\ny"),
        ],
        "valid": [],
    },
    "RM": {"train": [Comparison(prompt="w1 w2 w3", completions=("w1", "w2 w3"), preferred=PAIR)], "valid": []},
    "PPO": {"train": [Prompt(text=" ".join(["w1"] * 1234))], "valid": [Prompt(text="w4")]},
}


def test_sizes_count_different_prompts():
    assert [tuple(row.values()) for row in size_rows(SPLITS)] == [
        ("SFT", "train", "customer|x\ny", 1),
        ("SFT", "train", "labeler", 1),
        ("SFT", "valid", "", 0),
        ("RM", "train", "", 1),
        ("RM", "valid", "", 0),
        ("PPO", "train", "", 1),
        ("PPO", "valid", "", 1),
    ]
    assert list(size_rows(SPLITS)[0]) == ["set", "split", "source", "num_prompts"]


def test_sizes_in_the_shape_of_table_6():
    assert sizes_markdown(size_rows(SPLITS)).splitlines() == [
        "| split | source | SFT | RM | PPO |",
        "| --- | --- | ---: | ---: | ---: |",
        "| train | (unknown) | - | 1 | 1 |",
        "| train | customer\\|x y | 1 | - | - |",
        "| train | labeler | 1 | - | - |",
        "| train | **total** | **2** | **1** | **1** |",
        "| valid | (unknown) | - | - | 1 |",
        "| valid | **total** | **0** | **0** | **1** |",
    ]


@given(st.lists(st.integers(0, 2048), min_size=2, max_size=50))
def test_statistics_of_lengths(lengths):
    row = length_row(lengths)
    quartiles = statistics.quantiles(lengths, n=4, method="inclusive")
    assert [row["p25"], row["p50"], row["p75"]] == pytest.approx(quartiles, rel=1e-12)
    assert row["mean"] == pytest.approx(statistics.fmean(lengths), rel=1e-12)
    assert row["std"] == pytest.approx(statistics.stdev(lengths), rel=1e-12)
    assert (row["count"], row["min"], row["max"]) == (len(lengths), min(lengths), max(lengths))


def test_statistics_of_one_length_and_of_none():
    assert list(length_row([3]).values()) == [1, 3.0, 0.0, 3, 3.0, 3.0, 3.0, 3]
    with pytest.raises(ValueError, match="lengths: found none"):
        length_row([])


def test_lengths_by_set_and_split(tokenizer):
    rows = prompt_length_rows(SPLITS, tokenizer)
    assert [(row["set"], row["split"], row["count"], row["min"], row["max"]) for row in rows] == [
        ("SFT", "train", 3, 1, 2),
        ("RM", "train", 1, 3, 3),
        ("PPO", "train", 1, 1234, 1234),
        ("PPO", "valid", 1, 1, 1),
    ]
    completions = completion_length_rows(SPLITS, tokenizer)
    assert [(row["set"], row["count"], row["min"], row["p50"], row["max"]) for row in completions] == [
        ("SFT", 3, 0, 1.0, 3),
        ("RM", 2, 1, 1.5, 2),
    ]
    assert lengths_markdown(rows[2:3]).splitlines() == [
        "| set | count | mean | std | min | 25% | 50% | 75% | max |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| PPO train | 1 | 1,234 | 0 | 1,234 | 1,234 | 1,234 | 1,234 | 1,234 |",
    ]


def test_hygiene_rows():
    rows = [{"step": "RM: read", "removed": 0, "left": 12000}]
    assert hygiene_markdown(rows).splitlines()[-1] == "| RM: read | 0 | 12,000 |"
