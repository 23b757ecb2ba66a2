"""Extra memory of a step, and the largest size whose process stays within a limit.

Each process first runs every op on a few numbers, so that loading code counts for no step. A limit is compared with
VmHWM after the run, not enforced by the kernel: RLIMIT_AS and RLIMIT_DATA also count what is reserved and never
touched.
"""

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


def largest(run: Callable[[int], Run], first: int, limit_bytes: int, patience_seconds: float) -> Found:
    """Of the grid, the largest size whose peak is within the limit, if peaks do not fall with the size: doubles from
    the first size until one is over it, then halves what is between. Raises ValueError where the first one is over it.
    """
    runs: dict[int, Run] = {}
    fits, fails, size = 0, None, on_grid(first)
    while fails is None or next_up(fits) < fails:
        runs[size] = run(size)
        peak = runs[size].peak_bytes
        fits, fails = (size, fails) if peak <= limit_bytes else (fits, size)
        if not fits:
            raise ValueError(f"first: found size {size} with a peak of {peak} bytes, accepted is up to {limit_bytes}")
        if fails is None and 2 * runs[fits].seconds > patience_seconds:
            break
        size = 2 * fits if fails is None else max(next_up(fits), on_grid((fits + fails) // 2))
    return Found(fits, runs[fits], fails, runs[fails] if fails else None, len(runs))


def largest_of(index: int, provider: str, limit_bytes: int, patience_seconds: float) -> Found:
    """Of a row of LARGEST, on "ours" or "eager"."""
    run = lambda size: memory.in_process(largest_run, index, provider, size)  # noqa: E731
    return largest(run, LARGEST[index].sizes[0], limit_bytes, patience_seconds)
