"""The processes of a job, as torchrun starts them: which one this is, and the few things that they tell each other.

Every process runs the same program on the same data. What takes time is divided by rows and gathered again, so that all
of them know the same and decide the same; the main one alone writes. A process by itself is a job of one, for which
everything here gives back what it is given. Numbers and texts travel as tensors: nothing is pickled.
"""

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from instructrl import interruption
from instructrl.settings import DeviceName

T = TypeVar("T")

# Of a wait for the others: the main one may be writing a large checkpoint.
_PATIENCE = timedelta(minutes=30)
_BY_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_ERRORS = {kind.__name__: kind for kind in (ValueError, RuntimeError, OSError)}
# Seconds between two looks at the others, and those that a process has to say itself why it ends.
_LOOK, _GRACE = 1.0, 5.0

_store: Store | None = None
_device: torch.device | None = None


@contextmanager
def joined(on_loss: Callable[[], None] = lambda: None, *, device: DeviceName = "auto") -> Iterator[None]:
    """Inside, this process works in the job that torchrun has put it into, and on a device of its own: see `use`.

    on_loss: called where another process of the job is gone; then this one ends, with 2, some seconds later.
    Raises ValueError where the environment speaks of several processes and does not say how they meet, and as `use`.
    """
    global _device
    use(device)
    try:
        if _number("WORLD_SIZE", 1) == 1:
            yield
            return
        store, own = _meet(), rank()
        with _watched(own, on_loss):
            try:
                yield
                dist.destroy_process_group()  # not after an error: it might wait for processes that are gone
            except interruption.Interrupted:
                store.add(_left(own), 1)
                raise
            store.add(_left(own), 1)
    finally:
        _device = None


def use(name: DeviceName) -> None:
    """Put the networks of this process on a device from here on, inside of `joined`.

    auto: a CUDA GPU where there is one, else the CPU; on a machine with several, the one of this process's number
    there. Raises ValueError for a device that is not there, and for several processes on one of Apple's.
    """
    global _device
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if there["cuda"] else "cpu"
    if name not in there or not there[name]:
        found = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise ValueError(f"device: found {name}, which torch {torch.__version__} does not find here; accepted: {found}")
    if name == "mps" and _number("WORLD_SIZE", 1) > 1:
        raise ValueError("device: found mps in a job of several processes, accepted is one process, or cpu or cuda")
    if name == "cuda":
        _device = torch.device("cuda", _number("LOCAL_RANK", 0) % torch.cuda.device_count())
        torch.cuda.set_device(_device)
    else:
        _device = torch.device(name)


def _meet() -> Store:
    """Meet the others. Returns what all of them read and write."""
    global _store
    missing = [name for name in _BY_TORCHRUN if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE: found {os.environ['WORLD_SIZE']} processes without {', '.join(missing)}, accepted is a start "
            "by torchrun"
        )
    _store, own, size = next(rendezvous("env://", timeout=_PATIENCE))
    here = os.environ.get("GROUP_RANK", "0")  # torchrun's number for this machine
    _store.set(f"place/{own}", f"{here} {os.getpid()}")
    # What is said and counted travels on the CPU, whatever the networks are on.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # A prefix of its own: the names in it are PyTorch's.
    group = PrefixStore("group", _store)
    dist.init_process_group(backend, store=group, rank=own, world_size=size, timeout=_PATIENCE)
    return _store


@contextmanager
def _watched(own: int, on_loss: Callable[[], None]) -> Iterator[None]:
    """Inside, a thread looks after the others."""
    assert _store is not None
    places = [_store.get(f"place/{other}").decode().split() for other in range(size_of_job())]
    beside = {n: int(process) for n, (machine, process) in enumerate(places) if machine == places[own][0] and n != own}
    connection = next(rendezvous("env://", timeout=_PATIENCE))[0]  # its own: one call waits for another
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(connection, beside, over, on_loss), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _left(process: int) -> str:
    """Where a process that has done its work says so."""
    return f"left/{process}"


def _watch(store: Store, beside: Mapping[int, int], over: threading.Event, on_loss: Callable[[], None]) -> None:
    """End this process where another one is gone. It may be far from where it would notice, or wait for a GPU.

    beside: rank -> process number, of the others on this machine. over: set where this process is done itself.
    """
    try:
        while not store.add("gone", 0):
            if any(not _lives(process) and not store.add(_left(other), 0) for other, process in beside.items()):
                store.add("gone", 1)  # for those on other machines
            if over.wait(_LOOK):
                return
    except RuntimeError:  # the launcher has ended, and taken the store with it
        return
    if not over.wait(_GRACE):
        on_loss()
        os._exit(2)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _number(name: str, default: int) -> int:
    """A variable of the environment."""
    found = os.environ.get(name, str(default))
    if not found.isdecimal():
        raise ValueError(f"{name}: found {found!r} in the environment, accepted is a whole number")
    return int(found)


