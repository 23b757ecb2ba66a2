"""`instructrl doctor`: what this machine can run."""

import importlib
import importlib.metadata
import platform
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from instructrl import kernels, threads
from instructrl.commands.settings import DoctorCommand
from instructrl.evaluation.results import versions
from instructrl.ops import dispatch, selftest


def main(config: DoctorCommand) -> int:
    """Carry out `instructrl doctor`. Returns the exit code: 1 where a backend that is here computes wrongly, or where
    something of a host is not as its adapter was tried."""
    if config.host:
        return _host(config.host)
    rows = dispatch.usability()
    console = Console(highlight=False)
    console.print(f"{platform.system()} {platform.machine()}")
    console.print("  ".join(f"{name} {version}" for name, version in versions().items()))
    console.print(threads.described(), soft_wrap=True)
    console.print(_adapters(), markup=False, soft_wrap=True)
    console.print()
    console.print(_table(rows))
    console.print()
    reasons = dict.fromkeys((row.backend, row.why_not) for row in rows if not row.usable)
    for backend, why_not in reasons:
        console.print(f"{backend}: {why_not}", markup=False)
    if dispatch.forced() is not None:
        console.print(f"forced for every op: {dispatch.forced()}", markup=False)
    usable = dict.fromkeys(row.backend for row in rows if row.usable)
    for backend in usable:
        if kernels.about(backend):
            console.print(f"{backend}: {kernels.about(backend)}", markup=False)
    findings = [finding for backend in usable for finding in selftest.self_test(backend)]
    for finding in findings:
        console.print(_line(finding), markup=False)
    return 1 if any(finding.error for finding in findings) else 0


def _adapters() -> str:
    try:
        found = f"peft {importlib.metadata.version('peft')}"
    except importlib.metadata.PackageNotFoundError:
        return "adapters: no peft (pip install instructrl[adapters])"
    return f"adapters: {found}; their base lies whole on the device of each process, with passes.spread fsdp too"


def _host(name: str) -> int:
    report = importlib.import_module(f"instructrl.integrations.{name}").ADAPTER.examine()
    print(report)
    return 1 if report.problems else 0


def _table(rows: Sequence[dispatch.Usability]) -> Table:
    """One row an op, one column a backend, in the order in which they are tried."""
    table = Table("op", *kernels.names(), box=None, pad_edge=False)
    usable = {(row.op, row.backend): row.usable for row in rows}
    for op in dict.fromkeys(row.op for row in rows):
        table.add_row(op, *("yes" if usable[op, backend] else "no" for backend in kernels.names()))
    return table


def _line(finding: selftest.Finding) -> str:
    ops = "op" if len(finding.ops) == 1 else "ops"
    result = finding.error or f"{len(finding.ops)} {ops} right, forward and backward"
    return f"self-test, {finding.backend} on {finding.device}: {result} ({1000 * finding.seconds:.0f} ms)"
