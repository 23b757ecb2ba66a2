"""The targets of `make gpu` where there is no GPU: tiny shapes, rows that fail or hang, the calls of CUDA."""

import json
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from benchmarks.core import runner, timing, workloads
from benchmarks.core.rows import Provider, Row, Target
from benchmarks.device import targets


class Tiny(timing.CpuMeter):
    def __init__(self):
        super().__init__(tiny=True)


def test_every_row_goes_through_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_targets.py", "--dry", "--out", str(tmp_path), "--rounds", "2"])
    assert targets.main() == 0
    results = json.loads((tmp_path / "gpu-targets.json").read_text(encoding="utf-8"))
    assert [row["row"] for row in results["rows"]] == [row.name for row in targets.ROWS]
    for row in results["rows"]:
        for name in ("native", "eager", "compile"):
            assert row["providers"][name]["rounds"] == 2, (row["row"], name, row["providers"][name])
            assert row["providers"][name]["error"] < 0.02
        assert min(row["per_second"].values()) > 0
        assert row["limit"].keys() == row["per_second"].keys()
        assert min(row["limit"].values()) > 0
        assert row["num_sets"] > 1 or "linear" in row["row"]
    found = {x["verdict"] for row in results["rows"] for x in row["targets"] if x["backend"] == "native"}
    assert found == {"dry"}
    table = (tmp_path / "gpu-targets.md").read_text(encoding="utf-8")
    assert "the figures mean nothing" in table
    assert all(row.name in table for row in targets.ROWS)


def test_what_is_asked_for_is_in_the_table():
    asked = {(row.name.split(",")[0], x.measure, x.bound) for row in targets.ROWS for x in row.targets}
    assert ("token_logprobs backward", "share_pct", 88) in asked
    assert ("ranking forward", "device_us", 4) in asked
    assert ("linear_ppo_loss forward + backward", "device_us", 21000) in asked
    assert targets.BUDGET_S <= 480
    assert len(targets.BY_NAME) == len(targets.ROWS)


# Does what the worker does, on rows that are told by their names.
WORKER = """
import json, os, sys, time

def write(line):
    print("@" + json.dumps(line), flush=True)

write({"ready": True})
for name, without in map(json.loads, sys.stdin):
    if name == "dies":
        print("the reason")
        raise SystemExit(3)
    if name == "crashes":
        os.abort()
    if name == "hangs":
        time.sleep(60)
    for provider in ("eager", "native", "compile"):
        for stage in ("check", "graph"):
            write({"begun": provider, "stage": stage})
            known = without.get(provider, ["", ""])[0]
            if f"{provider} {stage}" in name and known != stage:
                print("its reason")
                time.sleep(60) if "hangs" in name else sys.exit(3)
    write({"begun": "", "stage": ""})
    if "rounds" in name:
        raise SystemExit(4)
    write({"row": name, "without": without, "providers": {}, "targets": []})
"""


def row(name, limit_s=30):
    target = Target(text="at most 1 us", measure="wall_us", bound=1.0)
    return Row(name=name, work=workloads.RANKING, targets=(target,), limit_s=limit_s)


def run(tmp_path, rows, seconds=60.0):
    (tmp_path / "gpu-targets.log").write_text("", encoding="utf-8")
    command = [sys.executable, "-X", "faulthandler", "-c", WORKER]
    targets.Run(command, tmp_path, {"machine": "A GPU"}, time.monotonic() + seconds).all(rows)
    return json.loads((tmp_path / "gpu-targets.json").read_text(encoding="utf-8"))["rows"]


