"""The benchmarks' own arithmetic, and that the harness runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from instructrl.data.encoding import Encoder, Limits
from instructrl.data.tokenizers import load_tokenizer
from instructrl.models.policy import Policy
from instructrl.rollout.generate import Sampling, sample_rollout

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(FOLDER / "end_to_end"))


@pytest.mark.parametrize(("limit", "mean"), [(48, 24.0), (10, 2.5), (16, 15.0)])
def test_lengths_that_are_cut_have_the_mean_that_was_asked_for(benchmarks, limit, mean):
    import task

    p = task._ending_probability(task.Task(response_tokens=limit, mean_response_tokens=mean))
    # The mean of a geometric length that is cut: the sum over t of the probability of getting past t.
    assert sum((1 - p) ** t for t in range(limit)) == pytest.approx(mean)


def test_responses_of_the_task_have_that_mean(benchmarks, tmp_path):
    import task

    given = task.Task(
        layers=1, width=64, heads=2, vocabulary=2000, prompt_tokens=4, response_tokens=16, mean_response_tokens=8.0
    )
    task.write(given, tmp_path)
    _, prompts = task.read(tmp_path)
    limits = Limits(max_prompt_tokens=4, max_response_tokens=16)
    encoder = Encoder(load_tokenizer(tmp_path / "policy"), limits)
    policy = Policy.load(tmp_path / "policy").eval()
    rollout = sample_rollout(policy, encoder, prompts, Sampling(seed=0, max_response_tokens=16))
    lengths = rollout.sequences.response_mask.sum(dim=1).double()
    assert abs(float(lengths.mean()) - 8.0) <= 4 * float(lengths.std()) / len(lengths) ** 0.5
    assert torch.unique(lengths).numel() == 16


def test_the_slope_is_that_of_the_larger_half(benchmarks):
    import scaling

    sizes = (1, 2, 4, 8, 16, 32)
    assert scaling.slope(sizes, [5.0, 5.0, 5.0, *(3e-6 * n**2 for n in sizes[3:])]) == pytest.approx(2.0)


def test_the_harness_writes_a_table_and_a_plot(tmp_path):
    command = [sys.executable, str(FOLDER / "bench.py"), "--only", "masked_whiten", "--rounds", "2", "--out", tmp_path]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    found = {path.suffix: path for path in tmp_path.glob("*/*")}
    assert set(found) == {".json", ".md", ".svg"}
    rows = json.loads(found[".json"].read_text())["rows"]
    assert rows
    for row in rows:
        assert {"eager", "compile"} <= set(row["providers"])
        for provider in row["providers"].values():
            assert min(provider["wall_seconds"]) > 0
    assert found[".md"].read_text().count("\n") == 2 + sum(len(row["providers"]) for row in rows)
