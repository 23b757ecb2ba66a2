"""Which backends exist on this machine, which operations they implement, and why the others do not.

A backend is a package beside this file (`instructrl.kernels.native`, `instructrl.kernels.triton`). When it is imported
it calls `attach` with its implementations by operation name, or `report_missing` with the reason why it cannot run
here. Nothing above the operations knows about it. A backend that is broken raises where it breaks.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REFERENCE = "reference"
BACKENDS = ("native", "triton")
"""The backends of this project, in the order in which they are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """One operation of one backend.

    function: takes the positional arguments of the operation's reference and returns what the reference returns,
        differentiable in the same arguments.
    unsupported: takes the same arguments; why they cannot run here, or None when they can. It reads shapes, strides,
        dtypes and devices only, so that it costs microseconds and can be traced.
    """

    function: Callable[..., Any]
    unsupported: Callable[..., str | None]


_implementations: dict[str, dict[str, Implementation]] = {}
_devices: dict[str, tuple[str, ...]] = {}
_about: dict[str, str] = {}
_missing: dict[str, str] = {}
_candidates: dict[tuple[str, str], tuple[Implementation, ...]] = {}


def attach(
    backend: str, *, devices: tuple[str, ...], implementations: Mapping[str, Implementation], about: str = ""
) -> None:
    """Add a backend. Raises ValueError for a name that is taken.

    backend: its name. devices: the device types where it is chosen unasked; forced, it runs wherever
    `unsupported` lets it. implementations: by operation name, such as "ranking.pairwise_ranking_loss".
    about: how it was built, one line for `instructrl doctor`.
    """
    if backend == REFERENCE or backend in _implementations:
        raise ValueError(f"backend: found {backend!r}, which is here already; accepted is any other name")
    _implementations[backend] = dict(implementations)
    _devices[backend] = devices
    _about[backend] = about
    _missing.pop(backend, None)
    _rebuild_candidates()


def detach(backend: str) -> None:
    """Remove a backend that was attached."""
    del _implementations[backend], _devices[backend]
    _rebuild_candidates()


def report_missing(backend: str, why: str) -> None:
    """Record that a backend cannot run here, and why."""
    _missing[backend] = why


def load() -> None:
    """Import the backends that are installed. An error inside one of them is not caught."""
    for backend in BACKENDS:
        if importlib.util.find_spec(f"{__name__}.{backend}") is None:
            # Backends are put here when the package is installed; the sources have them elsewhere.
            folder = Path(__file__).parent
            report_missing(backend, f"instructrl is imported from {folder.parent}, where it is not installed")
        else:
            importlib.import_module(f"{__name__}.{backend}")


def names() -> tuple[str, ...]:
    """Every backend, present or not, in the order in which they are tried; the reference is last."""
    others = [name for name in _implementations if name not in BACKENDS]
    return (*BACKENDS, *others, REFERENCE)


def why_missing(backend: str) -> str | None:
    """Why a backend is not here, or None when it is. Raises ValueError for an unknown name."""
    if backend == REFERENCE or backend in _implementations:
        return None
    if backend in BACKENDS:
        return _missing.get(backend, f"{__name__}.{backend} is not loaded")
    raise ValueError(f"backend: found {backend!r}, accepted are {', '.join(map(repr, names()))}")


def candidates(op: str, device_type: str) -> tuple[Implementation, ...]:
    """The implementations of an operation to try on a device, best first, without the reference."""
    return _candidates.get((op, device_type), ())


def about(backend: str) -> str:
    """How a backend was built; "" where there is nothing to say."""
    return _about.get(backend, "")


def devices(backend: str) -> tuple[str, ...]:
    """The device types where a backend is chosen unasked."""
    return _devices.get(backend, ())


def implementation(op: str, backend: str) -> Implementation | None:
    """A backend's implementation of an operation, None where it has none."""
    return _implementations.get(backend, {}).get(op)


def _rebuild_candidates() -> None:
    _candidates.clear()
    for backend in names():
        for op, found in _implementations.get(backend, {}).items():
            for device_type in _devices[backend]:
                _candidates[op, device_type] = (*_candidates.get((op, device_type), ()), found)