def test_a_row_that_dies_or_hangs_costs_no_other(tmp_path):
    names = ["a", "dies", "b", "hangs", "c", "crashes"]
    rows = run(tmp_path, [row(name, limit_s=2 if name == "hangs" else 30) for name in names])
    assert [x["row"] for x in rows] == names
    assert rows[1]["why"] == "failed with exit code 3: the reason"
    assert rows[3]["why"].startswith("cut off after")
    assert rows[5]["why"] == "failed with exit code -6: Fatal Python error: Aborted"
    assert all("why" not in rows[place] for place in (0, 2, 4))
    assert rows[3]["targets"][0]["verdict"] == rows[3]["why"]


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("compile check", {"compile": "check"}),
        ("eager graph", {"eager": "graph"}),
        ("native check compile graph", {"native": "check", "compile": "graph"}),
        ("native check hangs", {"native": "check"}),
    ],
)
def test_a_provider_that_spoils_its_process_costs_no_other(tmp_path, monkeypatch, name, without):
    monkeypatch.setattr(targets, "PROVIDER_S", 2)
    rows = run(tmp_path, [row(name), row("b")])
    assert [x["row"] for x in rows] == [name, "b"]
    assert {x: stage for x, (stage, _) in rows[0]["without"].items()} == without
    for _, why in rows[0]["without"].values():
        assert why.startswith("cut off after" if "hangs" in name else "failed with exit code 3: its reason")
    assert rows[1]["without"] == {}


@pytest.mark.parametrize("name", ["eager check", "rounds"])
def test_what_is_nobodys_or_everybodys_fault_ends_the_row(tmp_path, name):
    rows = run(tmp_path, [row(name), row("b")])
    assert "why" in rows[0]
    assert "why" not in rows[1]


def test_what_no_time_is_left_for_is_written_down(tmp_path):
    rows = run(tmp_path, [row("a"), row("b")], seconds=-1.0)
    assert [x["why"] for x in rows] == ["not run: no time was left"] * 2


def attempt(**without):
    troubles = {name: runner.Trouble(stage, "it died") for name, stage in without.items()}
    return runner.Attempt(rounds=2, deadline=0.0, without=troubles)


RIGHT = torch.linspace(1.0, 2.0, 8, dtype=torch.float64)


def row_of(graph=False, backends=(), **functions):
    """A row whose formula is `RIGHT`, beside the functions."""
    made = {name: Provider(run=function) for name, function in functions.items()}
    work = workloads.Workload(op="", make=lambda draw: {"x": torch.ones(8)}, call=lambda x: RIGHT.to(x.dtype))
    return Row(name="", work=work, compile=False, graph=graph, backends=backends, others=made)


def measured(row, meter=None, **without):
    return runner.measure(row, meter or Tiny(), attempt(**without))["providers"]


def test_only_what_is_right_is_timed():
    def missing(x):
        raise ImportError("no such library")

    found = measured(
        row_of(
            native=lambda x: [RIGHT.float() * (1 + 3e-6)],
            triton=lambda x: [RIGHT.float()],
            near=lambda x: [RIGHT.float() * (1 + 3e-6)],
            far=lambda x: [RIGHT.float() * 1.001],
            nothing=lambda x: [torch.full((8,), torch.nan)],
            short=lambda x: [RIGHT.float()[:4]],
            missing=missing,
        )
    )
    kept = {name for name, x in found.items() if "left_out" not in x}
    assert kept == {name for name, x in found.items() if "rounds" in x} == {"eager", "triton", "near"}
    assert found["missing"]["left_out"] == "ImportError: no such library"
    assert found["far"]["error"] == pytest.approx(1e-3, rel=1e-2)


def test_what_a_provider_leaves_unwritten_is_seen():
    kept = RIGHT.float()
    calls = []

    def writes_once(x):
        if not calls:
            kept.copy_(RIGHT)
        calls.append(1)
        return [kept]

    assert "left_out" in measured(row_of(lazy=writes_once))["lazy"]


