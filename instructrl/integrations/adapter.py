"""An adapter: functions of a host, what stands in for each, and what has to hold before one is replaced.

A function is replaced where the host has it under its name, its signature and its source are ones that were tried, and
a self-check says that ours gives the host's own numbers and gradients on random arguments. Whatever fails is left
alone and named; nothing here changes how the rest is done.
"""

import hashlib
import importlib
import importlib.metadata
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, NamedTuple

import torch

from instructrl.integrations.selfcheck import Examples, Sizes, difference

_CHECK_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_IMPORT_ERRORS = (ImportError, AttributeError, OSError, RuntimeError, ValueError)


class AdapterError(RuntimeError):
    """What `install(strict=True)` could not replace, a line each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """A function of a host, and what stands in for it.

    name: "module:attribute" or "module:Class.attribute". signature, sources: what `facts` says of those that were
    tried. stand_in: from the host's own to ours, which may call it for arguments that ours do not compute.
    examples: random calls to compare the two by. call: how either is called, where that is not `function(*args)`.
    described: which attribute has the signature, for a class that is called by a method ("forward").
    put: how ours gets to its place where the host has an official one, returning how it leaves; None for the name
    itself, and wherever modules of the host have imported it by name.
    named: ours, "module.attribute", where people name it or hand it over to the host, which nothing is put into then.
    device: the kind that the host's own runs on, "" where any does.
    """

    name: str
    signature: str
    sources: tuple[str, ...]
    stand_in: Callable[[Any], Any]
    examples: Examples
    call: Callable[..., Any] = lambda function, *args, **kwargs: function(*args, **kwargs)
    described: str = ""
    put: Callable[[Any], Callable[[], None]] | None = None
    named: str = ""
    device: str = ""
    measured: Sizes = Sizes(batch=4, tokens=128, hidden=256, vocabulary=32000)


class Row(NamedTuple):
    """Of a report. why: it is left alone, in a line; "" where it is, or can be, replaced. foreseen: because the host
    has it for another device, which is no problem. named: as in `Replacement`.
    """

    name: str
    why: str
    foreseen: bool = False
    named: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What of a host is, or can be, replaced. version: found, "" for none. tried: that the adapter was tried with."""

    host: str
    version: str
    tried: tuple[str, ...]
    rows: tuple[Row, ...]
    installed: bool = False

    @property
    def left_alone(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.why)

    @property
    def problems(self) -> tuple[str, ...]:
        """What is not as it was tried, a line each."""
        if not self.version:
            return (f"{self.host}: found no installation",)
        accepted = " or ".join(self.tried)
        unknown = () if self.version in self.tried else (f"{self.host}: found {self.version}, tried is {accepted}",)
        return (*unknown, *(f"{row.name}: {row.why}" for row in self.left_alone if not row.foreseen))

    def __str__(self) -> str:
        replaced = [row.name for row in self.rows if not row.why and not row.named]
        done = "replaced" if self.installed else "can be replaced"
        of = sum(not row.named for row in self.rows)
        count = f"{len(replaced)} of {of} functions {done}" if self.version else "nothing to replace"
        lines = [f"instructrl for {self.host} {self.version}: {count}".replace(" :", ":")]
        lines += [f"  {'replaced' if self.installed else 'to replace':11} {name}" for name in replaced]
        lines += [f"  to name     {row.named} for {row.name}" for row in self.rows if row.named and not row.why]
        foreseen = [f"{row.name}: {row.why}" for row in self.left_alone if row.foreseen]
        return "\n".join([*lines, *(f"  left alone  {each}" for each in (*self.problems, *foreseen))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Of one host.

    host: as people call it, the name of the module here. distribution: as it is installed. package: as it is imported.
    tried: its versions that the adapter was run with. found_version: how its version is found, None where a
    distribution says it.
    """

    host: str
    distribution: str
    package: str
    tried: tuple[str, ...]
    replacements: tuple[Replacement, ...]
    found_version: Callable[[], str] | None = None

    def version(self) -> str:
        """Of the installed host, "" where there is none."""
        if self.found_version is not None:
            return self.found_version()
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return ""

    def examine(self, device: str = "cpu") -> Report:
        """What `install` would replace; nothing is changed."""
        if self.host in _INSTALLED:
            return _INSTALLED[self.host].report
        rows = tuple(_row(each, device) for each in self.replacements) if self.version() else ()
        return Report(host=self.host, version=self.version(), tried=self.tried, rows=rows)

    def install(self, *, strict: bool = False, device: str = "cpu") -> Report:
        """Replace what passes its checks, on a device; the report is printed, once a process, to stderr.

        Where it is installed already nothing happens. strict: raise `AdapterError` where anything is not as it was
        tried, and replace nothing.
        """
        with _LOCK:
            report = self.examine(device)
            if strict and report.problems:
                raise AdapterError("\n".join(report.problems))
            if self.host in _INSTALLED:
                return report
            pairs = zip(self.replacements, report.rows, strict=False)
            passed = [each for each, row in pairs if not row.why and not row.named]
            report = replace(report, installed=True)
            _INSTALLED[self.host] = _Installed(report, [_put(each, self.package) for each in passed])
            print(report, file=sys.stderr)
            return report

    def uninstall(self) -> None:
        """Put back what the host had; where nothing is installed nothing happens."""
        with _LOCK:
            if self.host in _INSTALLED:
                for undo in reversed(_INSTALLED.pop(self.host).undo):
                    undo()


class _Installed(NamedTuple):
    report: Report
    undo: list[Callable[[], None]]


_INSTALLED: dict[str, _Installed] = {}
_LOCK = threading.RLock()
"""A thread that installs while another does would take ours for the host's own. Reentrant, because importing a host may
install into it.
"""


class Facts(NamedTuple):
    """Of a function: its parameters with their defaults, and a digest of its source."""

    signature: str
    source: str


def facts(function: Any, described: str = "") -> Facts:
    """Raises TypeError, ValueError or OSError where there is no signature or no source to read."""
    function = getattr(function, "_torchdynamo_orig_callable", function)
    owner = getattr(function, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
        # `apply` of an autograd function takes what its `forward` takes behind the context.
        function, described = owner, "forward"
    signature = inspect.signature(getattr(function, described) if described else function)
    plain = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    source = inspect.getsource(inspect.unwrap(function))
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    return Facts(str(signature.replace(parameters=plain, return_annotation=signature.empty)), digest)


class _Place(NamedTuple):
    """Where a host has a function, and what it has there: of a class, before it is bound."""

    owner: Any
    attribute: str
    found: Any


def _place(name: str) -> _Place:
    """Raises what importing the module raises, AttributeError where it has no such name."""
    module, _, path = name.partition(":")
    owner = importlib.import_module(module)
    *classes, attribute = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    found = getattr(owner, attribute)
    return _Place(owner, attribute, found if isinstance(owner, ModuleType) else vars(owner).get(attribute, found))


def own_function(name: str) -> Any:
    """What a host has under "module:attribute". Raises what importing raises, AttributeError where there is no such."""
    return _place(name).found


def _row(each: Replacement, device: str) -> Row:
    if each.device and each.device != device.partition(":")[0]:
        return Row(each.name, f"the host has it for {each.device}, checked was on {device}", True, each.named)
    return Row(each.name, _why_not(each, device), named=each.named)


def _why_not(each: Replacement, device: str) -> str:
    try:
        own = own_function(each.name)
    except _IMPORT_ERRORS as error:
        return f"cannot be had here: {_line(error)}"
    try:
        found = facts(own, each.described)
    except (TypeError, ValueError, OSError) as error:
        return f"cannot be read: {_line(error)}"
    if found.signature != each.signature:
        return f"found signature {found.signature}, tried is {each.signature}"
    if found.source not in each.sources:
        return f"its source is not the one that was tried (found digest {found.source})"
    try:
        return difference(own, each.stand_in(own), each.examples, each.call, device)
    except _CHECK_ERRORS as error:
        return f"its self-check stopped with {_line(error)}"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _put(each: Replacement, package: str) -> Callable[[], None]:
    place = _place(each.name)
    ours = each.stand_in(place.found)
    if each.put is not None:
        return each.put(ours)
    if not isinstance(place.owner, ModuleType):
        setattr(place.owner, place.attribute, ours)
        return lambda: setattr(place.owner, place.attribute, place.found)
    _exchange(package, place.found, ours)
    return lambda: _exchange(package, ours, place.found)


def _exchange(package: str, old: Any, new: Any) -> None:
    """In every module of a package that has it by any name."""
    for module, name in list(_holders(package, old)):
        setattr(module, name, new)


def _holders(package: str, wanted: Any) -> Iterator[tuple[ModuleType, str]]:
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and (name == package or name.startswith(f"{package}.")):
            yield from ((module, attribute) for attribute, value in list(vars(module).items()) if value is wanted)
