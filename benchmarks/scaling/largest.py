"""Extra memory of a step, and the largest size whose process stays within a limit.

Each process first runs every op on a few numbers, so that loading code counts for no step. A limit is compared with
VmHWM after the run, not enforced by the kernel: RLIMIT_AS and RLIMIT_DATA also count what is reserved and never
touched.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.core import memory
from benchmarks.scaling.rows import AXES, LARGEST, step_of, touch_code


@dataclass(frozen=True, slots=True)
class Run:
    """One size in a process of its own. seconds: of inputs and step."""

    peak_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Found:
    """size: the largest that ran within the limit. too_large: the next size up, which ran and was over it; None where
    a run twice as large would have outlasted the patience.
    """

    size: int
    run: Run
    too_large: int | None
    too_large_run: Run | None
    num_runs: int


def extra_bytes(index: int, size: int) -> int:
    """Of a step of an axis, in this process."""
    touch_code()
    return memory.extra_bytes(step_of(AXES[index].work, AXES[index].shape(size)))


def largest_run(index: int, provider: str, size: int) -> Run:
    touch_code()
    start, row = time.perf_counter(), LARGEST[index]
    step_of(row.work, row.shape(size), provider)()
    return Run(memory.peak_bytes(), time.perf_counter() - start)


def next_up(size: int) -> int:
    """Sizes have seven significant bits: the next one is 0.8 to 1.6% larger."""
    return size + (1 << max(0, size.bit_length() - 7))


def on_grid(size: int) -> int:
    """The largest size of the grid that is no larger."""
    dropped = max(0, size.bit_length() - 7)
    return size >> dropped << dropped


def _meeting(runs: dict[int, Run], limit_bytes: int) -> int:
    """Where the line through the last two runs meets the limit; twice the largest where it does not rise."""
    if len(runs) < 2:
        return 2 * max(runs)
    (a, first), (b, second) = list(runs.items())[-2:]
    per_size = (second.peak_bytes - first.peak_bytes) / (b - a)
    return math.floor(b + (limit_bytes - second.peak_bytes) / per_size) if per_size > 0 else 2 * max(runs)


def largest(run: Callable[[int], Run], first: int, limit_bytes: int, patience_seconds: float) -> Found:
    """Of the grid, the largest size whose peak is within the limit, if peaks do not fall with the size.

    Doubles from the first size until the line through the last two runs meets the limit before the next doubling, then
    follows the line. Every third run halves the gap instead, so that a bend in the curve cannot make it creep.
    Raises: ValueError where the first size is over the limit.
    """
    runs: dict[int, Run] = {}
    fits, fails, size = 0, None, on_grid(first)
    while True:
        runs[size] = run(size)
        peak = runs[size].peak_bytes
        fits, fails = (size, fails) if peak <= limit_bytes else (fits, size)
        if not fits:
            raise ValueError(f"first: found size {size} with a peak of {peak} bytes, accepted is up to {limit_bytes}")
        meeting = _meeting(runs, limit_bytes)
        if fails is None:
            size = min(max(on_grid(meeting), next_up(fits)), 2 * fits)
            done = runs[fits].seconds * size / fits > patience_seconds
        else:
            size = on_grid(meeting if len(runs) % 3 else (fits + fails) // 2)
            size = max(next_up(fits), min(size, on_grid(fails - 1)))
            done = next_up(fits) >= fails
        if done:
            return Found(fits, runs[fits], fails, runs[fails] if fails else None, len(runs))


def largest_of(index: int, provider: str, limit_bytes: int, patience_seconds: float) -> Found:
    """Of a row of LARGEST, on "ours" or "eager"."""
    run = lambda size: memory.in_process(largest_run, index, provider, size)  # noqa: E731
    return largest(run, LARGEST[index].sizes[0], limit_bytes, patience_seconds)
