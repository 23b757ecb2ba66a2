"""The declaration of an operation, and the choice of the backend that runs it.

A family module declares an operation with `declare`, checks the arguments of its public function once, and calls
`run`. Everything here is plain Python over module globals, so torch.compile traces it and guards on the choice.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from instructrl import kernels
from instructrl.ops import transforms
from instructrl.ops.autograd import savable


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """An operation: its name ("family.function") and the reference that defines it.

    The reference takes positional arguments, the first of them a tensor, already checked. composed: whether it is made
    of PyTorch's own differentiable operations alone, so that every derivative and function transform goes through it.
    """

    name: str
    reference: Callable[..., Any]
    composed: bool = False


class Usability(NamedTuple):
    """One line of `instructrl doctor`."""

    op: str
    backend: str
    usable: bool
    why_not: str


OPS: dict[str, Op] = {}
_forced: str | None = os.environ.get("INSTRUCTRL_BACKEND") or None
_validating: bool = False
# Every call asks: a name of this module is found faster than one of torch's.
_has_transforms = torch._C._are_functorch_transforms_active


def declare(name: str, reference: Callable[..., Any], *, composed: bool = False) -> Op:
    """Register an operation by name; a name is taken once."""
    assert name not in OPS, name
    OPS[name] = Op(name=name, reference=reference, composed=composed)
    return OPS[name]


def transformed() -> bool:
    """Whether a transform of torch.func, or forward-mode differentiation, is going on."""
    return _has_transforms() or forward_ad._current_level >= 0


def run(op: Op, *args: Any) -> Any:
    """Run an operation on the first backend of the device's order that supports the arguments.

    Raises RuntimeError when a backend is forced and cannot run.
    """
    function = _chosen(op, args)
    if (_has_transforms() or forward_ad._current_level >= 0) and not (op.composed and function is op.reference):
        return transforms.run(op.name, function, args)
    return function(*(_savable(args) if function is op.reference else args))


def _savable(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments that a reference's own autograd may keep; where nothing is differentiated they are left as they are."""
    if not torch.is_grad_enabled() or not any(isinstance(x, Tensor) and x.requires_grad for x in args):
        return args
    return tuple(savable(x) if isinstance(x, Tensor) else x for x in args)


def _chosen(op: Op, args: tuple[Any, ...]) -> Callable[..., Any]:
    if _forced is None:
        for candidate in kernels.candidates(op.name, args[0].device.type):
            if candidate.unsupported(*args) is None:
                return candidate.function
        return op.reference
    if _forced == kernels.REFERENCE:
        return op.reference
    found = kernels.implementation(op.name, _forced)
    why_not = _why_not(op.name, _forced) if found is None else found.unsupported(*args)
    if found is None or why_not is not None:
        raise RuntimeError(f"{op.name}: the backend {_forced!r} is forced and cannot run: {why_not}")
    return found.function


def _why_not(op: str, backend: str) -> str | None:
    missing = kernels.why_missing(backend)
    if missing is None and backend != kernels.REFERENCE and kernels.implementation(op, backend) is None:
        return f"{backend!r} does not implement it"
    return missing


class _Restore:
    """Puts a setting back when used as a context manager; otherwise the setting stays."""

    def __init__(self, restore: Callable[[], None]) -> None:
        self._restore = restore

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()


def forced() -> str | None:
    """The backend that is forced for every operation, None where each call chooses."""
    return _forced


def check_forced() -> None:
    """Raise what `use_backend` would for the backend that INSTRUCTRL_BACKEND names."""
    if _forced is not None:
        use_backend(_forced)


def use_backend(name: str | None) -> _Restore:
    """Force a backend for every operation of the process: a setter, or a context manager that undoes it.

    name: "reference", "native", "triton" or None (choose per call). An operation that the forced backend cannot run
    raises RuntimeError. The environment variable INSTRUCTRL_BACKEND does the same from outside.

    Raises: ValueError for an unknown name, RuntimeError for a backend that is not here.
    """
    why = None if name is None else kernels.why_missing(name)
    if why is not None:
        raise RuntimeError(f"the backend {name!r} cannot run here: {why}")
    previous = _forced
    _force(name)
    return _Restore(lambda: _force(previous))


def validate(enabled: bool = True) -> _Restore:
    """Check the values of tensors (token ids, packed offsets, uniforms) on accelerators too, at the cost of a
    synchronisation for each call. On the CPU they are always checked. A setter, or a context manager that undoes it.
    """
    previous = _validating
    _set_validating(enabled)
    return _Restore(lambda: _set_validating(previous))


def _force(name: str | None) -> None:
    global _forced
    _forced = name


def _set_validating(enabled: bool) -> None:
    global _validating
    _validating = enabled


def checks_values(device_type: str) -> bool:
    """Whether the values of tensors on this device are read in order to check them."""
    return _validating or device_type == "cpu"


def usability() -> list[Usability]:
    """Every operation with every backend: can it run here, and why not."""
    rows = []
    for op in OPS:
        for backend in kernels.names():
            why_not = _why_not(op, backend)
            rows.append(Usability(op, backend, why_not is None, why_not or ""))
    return rows