def test_what_spoiled_a_process_is_not_tried_again():
    class Meter(Tiny):
        asked: ClassVar = {}

        def timer(self, step, calls, graph):
            self.asked[float(step()[0][0])] = graph
            return super().timer(step, calls, graph)

    def never(x):
        raise AssertionError

    near = RIGHT.float() * (1 + 1e-5)
    found = measured(row_of(graph=True, dead=never, near=lambda x: [near.clone()]), Meter(), dead="check", near="graph")
    assert found["dead"] == {"left_out": "it died"}
    assert found["near"]["why_no_graph"] == "it died"
    assert found["eager"]["why_no_graph"] == ""
    assert Meter.asked == {1.0: True, float(near[0]): False}


def test_a_capture_that_fails_ends_the_process():
    class Meter(Tiny):
        def timer(self, step, calls, graph):
            raise timing.CaptureError("operation not permitted")

    with pytest.raises(timing.CaptureError):
        measured(row_of(graph=True), Meter())


def test_a_device_that_is_dead_ends_the_process():
    class Meter(Tiny):
        def synchronize(self):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def dies(x):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        measured(row_of(dies=dies), Meter())


def test_shares_and_verdicts():
    # A copy of twice the bytes in 30 us: a step that moves half of them in 20 us has three quarters of its rate.
    memory = timing.Memory(extra_bytes=3 * 2**20, result_bytes=2**20)
    timer = timing.DeviceTimer(None, "events")
    step = timing.Contender(list, "", 1, timer, memory)
    found = runner.figures([(25e-6, 20e-6)] * 4, [0.5 * 30e-6] * 4, step)
    assert found["share_pct"] == pytest.approx(75.0)
    assert found["device_us"] == pytest.approx(20.0)
    assert found["workspace_mib"] == pytest.approx(2.0)
    least = Target(text="", measure="share_pct", bound=75.1, at_least=True)
    most = Target(text="", measure="wall_us", bound=25.1)
    fast = Target(text="", measure="eager", bound=2.0, at_least=True)
    assert runner.verdict(least, found, False)["verdict"] == "missed"
    assert runner.verdict(most, found, False)["verdict"] == "met"
    assert runner.verdict(most, {"left_out": "wrong"}, False)["verdict"] == "wrong"
    assert runner.verdict(fast, {"times_as_fast": {"eager": 1.9}}, False)["verdict"] == "missed"
    assert runner.verdict(fast, {"times_as_fast": {"eager": 2.0}}, False)["verdict"] == "met"


def test_the_share_is_that_of_what_is_timed_in_the_same_rounds(monkeypatch):
    """Two rates that add up: half of a copy, and a quarter of a read."""
    work = workloads.Workload(op="", make=lambda draw: {"x": torch.ones(8)}, call=lambda x: RIGHT.to(x.dtype))
    row = Row(name="", work=work, compile=False, backends=(), limit=lambda x: {"copy": 50, "read": 25})
    monkeypatch.setattr(runner, "YARDSTICKS", {name: lambda size, device: (list, 100) for name in ("copy", "read")})
    seconds = {"copy": 2.0, "read": 4.0, "eager": 8.0}
    monkeypatch.setattr(runner, "take_turns", lambda steps, *_: {name: [(9.0, seconds[name])] * 3 for name in steps})
    assert measured(row)["eager"]["share_pct"] == pytest.approx(100 * (0.5 * 2.0 + 0.25 * 4.0) / 8.0)


def test_rounds_end_with_the_time_but_not_before_three():
    timer = timing.DeviceTimer(lambda: 1.0, "")
    step = timing.Contender(list, "reference", 1, timer)
    times = timing.take_turns({"a": step}, timing.CpuMeter(), 9, deadline=0.0)
    assert len(times["a"]) == timing.LEAST_ROUNDS


