"""The benchmarks' own arithmetic, and that the harness runs."""

import json
import sys

import pytest
import torch

from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import load_tokenizer
from instructrl.models.policy import Policy
from instructrl.ops.cases import CASES
from instructrl.rollout.generate import Sampling, sample_rollout


@pytest.mark.parametrize(("limit", "mean"), [(48, 24.0), (10, 2.5), (16, 15.0)])
def test_lengths_that_are_cut_have_the_mean_that_was_asked_for(limit, mean):
    from benchmarks.end_to_end import task

    p = task._ending_probability(task.Task(response_tokens=limit, mean_response_tokens=mean))
    # The mean of a geometric length that is cut: the sum over t of the probability of getting past t.
    assert sum((1 - p) ** t for t in range(limit)) == pytest.approx(mean)


def test_responses_of_the_task_have_that_mean(tmp_path):
    from benchmarks.end_to_end import task

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


def test_the_slope_is_that_of_the_larger_half():
    from benchmarks.scaling import growth

    sizes = (1, 2, 4, 8, 16, 32)
    assert growth.slope(sizes, [5.0, 5.0, 5.0, *(3e-6 * n**2 for n in sizes[3:])]) == pytest.approx(2.0)


def test_the_harness_checks_times_and_writes(tmp_path, monkeypatch):
    from benchmarks.ops import bench

    rows = {f"{case.op} {case.name}": case for case in CASES if (case.op, case.name) == ("ppo.ppo_loss", "(4, 5)")}
    monkeypatch.setattr(bench, "ROWS", rows)
    # Each of these takes a process or a compiler, half a minute a row.
    monkeypatch.setattr(bench, "in_process", lambda extra, row, provider: 10_000_000)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--rounds", "2", "--out", str(tmp_path)])
    bench.main()
    found = {path.suffix: path for path in sorted(tmp_path.glob("*/*"))}
    assert set(found) == {".json", ".md", ".svg"}
    (row,) = json.loads(found[".json"].read_text())["rows"]
    assert {"eager", "compile"} <= set(row["providers"])
    for name, provider in row["providers"].items():
        assert min(provider["wall_seconds"]) > 0
        assert provider["times_as_fast"][name] == 1.0
    assert found[".md"].read_text().count("\n") == 2 + len(row["providers"])


def test_a_provider_that_computes_something_else_is_left_out(capsys):
    from benchmarks.core import workloads
    from benchmarks.ops import bench

    case = next(case for case in CASES if (case.op, case.name) == ("ppo.ppo_loss", "(4, 5)"))
    right = workloads.running(workloads.public(case.op), case.gradients)

    def missing(x):
        raise ImportError

    runs = {"eager": right, "wrong": lambda x: [1.001 * y for y in right(x)], "missing": missing}
    found = {name: workloads.Provider(run=run) for name, run in runs.items()}
    assert list(bench.checked(case, found, bench.inputs(case))) == ["eager"]
    assert "wrong is left out" in capsys.readouterr().out


def test_the_limit_of_a_linear_head_is_three_products_and_of_others_their_bytes():
    from benchmarks.ops import bench

    rates = {"copy_bytes_per_s": 10.0, "product_flops_per_s": 100.0}
    linear = {"weight": torch.zeros(7, 5), "tokens": torch.zeros(2, 3, dtype=torch.int64)}
    assert bench.limit_seconds(CASES[0], linear, rates) == 6 * 7 * 5 * 6 / 100
    case = next(case for case in CASES if case.op == "ppo.ppo_loss")
    arguments = case.make(torch.float32)
    assert bench.limit_seconds(case, arguments, rates) == case.bytes_moved(arguments) / 10


def test_the_summary_takes_the_best_backend_and_the_fastest_peer():
    from benchmarks.ops import bench

    def provider(seconds: float, others: dict[str, float]) -> dict:
        fast = {name: other / seconds for name, other in others.items()}
        return {"wall_seconds": [0, seconds, 0], "times_as_fast": fast, "share": 0.5, "extra_bytes": 2e6}

    times = {"eager": 8.0, "native": 2.0, "triton": 3.0, "compile": 5.0, "trl": 6.0, "torchrl": 4.0}
    rows = [
        {"row": "op 1x2", "providers": {name: provider(x, times) for name, x in times.items()}},
        {"row": "none of ours", "providers": {"eager": provider(1.0, {"eager": 1.0})}},
    ]
    assert bench.summary(rows).splitlines()[2:] == [
        "| op 1x2 | native | 4.00 | 2.50 | 2.00 (torchrl) | 50% | 2 MB / 2 MB |"
    ]


@pytest.fixture
def one_process():
    from benchmarks.ops import options

    with options.one_process():
        yield


def test_each_option_computes_its_formula_on_every_backend(monkeypatch, one_process):
    from benchmarks.core import checks, timing
    from benchmarks.ops import options
    from instructrl import kernels

    monkeypatch.setattr(torch, "compile", lambda function: function)
    backends = ["reference", *(["native"] if not kernels.why_missing("native") else [])]
    for row in options.ROWS:
        inputs, found, results = row.inputs(tiny=True), row.providers(), {}
        for backend in backends:
            with timing.forced(backend):
                results[backend] = found["ours"].run(inputs)
        expected = found["eager"].run(inputs)
        assert all(len(x) == len(expected) for x in results.values()), row.name
        if row.compared:
            checks.require_agreement(row.name, results, expected)
        else:
            assert all(torch.equal(x[0], expected[0]) for x in results.values()), row.name
        with timing.forced(backends[-1]):
            # Without the option it is the op that is given the same inputs, and computes something else.
            assert "without" not in found or len(found["without"].run(inputs)) > 0, row.name
    assert len({row.name for row in options.ROWS}) == len(options.ROWS)


def test_checkouts_take_turns_and_are_compared_within_each_round():
    from benchmarks.ops import against

    asked = []

    class Worker:
        def __init__(self, name, seconds):
            self.name, self.seconds = name, seconds

        def turn(self, row):
            asked.append(self.name)
            # The machine becomes slower from round to round.
            return self.seconds * (1 + (len(asked) - 1) // 3)

    speeds = {"other": 2.0, "this": 1.0, "other again": 2.0}
    workers = {name: Worker(name, seconds) for name, seconds in speeds.items()}
    row = against.compared("a row", workers, 3)
    assert {len(seconds) for seconds in row["seconds"].values()} == {3}
    # One round is not counted, and nobody is always the first.
    assert len(asked) == 12
    assert len({tuple(asked[i : i + 3]) for i in range(0, 12, 3)}) == 3
    name, _, _, ratio, noise = against.cells(row)
    assert (name, ratio, noise) == ("a row", "2.000 [2.000, 2.000]", "1.000 [1.000, 1.000]")
