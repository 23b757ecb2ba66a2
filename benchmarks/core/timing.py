"""Wall time, device time and memory of steps that take turns. What benchmarks ask of CUDA is all here.

On the CPU wall and device time are the same.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from instructrl import ops

Step = Callable[[], object]
Times = dict[str, list[tuple[float, float]]]
"""By name: wall and device seconds, a pair a round."""
SAMPLE_SECONDS = 0.02
"""What one sample of a step may take: as many calls as fit, at least one."""
GRAPH_STEPS = 24
LEAST_ROUNDS = 3


class Memory(NamedTuple):
    """extra_bytes: the high-water mark of a step over what was there before. result_bytes: what it returned of that."""

    extra_bytes: int
    result_bytes: int


class DeviceTimer(NamedTuple):
    """seconds: the device time of a step; None where wall time is it. method: "graph" (replays of `GRAPH_STEPS` steps,
    no gaps between launches), "events" (around steps that the host sends while the device is still busy with the flush
    before them) or "wall"."""

    seconds: Callable[[], float] | None
    method: str


class Contender(NamedTuple):
    """A step ready to be timed. backend: forced around it, "" for whatever is chosen. calls: in a sample."""

    step: Step
    backend: str
    calls: int
    timer: DeviceTimer
    memory: Memory | None = None


class CaptureError(RuntimeError):
    """A step could not be captured as a graph. What it leaves behind spoils what comes after it in this process."""


class CpuMeter:
    """In place of `GpuMeter` where there is no GPU. tiny: with shapes that take no time, and no compiler."""

    def __init__(self, tiny: bool = False) -> None:
        self.device, self.tiny, self.cache_bytes = torch.device("cpu"), tiny, 2**16 if tiny else 0

    def synchronize(self) -> None:
        pass

    def wall(self, step: Step, calls: int) -> float:
        """Seconds of a call, the host waiting for the device once at the end."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            step()
        self.synchronize()
        return (time.perf_counter() - start) / calls

    def timer(self, step: Step, calls: int, graph: bool) -> DeviceTimer:
        return DeviceTimer(None, "wall")

    def memory(self, step: Step) -> Memory | None:
        """A call's, where it is known; it is made in any case."""
        step()
        return None


class GpuMeter(CpuMeter):
    """Of the current CUDA device."""

    def __init__(self) -> None:
        super().__init__()
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.device, self.cache_bytes = torch.device("cuda"), properties.L2_cache_size
        # Written before each sample by events: nothing of the inputs stays in the cache, and it takes the device longer
        # than the host needs to send the steps.
        self._flush = torch.empty(max(4 * self.cache_bytes, 2**29), dtype=torch.int8, device="cuda")

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def timer(self, step: Step, calls: int, graph: bool) -> DeviceTimer:
        """graph: replay one. Raises `CaptureError` where that cannot be had."""
        if not graph:
            return DeviceTimer(lambda: self._by_events(step, calls), "events")
        try:
            captured = self._captured(step)
        except RuntimeError as error:
            raise CaptureError(str(error).strip().split("\n")[0]) from error
        replays = max(1, math.ceil(calls / GRAPH_STEPS))
        return DeviceTimer(lambda: self._by_events(captured.replay, replays) / GRAPH_STEPS, "graph")

    def _captured(self, step: Step) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            for _ in range(GRAPH_STEPS):
                step()
        captured.replay()
        torch.cuda.synchronize()
        return captured

    def _by_events(self, step: Step, calls: int) -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        self._flush.zero_()
        first.record()
        for _ in range(calls):
            step()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3 / calls

    def memory(self, step: Step) -> Memory | None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = step()
        torch.cuda.synchronize()
        extra = torch.cuda.max_memory_allocated() - before
        found = [x for x in results if isinstance(x, Tensor)] if isinstance(results, list) else []
        return Memory(extra, sum(x.nbytes for x in found))


def meter_here() -> CpuMeter:
    return GpuMeter() if torch.cuda.is_available() else CpuMeter()


def forced(backend: str) -> "ops.use_backend | nullcontext[None]":
    return ops.use_backend(backend) if backend else nullcontext()


def contender(step: Step, meter: CpuMeter, backend: str = "", graph: bool = False) -> Contender:
    """A step that was called before, with the number of its calls and its memory."""
    with forced(backend):
        calls = max(1, min(1000, int(SAMPLE_SECONDS / max(meter.wall(step, 1), 1e-9))))
        memory = meter.memory(step)
        return Contender(step, backend, calls, meter.timer(step, calls, graph), memory)


def take_turns(contenders: Mapping[str, Contender], meter: CpuMeter, rounds: int, deadline: float = math.inf) -> Times:
    """At least `LEAST_ROUNDS` if so many are asked for, no more once the deadline (of `time.monotonic`) is past."""
    times: Times = {name: [] for name in contenders}
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.monotonic() > deadline:
            break
        for name, x in contenders.items():
            with forced(x.backend):
                # Once untimed: in a training loop an op follows itself, not another that has freed its gigabytes.
                x.step()
                wall = meter.wall(x.step, x.calls)
                times[name].append((wall, wall if x.timer.seconds is None else x.timer.seconds()))
    return times


def cpu_seconds(steps: Mapping[str, Step], rounds: int) -> dict[str, list[float]]:
    """Of each step in each round, by name."""
    meter = CpuMeter()
    for step in steps.values():
        step()
    times = take_turns({name: contender(step, meter) for name, step in steps.items()}, meter, rounds)
    return {name: [wall for wall, _ in pairs] for name, pairs in times.items()}
