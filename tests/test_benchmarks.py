"""The benchmarks' own arithmetic, and that the harness runs."""

import json
import sys
from dataclasses import replace

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


@pytest.fixture
def small_row(monkeypatch):
    """In the place of the large ones."""
    from benchmarks.core import runner
    from benchmarks.ops import bench

    case = next(case for case in CASES if (case.op, case.name) == ("ppo.ppo_loss", "(4, 5)"))
    monkeypatch.setattr(bench, "ROWS", [bench.row_of(case)])
    copy = runner.YARDSTICKS["copy"]
    monkeypatch.setitem(runner.YARDSTICKS, "copy", lambda size, device: copy(2**-10, device))
    # Takes a compiler, half a minute a row.
    monkeypatch.setattr(torch, "compile", lambda function, backend: function)
    return case


def test_the_harness_checks_times_and_writes(tmp_path, monkeypatch, small_row):
    from benchmarks.core import report
    from benchmarks.ops import bench

    # Each of these takes a process.
    monkeypatch.setattr(report, "in_process", lambda extra, table, row, provider: 10 * 2**20)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--rounds", "2", "--out", str(tmp_path / "x.json")])
    bench.main()
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", "x.md", "x-summary.md"}
    found = json.loads((tmp_path / "x.json").read_text())
    (row,) = found["rows"]
    assert {"eager", "compile"} <= set(row["providers"])
    here = {name: x for name, x in row["providers"].items() if "rounds" in x}
    for name, provider in here.items():
        assert len(provider["wall_rounds_us"]) == provider["rounds"] == 2
        assert min(provider["wall_rounds_us"]) > 0
        assert provider["times_as_fast"][name] == 1.0
        assert provider["share_pct"] > 0
    table = (tmp_path / "x.md").read_text().split("\n\n")[-1]
    assert table.count("\n") == 2 + len(here)
    assert table.count("| 10 |") == len(here)
    assert found["torch"] == torch.__version__


def test_quickly_it_is_our_backends_and_eager_alone(tmp_path, monkeypatch, small_row):
    from benchmarks.ops import bench

    monkeypatch.setattr(sys, "argv", ["bench.py", "--rounds", "2", "--quick", "--out", str(tmp_path / "x.json")])
    bench.main()
    (row,) = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert set(row["providers"]) <= {"eager", "native", "triton"}
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", "x.md"}


def test_memory_of_a_provider_is_taken_in_a_process_of_its_own():
    from benchmarks.core import memory, runner

    # The gradient of the scores is the least.
    found = memory.in_process(
        runner.extra_bytes, "benchmarks.ops.bench", "ranking.pairwise_ranking_loss 65536x9", "eager"
    )
    assert found >= 65536 * 9 * 4


def test_the_limit_of_a_linear_head_is_three_products_and_of_others_their_bytes():
    from benchmarks.ops import bench

    linear = {"weight": torch.zeros(7, 5), "tokens": torch.zeros(2, 3, dtype=torch.int64)}
    assert bench.row_of(CASES[0]).limit(linear) == {"product": 6 * 7 * 5 * 6}
    case = next(case for case in CASES if case.op == "ppo.ppo_loss")
    arguments = case.make(torch.float32)
    assert bench.row_of(case).limit(arguments) == {"copy": case.bytes_moved(arguments)}


def test_the_summary_takes_the_best_backend_and_the_fastest_peer():
    from benchmarks.ops import bench

    def provider(us: float, others: dict[str, float]) -> dict:
        fast = {name: other / us for name, other in others.items()}
        return {"device_us": us, "times_as_fast": fast, "share_pct": 50.0, "extra_mib": 2.0, "rounds": 3}

    times = {"eager": 8.0, "native": 2.0, "triton": 3.0, "compile": 5.0, "trl": 6.0, "torchrl": 4.0}
    rows = [
        {"row": "op 1x2", "providers": {name: provider(x, times) for name, x in times.items()}},
        {"row": "none of ours", "providers": {"eager": provider(1.0, {"eager": 1.0})}},
    ]
    rows[0]["providers"]["liger"] = {"left_out": "wrong"}
    assert bench.summary(rows).splitlines()[2:] == [
        "| op 1x2 | native | 4.00 | 2.50 | 2.00 (torchrl) | 50% | 2 MiB / 2 MiB |"
    ]


def test_a_floor_that_is_missed_is_named():
    from benchmarks.core import report

    found = {"target": "at least 2 times as fast as eager", "backend": "native", "found": 1.5, "verdict": "missed"}
    rows = [{"row": "a", "targets": [found, {**found, "verdict": "met"}, {**found, "backend": "triton"}]}]
    assert report.missed(rows) == ["a: at least 2 times as fast as eager: 1.5 missed"]


@pytest.fixture
def one_process():
    from benchmarks.ops import options

    with options.one_process():
        yield


def test_each_option_and_each_floor_computes_its_formula_on_every_backend(one_process):
    """Against the formula in float64, and with the inputs that the op takes without the option."""
    from benchmarks.core import checks, runner
    from benchmarks.core.timing import CpuMeter, forced
    from benchmarks.ops import floors, options
    from instructrl import kernels

    tiny = CpuMeter(tiny=True)
    here = {"reference", *([] if kernels.why_missing("native") else ["native"])}
    for row in (*options.ROWS, *floors.ROWS):
        inputs = row.inputs(tiny)
        every = replace(row, compile=False).providers(tiny)
        providers = {name: x for name, x in every.items() if x.backend in here}
        found = runner.check(providers, inputs, row.truth(inputs), tiny, runner.Attempt(rounds=1))
        assert {name: x["left_out"] for name, x in found.items() if "left_out" in x} == {}, row.name
        expected = every["eager"].run(inputs)
        for backend in here:
            with forced(backend):
                results = row.work.run(row.part)(inputs)
            if not expected[0].is_floating_point():
                assert row.others.get("eager") or torch.equal(results[0], expected[0]), row.name
                continue
            away, eager = (checks.distances(x, row.truth(inputs)) for x in (results, expected))
            assert checks.why_ours(away, eager) == "", (row.name, backend)
    names = [row.name for row in options.ROWS]
    assert len(set(names)) == len(names)


def test_checkouts_take_turns_and_are_compared_within_each_round(monkeypatch):
    from benchmarks.ops import against

    asked, started = [], []
    speeds = {"old": 2.0, "new": 1.0}

    class Worker:
        def __init__(self, command, cwd):
            self.name = cwd
            started.append(cwd)

        def turn(self, row):
            assert row == "a row"
            asked.append(self.name)
            # The machine becomes slower from round to round.
            return speeds[self.name] * (1 + (len(asked) - 1) // 3)

        def end(self):
            pass

    monkeypatch.setattr(against, "Worker", Worker)
    times = against.compared({"other": "old", "this": "new", "other again": "old"}, ["a row"], 6)["a row"]
    assert {len(seconds) for seconds in times.values()} == {6}
    # A round of each generation of processes is not counted, and nobody is always the first.
    assert started == 3 * ["old", "new", "old"]
    assert len(asked) == 3 * (6 + 3)
    assert len({tuple(asked[i : i + 3]) for i in range(0, len(asked), 3)}) > 1
    name, _, _, ratio, noise = against.cells("a row", times)
    assert (name, ratio, noise) == ("a row", "2.000 [2.000, 2.000]", "1.000 [1.000, 1.000]")