@pytest.fixture
def cuda(monkeypatch):
    """torch.cuda with a clock of its own: a step takes 3 ms of it and 24 MiB, a replayed graph 24 ms."""
    state = SimpleNamespace(now=0.0, allocated=2**20, peak=0, captures=0, fails=False, stream="default", open=0)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = state.now

        def elapsed_time(self, other):
            return other.at - self.at

    class Stream:
        def wait_stream(self, other):
            pass

    class Graph:
        def replay(self):
            state.now += 24.0

    @contextmanager
    def graph(captured):
        assert isinstance(captured, Graph)
        state.stream = "capture"
        yield
        if state.fails:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        state.captures, state.stream = state.captures + 1, "default"

    @contextmanager
    def stream(side):
        state.open += 1
        yield
        state.open -= 1

    def reset():
        state.peak = state.allocated

    fakes = {
        "Event": Event, "Stream": Stream, "CUDAGraph": Graph, "graph": graph, "stream": stream,
        "current_device": lambda: 0, "current_stream": Stream, "default_stream": lambda: "default",
        "get_device_properties": lambda index: SimpleNamespace(L2_cache_size=50 * 2**20), "synchronize": lambda: None,
        "set_stream": lambda x: setattr(state, "stream", x), "reset_peak_memory_stats": reset,
        "memory_allocated": lambda: state.allocated, "max_memory_allocated": lambda: state.peak,
    }  # fmt: skip
    for name, fake in fakes.items():
        assert hasattr(torch.cuda, name), name
        monkeypatch.setattr(torch.cuda, name, fake)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, *, dtype, device: empty(8, dtype=dtype))

    def step():
        state.now += 3.0
        state.peak = state.allocated + 24 * 2**20
        return [torch.zeros(2**20, dtype=torch.int8)]

    state.step = step
    return state


def test_events_around_steps(cuda):
    timer = timing.GpuMeter().timer(cuda.step, 5, graph=False)
    assert (timer.method, timer.seconds()) == ("events", pytest.approx(3e-3))


def test_replays_of_a_graph(cuda):
    timer = timing.GpuMeter().timer(cuda.step, 100, graph=True)
    assert (timer.method, cuda.captures) == ("graph", 1)
    assert timer.seconds() == pytest.approx(24e-3 / timing.GRAPH_STEPS)


def test_a_capture_that_fails_is_told(cuda):
    cuda.fails = True
    with pytest.raises(timing.CaptureError, match=r"^operation not permitted$"):
        timing.GpuMeter().timer(cuda.step, 5, graph=True)
    assert cuda.open == 0


def test_memory_of_a_step(cuda):
    found = timing.GpuMeter().memory(cuda.step)
    assert found == timing.Memory(extra_bytes=24 * 2**20, result_bytes=2**20)


def test_a_machine_without_a_gpu_is_told(monkeypatch, capsys):
    def nothing():
        raise RuntimeError("torch sees no NVIDIA GPU")

    monkeypatch.setattr(targets.machine, "gpu", nothing)
    monkeypatch.setattr(sys, "argv", ["gpu_targets.py"])
    assert targets.main() == 2
    assert capsys.readouterr().err == "gpu-targets: torch sees no NVIDIA GPU\n"


def test_rates_of_training_end_to_end(capsys):
    from benchmarks.end_to_end import compare

    task = compare.TASKS["cuda"]["1.3B"]
    weights = 12 * task.layers * task.width**2
    assert weights + task.vocabulary * task.width == pytest.approx(1.3e9, rel=0.02)
    # A token of prompt or response: forward once to generate, in four networks to score, and in two, thrice, an epoch.
    by_hand = 2 * (weights + 50257 * 2048) * (1 + 2 + 3 * 4) + 2 * weights * (2 + 3 * 4)
    assert compare.task_flops(task) == pytest.approx(by_hand * 64 * 512)
    found = compare.report_rates(task, {"rounds": {"ours": [{"seconds": {"update": 2.0, "other": 2.0}}]}})
    assert found["rates"]["ours"]["tokens_per_s"] == pytest.approx(64 * 512 / 4.0)
    assert found["rates"]["ours"]["share_of_peak"] == pytest.approx(by_hand * 64 * 512 / 4.0 / 989e12)
    assert "8192 tokens/s" in capsys.readouterr().out
