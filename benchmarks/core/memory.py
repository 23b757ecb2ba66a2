"""Memory of processes: the peak of this one, what a call takes beside, and calls in a process of their own.

A peak is VmHWM, the most that was resident: Python, torch and the inputs are in it. Processes are forked from one that
has imported torch and computed nothing, which takes hundredths of a second where a new interpreter takes seconds.
Imports nothing of ours, so that it can be used in another library's environment.
"""

import ctypes
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["matplotlib.figure", "instructrl.ops.cases"])

NOISE_BYTES = 2**19
"""What the same process takes more or less from one time to the next; nothing below it is looked at."""


def in_process(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function of a module returns in a new process. Raises RuntimeError where the process ends without."""
    receive, send = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_answer, args=(send, function, arguments))
    process.start()
    send.close()
    try:
        result = receive.recv()
    except EOFError:
        process.join()
        call = f"{function.__name__}{arguments}"
        raise RuntimeError(f"{call}: found a process that ended with {process.exitcode}, accepted is 0") from None
    process.join()
    return result


def _answer(send: Connection, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    send.send(function(*arguments))


def resident_bytes(field: str = "VmRSS") -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])


def peak_bytes() -> int:
    """High-water mark of this process's resident memory, or of its tensors on a GPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else resident_bytes("VmHWM")


def extra_bytes(step: Callable[[], object]) -> int:
    """The peak of a call over what this process held before it, on the CPU or of the tensors on a GPU."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        # The C library keeps what was freed, and a call would find its memory there.
        ctypes.CDLL(None).malloc_trim(0)
        # Making the inputs may have taken more than any call: Linux forgets that peak when asked to.
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        before = resident_bytes()
    step()
    return peak_bytes() - before
