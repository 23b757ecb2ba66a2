"""Seconds by phase, and the share of padding."""

import json
import time

import pytest
import torch
from rich.console import Console
from tiny import tiny_encoder, tiny_policy

from instructrl import profiling
from instructrl.trainers.log import RunLog


def test_a_phase_inside_another_counts_for_itself_alone():
    with profiling.collect() as profile, profiling.phase("update"):
        time.sleep(0.02)
        with profiling.phase("pretraining"):
            time.sleep(0.05)
        time.sleep(0.02)
    assert 0.04 <= profile.seconds["update"] < 0.05 + profile.seconds["pretraining"]
    assert profile.seconds["pretraining"] >= 0.05
    assert sum(profile.seconds.values()) >= 0.09


def test_a_phase_that_raises_ends():
    with profiling.collect() as profile:
        with pytest.raises(KeyError), profiling.phase("update"):
            raise KeyError
        with profiling.phase("generate"):
            time.sleep(0.01)
    assert list(profile.seconds) == ["update", "generate"]
    assert profile.seconds["generate"] >= 0.01


def test_nothing_is_kept_where_nobody_collects():
    with profiling.phase("update"):
        profiling.count_tokens(torch.ones(2, dtype=torch.bool))
    with profiling.collect() as profile:
        pass
    assert (profile.seconds, profile.tokens, profile.computed) == ({}, 0, 0)


def test_a_phase_has_one_of_the_names():
    with pytest.raises(AssertionError, match="updating"), profiling.phase("updating"):
        pass


def test_networks_count_their_tokens_and_their_padding():
    encoder = tiny_encoder()
    policy, sequences = tiny_policy(encoder), encoder.pairs(["w1 w2 w3", "w1"], ["w1", "w1 w2 w3"])
    with profiling.collect() as profile:
        policy(sequences)
    assert profile.tokens == int(sequences.mask.sum()) == 10
    assert profile.computed == sequences.mask.numel() == 14


def test_a_row_of_the_profile(tmp_path):
    log = RunLog(tmp_path, Console(quiet=True))
    with profiling.collect() as profile, profiling.phase("generate"):
        profiling.count_tokens(torch.tensor([True, True, True, False]))
    with log.phase("ppo", 2, "episodes") as progress:
        progress.advance(units=1, profile=profile)
        progress.advance(units=1, profile=profile)
    row = json.loads((tmp_path / "profile.jsonl").read_text())
    assert row["network_tokens"] == 6
    assert row["padding"] == 0.25
    assert list(row["parts"]) == ["generate"]
