"""The scaling benchmark's own logic: fits, processes, the search for the largest size, and tables."""

import json
import os
import sys
import time
from contextlib import contextmanager

import pytest
import torch

from benchmarks.core import memory


def ends() -> None:
    os._exit(3)


def grid(last: int) -> list[int]:
    """By its definition: integers whose bits below the seventh are 0."""
    return [n for n in range(1, last + 1) if n % 2 ** max(0, n.bit_length() - 7) == 0]


def test_sizes_have_seven_significant_bits():
    from benchmarks.scaling import largest

    sizes = grid(5000)
    assert [largest.next_up(size) for size in sizes[:-1]] == sizes[1:]
    assert all(largest.on_grid(n) == max(size for size in sizes if size <= n) for n in range(1, 5000))


CURVES = {
    "line": lambda n: 1000 + 7 * n,
    "workspace that fills up": lambda n: 1000 + 7 * n + 40 * min(n, 700),
    "bend upwards": lambda n: 1000 + 7 * n + max(0, n - 900) ** 2,
    "pages": lambda n: 512 * (-(-(1000 + 7 * n) // 512)),
    "flat, then a wall": lambda n: 1000 if n < 2900 else 10**9,
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("limit", [9_000, 30_000, 31_234])
def test_the_largest_size_is_that_of_trying_them_all(name, limit):
    from benchmarks.scaling import largest

    curve, tried = CURVES[name], []

    def run(size):
        tried.append(size)
        return largest.Run(peak_bytes=curve(size), seconds=0.0)

    found = largest.largest(run, 64 if curve(64) <= limit else 1, limit, 1.0)
    within = [size for size in grid(100_000) if curve(size) <= limit]
    assert found.size == max(within)
    assert found.too_large == min(size for size in grid(200_000) if size > found.size)
    assert {found.size, found.too_large} <= set(tried)
    assert (found.run.peak_bytes, found.too_large_run.peak_bytes) == (curve(found.size), curve(found.too_large))
    assert len(tried) == len(set(tried)) == found.num_runs <= 25


def test_it_stops_before_a_run_that_would_take_too_long():
    from benchmarks.scaling import largest

    tried = []

    def run(size):
        tried.append(size)
        return largest.Run(peak_bytes=size, seconds=size / 100)

    found = largest.largest(run, 64, 10**9, 30.0)
    assert tried == [64, 128, 256, 512, 1024, 2048]
    assert (found.size, found.too_large, found.too_large_run) == (2048, None, None)


def test_a_first_size_over_the_limit_is_an_error():
    from benchmarks.scaling import largest

    with pytest.raises(ValueError, match=r"first: found size 64 with a peak of 101 bytes, accepted is up to 100"):
        largest.largest(lambda size: largest.Run(peak_bytes=101, seconds=0.0), 64, 100, 1.0)


def test_each_call_has_a_process_of_its_own_whose_end_is_noticed():

    assert len({os.getpid(), *(memory.in_process(os.getpid) for _ in range(2))}) == 3
    with pytest.raises(RuntimeError, match=r"ends\(\): found a process that ended with 3, accepted is 0"):
        memory.in_process(ends)


def test_extra_memory_is_that_of_outputs_and_gradients():
    from benchmarks.scaling import largest
    from benchmarks.scaling.rows import AXES

    index = next(i for i, axis in enumerate(AXES) if axis.axis == "tokens (V = 8192)")
    # The gradient of [1024, 8192] float32 logits; the logits themselves, as large, are inputs.
    assert abs(memory.in_process(largest.extra_bytes, index, 1024) - 2**25) < memory.NOISE_BYTES
    index = next(i for i, axis in enumerate(AXES) if axis.axis == "V (64 rows)")
    assert abs(memory.in_process(largest.extra_bytes, index, 2**14)) < memory.NOISE_BYTES


def test_a_run_counts_all_that_is_in_its_process():
    from benchmarks.scaling import largest
    from benchmarks.scaling.rows import LARGEST

    index = next(i for i, row in enumerate(LARGEST) if row.work.op.endswith(".ppo_advantages"))
    small, large = (memory.in_process(largest.largest_run, index, "ours", n) for n in (1, 8193))
    assert small.peak_bytes > 100e6
    # Three float32 tensors and a mask in, three tensors out.
    assert abs(large.peak_bytes - small.peak_bytes - 8192 * 1024 * 25) < 8 * memory.NOISE_BYTES


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_every_step_runs_and_ours_is_eagers(float64):
    from benchmarks.scaling.rows import AXES, FEW_ROWS, LARGEST, step_of, touch_code

    touch_code()
    for axis in AXES:
        step_of(axis.work, axis.shape(2))()
    shapes = [(few.work, (2, 65)) for few in FEW_ROWS] + [(row.work, row.shape(2)) for row in LARGEST]
    for work, shape in shapes:
        ours, eager = (step_of(work, shape, name)() for name in ("ours", "eager"))
        for a, b in zip(ours, eager, strict=True):
            assert a.dtype == torch.float64
            torch.testing.assert_close(a, b)


def test_memory_below_the_noise_is_not_fitted():
    from benchmarks.scaling import growth

    sizes, least = (1, 2, 4, 8, 16, 32), growth.NOISE_BYTES
    assert growth.slope(sizes, [0, 0, 0, least, 4 * least, 16 * least], least) == pytest.approx(2.0)
    assert growth.slope(sizes, [least] * 3 + [least - 1, least, 4 * least], least) is None
    eight = (1, 2, 4, 8, 16, 32, 64, 128)
    assert growth.slope(eight, [0] * 4 + [1, least, 2 * least, 4 * least], least) == pytest.approx(1.0)


def axis_row(**measured):
    return {"op": "an_op", "axis": "tokens", "sizes": (1, 2, 4), "expected_time_slope": 1, "expected_memory_slope": 2,
            **measured}  # fmt: skip


def test_the_table_of_growth():
    from benchmarks.scaling import growth

    time = {"seconds": [1.0, 2.0, 4.0], "time_slope": 1.0}
    rows = [
        axis_row(**time, extra_bytes=[10**6, 2 * 10**6, 4 * 10**6], memory_slope=1.25),
        axis_row(**time),
        axis_row(extra_bytes=[0, 0, 9], memory_slope=None),
    ]
    assert growth.growth_table(rows).splitlines()[2:] == [
        "| an_op | tokens | 1 to 4 | 1.00 (1) | 1.25 (2) | 4.0 MB |",
        "| an_op | tokens | 1 to 4 | 1.00 (1) |  |  |",
        "| an_op | tokens | 1 to 4 |  | not fitted | below 0.5 MB |",
    ]


def test_the_table_of_few_rows():
    from benchmarks.scaling import growth

    row = {"op": "an_op", "length": "T", "shape": (2, 500), "seconds": 2e-3, "eager": 5e-3}
    assert growth.few_table([row]).splitlines()[2:] == ["| an_op | 2 x T = 500 | 2 | 2e+03 | 2.50 |"]


def test_the_table_of_largest_sizes_says_which_are_bounds():
    from benchmarks.scaling import growth

    over = {"peak_bytes": 5 * 2**30, "seconds": 1.0}
    found = {"size": 300, "run": {"peak_bytes": 3 * 2**30, "seconds": 1.0}, "too_large": 302, "too_large_run": over}
    small, bound = {**found, "size": 100, "too_large": 101}, {**found, "too_large": None, "too_large_run": None}
    pairs = ((found, small), (bound, small), (found, bound), (bound, bound))
    rows = [{"op": "a", "unit": "tokens", "limit_bytes": 2**32, "ours": x, "eager": y} for x, y in pairs]
    lines = growth.largest_table(rows).splitlines()[2:]
    exact = "300 (3.000 GiB; 302: 5.000)"
    assert lines[0] == f"| a | tokens | 4 GiB | {exact} | 100 (3.000 GiB; 101: 5.000) | 3.0 |"
    assert lines[1] == "| a | tokens | 4 GiB | at least 300 (3.000 GiB) | 100 (3.000 GiB; 101: 5.000) | at least 3.0 |"
    assert lines[2] == f"| a | tokens | 4 GiB | {exact} | at least 300 (3.000 GiB) | at most 1.0 |"
    assert lines[3].endswith("| at least 300 (3.000 GiB) | at least 300 (3.000 GiB) |  |")


def test_parts_are_measured_and_written(tmp_path, monkeypatch):
    from benchmarks.scaling import growth
    from benchmarks.scaling.largest import Found, Run

    asked = []

    def largest_of(index, provider, limit_bytes, patience):
        asked.append((growth.LARGEST[index].op, provider, limit_bytes, patience))
        run = Run(peak_bytes=1, seconds=1.0)
        return Found(size=9, run=run, too_large=10, too_large_run=run, num_runs=2)

    monkeypatch.setattr(growth, "in_process", lambda extra, index, size: 1000 * size)
    monkeypatch.setattr(growth, "largest_of", largest_of)
    monkeypatch.setattr(growth, "medians", lambda steps, rounds: [float(i + 1) for i in range(len(steps))])
    command = ["growth.py", "--only", "ranking", "--out", str(tmp_path / "x.json"), "--gib", "0.5"]
    monkeypatch.setattr(sys, "argv", command)
    growth.main()
    found = json.loads((tmp_path / "x.json").read_text())
    assert [row["axis"] for row in found["axes"]] == ["prompts (K = 9)", "K (512 prompts)"]
    assert found["axes"][0]["extra_bytes"] == [1000 * size for size in found["axes"][0]["sizes"]]
    assert asked == [("pairwise_ranking_loss", name, 2**29, 20.0) for name in ("ours", "eager")]
    assert (tmp_path / "x.md").read_text().count("pairwise_ranking_loss") == 3
    monkeypatch.setattr(sys, "argv", [*command[:4], str(tmp_path / "y.json"), "--parts", "largest"])
    growth.main()
    assert json.loads((tmp_path / "y.json").read_text())["axes"] == []


def test_threads_measures_every_phase_of_a_small_recipe():
    from dataclasses import replace

    from benchmarks.scaling import threads
    from instructrl.runs.recipe import ModelShape
    from instructrl.runs.settings import MINIATURE

    whole = MINIATURE.recipe
    few = replace(whole.ppo_ptx, num_episodes=2, rollout_batch=2, minibatch=2, microbatch=2)
    recipe = replace(whole, ppo_ptx=few, pretraining=replace(whole.pretraining, batch_size=2))
    seconds = threads.steps(recipe, ModelShape(layers=1, width=8, heads=1, context=136))()
    assert set(seconds) == {"generate", "score", "update", "pretrain", "all", "products"}
    assert min(seconds.values()) > 0
    assert seconds["all"] == pytest.approx(sum(seconds[x] for x in ("generate", "score", "update", "pretrain")))


def test_threads_are_measured_with_a_free_and_a_busy_core(monkeypatch):
    from benchmarks.scaling import threads

    turns, busy = [], []

    class Worker:
        process = type("Process", (), {"pid": os.getpid()})

        def __init__(self, command, env, start_new_session):
            assert command[-1] == "--serve"
            assert not [name for name in env if name.startswith(("OMP_", "GOMP_", "MKL_"))]
            assert env["WAITS"] == "so"

        def turn(self, name):
            turns.append((name, bool(busy)))
            return {"all": len(turns)}

        def end(self):
            turns.append("end")

    @contextmanager
    def occupied(core):
        busy.append(core)
        yield
        busy.remove(core)

    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(threads, "Worker", Worker)
    monkeypatch.setattr(threads, "precede", lambda process: None)
    monkeypatch.setattr(threads, "busy", occupied)
    found = threads.measure({"WAITS": "so"}, 2, 0)
    states = [(name, is_busy) for name in threads.THREADS for is_busy in (False, True)]
    assert turns == [*states, *states, "end"]
    assert found["by work, busy"] == [{"all": 6}, {"all": 12}]


def test_a_busy_core_has_a_process_on_it_alone(monkeypatch):
    from benchmarks.scaling import threads

    core = min(os.sched_getaffinity(0))
    monkeypatch.setattr(threads, "precede", lambda process: None)
    with threads.busy(core) as process:
        deadline = time.monotonic() + 20
        while os.sched_getaffinity(process) != {core} and time.monotonic() < deadline:
            time.sleep(0.01)
        assert os.sched_getaffinity(process) == {core}
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
