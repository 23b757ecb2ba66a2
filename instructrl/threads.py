"""How many threads of the CPU a pass of a network takes, and how long they stay awake while they wait for each other.

A second thread loses where it has less to do than it takes to wake it; where another program has its core, the first
waits for it at the end of every product. So inside `by_work` a pass takes as many threads as its products pay for: a
function of the machine, the network and the tokens, never of the load, since another number rounds library products
otherwise. Outside of it, and where the environment says how many, torch is left as it is. What all of this
takes is measured by `benchmarks/scaling/threads.py`.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line sets how threads wait before torch is imported, which reads it once
    from torch import Tensor

# Operations, or bytes of float32 weights, of the mean product of a pass that pay for a thread: a millisecond of a core.
OPERATIONS, BYTES = 64e6, 16e6
# Looks of a waiting thread at the others before it sleeps: some tens of microseconds. libgomp's own 300,000 make a
# preempted thread cost as much again of the core of the one that waits; a wait asleep costs small products twice.
SPINS = 10_000
_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_FIXED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

# The most that a pass may take; None outside of `by_work`.
_most: int | None = None


def wait_briefly() -> None:
    """Let waiting threads of libgomp fall asleep soon, where the user says nothing else. Before torch is imported."""
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


@contextmanager
def by_work() -> Iterator[None]:
    """Inside, `choose` sets the number of threads, up to torch's at the entrance; not where the user fixes it."""
    global _most
    if _fixed_by() is not None:
        yield
        return
    import torch

    _most = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(_most)
        _most = None


def choose(weights: Iterable[tuple[str, "Tensor"]], num_tokens: int) -> None:
    """Take as many threads as a pass of these tokens pays for, from here to the next pass, its gradient included.

    weights: of the network, by name.
    """
    if _most is None or _most == 1:
        return
    import torch

    sizes = [weight.numel() for _, weight in weights if weight.dim() == 2 and weight.device.type == "cpu"]
    if sizes:
        torch.set_num_threads(number(sum(sizes) / len(sizes), num_tokens, _most))


def number(mean_weights: float, num_tokens: int, most: int) -> int:
    """Threads, 1 to `most`, of products of `num_tokens` rows with matrices of so many weights in the mean."""
    worth = max(2 * mean_weights * num_tokens / OPERATIONS, 4 * mean_weights / BYTES)
    return max(1, min(most, int(worth)))


def rounding() -> int | str:
    """What of the threads decides how numbers are rounded."""
    import torch

    return torch.get_num_threads() if _most is None else f"up to {_most}"


def described() -> str:
    """How many a command takes here, and why, in a line."""
    import torch

    most, name = torch.get_num_threads(), _fixed_by()
    if name is not None:
        return f"threads: {most} ({name} {os.environ[name]})"
    return (
        f"threads: 1 to {most}, one for each {OPERATIONS / 1e6:.0f} million operations of a network's mean product; "
        "OMP_NUM_THREADS fixes a number"
    )


def _fixed_by() -> str | None:
    """The variable with which the user has said how many."""
    return next((name for name in _FIXED if os.environ.get(name)), None)
