"""Wall time, device time and memory of a step on one device; what gpu_targets.py asks of CUDA is all here.

On the CPU, where the whole control flow is tried, wall and device time are the same and memory is not known.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Step = Callable[[], list[Tensor]]
SAMPLE_SECONDS = 0.02
"""What one sample of a step may take: as many calls as fit, at least one."""
GRAPH_STEPS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """extra_bytes: the high-water mark of a step over what was there before. result_bytes: what it returned of that."""

    extra_bytes: int
    result_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTimer:
    """How the device time of one step is taken.

    seconds: of a step. method: "graph" (replays of `GRAPH_STEPS` steps, no gaps between launches), "events" (around
    steps that the host sends while the device is still busy with the flush before them) or "wall".
    """

    seconds: Callable[[], float]
    method: str


class CaptureError(RuntimeError):
    """A step could not be captured as a graph. What it leaves behind spoils what comes after it in this process."""


def num_calls(seconds: float) -> int:
    """Of a step that takes this long, in a sample."""
    return max(1, min(1000, int(SAMPLE_SECONDS / max(seconds, 1e-9))))


def wall_seconds(step: Step, calls: int, synchronize: Callable[[], None]) -> float:
    """Of a call, the host waiting for the device once at the end."""
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        step()
    synchronize()
    return (time.perf_counter() - start) / calls


class CpuMeter:
    """In place of `GpuMeter` where there is no GPU."""

    cache_bytes = 2**16

    def synchronize(self) -> None:
        pass

    def wall(self, step: Step, calls: int) -> float:
        return wall_seconds(step, calls, self.synchronize)

    def timer(self, step: Step, calls: int, graph: bool) -> DeviceTimer:
        return DeviceTimer(seconds=lambda: self.wall(step, calls), method="wall")

    def memory(self, step: Step) -> Memory | None:
        step()
        return None


class GpuMeter:
    """Of the current CUDA device."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.cache_bytes = properties.L2_cache_size
        # Written before each sample by events: nothing of the inputs stays in the cache, and it takes the device longer
        # than the host needs to send the steps.
        self._flush = torch.empty(max(4 * self.cache_bytes, 2**29), dtype=torch.int8, device="cuda")

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def wall(self, step: Step, calls: int) -> float:
        return wall_seconds(step, calls, self.synchronize)

    def timer(self, step: Step, calls: int, graph: bool) -> DeviceTimer:
        """graph: replay one. Raises `CaptureError` where that cannot be had."""
        if not graph:
            return DeviceTimer(seconds=lambda: self._by_events(step, calls), method="events")
        try:
            captured = self._captured(step)
        except RuntimeError as error:
            raise CaptureError(str(error).strip().split("\n")[0]) from error
        replays = max(1, math.ceil(calls / GRAPH_STEPS))

        def replay() -> list[Tensor]:
            captured.replay()
            return []

        return DeviceTimer(seconds=lambda: self._by_events(replay, replays) / GRAPH_STEPS, method="graph")

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
        return Memory(extra_bytes=extra, result_bytes=sum(x.nbytes for x in results))


Meter = CpuMeter | GpuMeter


def copy_step(meter: Meter, num_bytes: int, device: torch.device) -> tuple[Step, int]:
    """A copy between two buffers of this size, and the bytes that it reads and writes."""
    source = torch.empty(num_bytes // 4, device=device).normal_()
    target = torch.empty_like(source)
    meter.synchronize()
    return lambda: [target.copy_(source)], 2 * source.nbytes


def product_step(meter: Meter, size: int, device: torch.device) -> tuple[Step, int]:
    """A bfloat16 product of two random square matrices, and its FLOPs."""
    a, b = (torch.empty(size, size, device=device, dtype=torch.bfloat16).normal_() for _ in range(2))
    out = torch.empty_like(a)
    meter.synchronize()
    return lambda: [torch.mm(a, b, out=out)], 2 * size**3