def device() -> torch.device | None:
    """Where the networks of this process run; None outside of `joined`, where they run where they are."""
    return _device


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size_of_job() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def own_rows(rows: T) -> T:
    """This process's part of a list, or of the rows of a tensor: every n-th of n processes."""
    return rows[rank() :: size_of_job()]  # pyright: ignore[reportIndexIssue]


def microbatches(order: Tensor, size: int) -> list[Tensor]:
    """This process's part of row numbers, `size` at a time: as many parts as every other process has, empty ones where
    it has fewer rows. order: [N] int64, the same in all."""
    most = -(-len(order) // size_of_job())
    return [own_rows(order)[start : start + size] for start in range(0, most, size)]


def gather(part: Tensor, num_rows: int) -> Tensor:
    """The parts of all processes, in the order of the whole of which each took `own_rows`.

    part: [rows, ...]; the second dimension may differ between processes and is filled up with zeros at its end.
    num_rows: of the whole.
    """
    if size_of_job() == 1:
        return part
    most = -(-num_rows // size_of_job())
    shape = [most, *part.shape[1:]]
    if part.dim() > 1:
        shape[1] = int(largest(part.shape[1]))
    flags = part.dtype == torch.bool  # which gloo does not carry
    padded = torch.zeros(shape, dtype=torch.uint8 if flags else part.dtype, device=part.device)
    padded[tuple(slice(0, count) for count in part.shape)] = part
    everyone = [torch.empty_like(padded) for _ in range(size_of_job())]
    dist.all_gather(everyone, padded)
    whole = torch.stack(everyone, dim=1).flatten(0, 1)[:num_rows]
    return whole.bool() if flags else whole


def total(numbers: Sequence[float]) -> list[float]:
    """The sums over all processes, in float64: of counts exact below 2^53."""
    return _reduced(numbers, dist.ReduceOp.SUM)


def largest(number: float) -> float:
    """The largest that any process gives."""
    return _reduced([number], dist.ReduceOp.MAX)[0]


def _reduced(numbers: Sequence[float], operation) -> list[float]:
    if size_of_job() == 1:
        return [float(number) for number in numbers]
    found = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(found, operation)
    return found.tolist()


def from_main(function: Callable[[], T]) -> T:
    """What a function gives in the main process, the only one that calls it, once it is done there.

    It gives what JSON holds. Where it raises ValueError, RuntimeError or OSError, every process does.
    """
    if size_of_job() == 1:
        return function()
    if not is_main():
        return _taken(json.loads(_broadcast("")))
    try:
        value = function()
    except tuple(_ERRORS.values()) as error:
        _broadcast(json.dumps(_told(error)))
        raise
    _broadcast(json.dumps({"value": value}))
    return value


def from_each(function: Callable[[], T]) -> list[T]:
    """What a function gives in each process, in their order: every one calls it, and has all of the answers.

    It gives what JSON holds. Where it raises as in `from_main` in any of them, every process does, as the first did.
    """
    if size_of_job() == 1:
        return [function()]
    try:
        own = {"value": function()}
    except tuple(_ERRORS.values()) as error:
        own = _told(error)
    answers = [json.loads(_broadcast(json.dumps(own), source)) for source in range(size_of_job())]
    wrong = next((answer for answer in answers if "error" in answer), None)
    return [_taken(wrong or answer) for answer in answers]


def _told(error: Exception) -> dict[str, Any]:
    """An error as JSON holds it."""
    kind = next(name for name, kind in _ERRORS.items() if isinstance(error, kind))
    arguments: list[Any] = [str(error)]
    if isinstance(error, OSError) and error.filename is not None:
        arguments = [error.errno, error.strerror, str(error.filename)]
    elif isinstance(error, OSError) and error.errno is not None:
        arguments = [error.errno, error.strerror]
    return {"error": kind, "arguments": arguments}


def _taken(answer: Mapping[str, Any]) -> Any:
    """What another process answered: its value, or its error raised here."""
    if "error" in answer:
        raise _ERRORS[answer["error"]](*answer["arguments"])
    return answer["value"]


def _broadcast(text: str, source: int = 0) -> str:
    """One process's text."""
    content = text.encode()
    length = torch.tensor([len(content)])
    dist.broadcast(length, src=source)
    buffer = torch.zeros(int(length), dtype=torch.uint8)
    if rank() == source:
        buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    dist.broadcast(buffer, src=source)
    return bytes(buffer.tolist()).decode()


def wished() -> signal.Signals | None:
    """The signal that has come to any of the processes."""
    number = int(largest(interruption.wished() or 0))
    return signal.Signals(number) if number else None


def leave_if_wished() -> None:
    """Raise `Interrupted` in every process where a signal has come to one."""
    if (found := wished()) is not None:
        raise interruption.Interrupted(found)


def told_first(text: str) -> bool:
    """Whether no other process has told this yet: all of them find the same mistake in the same input."""
    if _store is None:
        return True
    try:
        return _store.add(f"told/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1
    except RuntimeError:  # whoever kept the account is gone
        return True


def is_loss(error: BaseException) -> bool:
    """Whether this is how another process that is gone shows."""
    return isinstance(error, dist.DistBackendError | dist.DistNetworkError) or "/gloo/" in str(error)
