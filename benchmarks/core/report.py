"""Rows measured one after the other, written as they come: a table of what is asked for, and one of all figures."""

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.core.machine import folder_name
from benchmarks.core.memory import in_process
from benchmarks.core.rows import COMPILE, EAGER, NATIVE, WITHOUT, Row
from benchmarks.core.runner import Attempt, extra_bytes, measure
from benchmarks.core.tables import markdown, write_json
from benchmarks.core.timing import meter_here
from instructrl import kernels

COLUMNS = ("row", "provider", "ms", "device ms", "by", "times as fast as eager", "as compile", "as without", "share",
           "extra MiB", "results MiB", "error")  # fmt: skip
NOT_HERE = ("ImportError", "ModuleNotFoundError")


def machine_name() -> str:
    """A folder's name for this machine."""
    cpu = f"{platform.machine()} {torch.get_num_threads()} threads"
    return folder_name(torch.cuda.get_device_name() if torch.cuda.is_available() else cpu)


def head() -> dict[str, Any]:
    """What the numbers are taken on."""
    return {"machine": machine_name(), "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__,
            "native": kernels.about(NATIVE), "threads": torch.get_num_threads(),
            "allocator": os.environ.get("GLIBC_TUNABLES", "default")}  # fmt: skip


def shown(value: float | None, form: str = ".4g") -> str:
    return "" if value is None else format(value, form)


def figures_line(x: Mapping[str, Any]) -> list[str]:
    """Of a provider."""
    if "left_out" in x:
        return [f"left out: {x['left_out']}", *[""] * 8, shown(x.get("error"), ".2g")]
    wall, device = (
        f"{middle:.3g} [{low:.3g}, {high:.3g}]"
        for low, middle, high in ([us / 1e3 for us in x[f"{kind}_quartiles_us"]] for kind in ("wall", "device"))
    )
    by = x["device_time_by"]
    ratios = [shown(x["times_as_fast"].get(name), ".2f") for name in (EAGER, COMPILE, WITHOUT)]
    share = f"{x['share_pct']:.0f}%" if "share_pct" in x else ""
    memory = [shown(x.get(name), ".4g") for name in ("extra_mib", "result_mib")]
    return [wall, *(("", "") if by == "wall" else (device, by)), *ratios, share, *memory, shown(x.get("error"), ".2g")]


def figures_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """A line a provider, without those that are not installed."""
    lines = []
    for row in rows:
        here = {name: x for name, x in row["providers"].items() if not x.get("left_out", "").startswith(NOT_HERE)}
        lines += [["", name, *figures_line(x)] for name, x in here.items()] or [["", *[""] * (len(COLUMNS) - 1)]]
        lines[-max(1, len(here))][0] = row["row"]
    return markdown(COLUMNS, lines)


def targets_table(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = [[row["row"], x["target"], x["backend"], shown(x["found"]), x["verdict"]]
             for row in rows for x in row["targets"]]  # fmt: skip
    return markdown(("row", "target", "backend", "found", ""), lines) if lines else ""


def report(results: Mapping[str, Any]) -> str:
    """Markdown: the machine, the targets if there are any, then everybody's figures."""
    rates = {name: x for row in results["rows"] for name, x in row.get("per_second", {}).items()}
    speeds = [f"{name} {x / 1e9:.4g} G{'FLOP' if 'product' in name else 'B'}/s" for name, x in rates.items()]
    line = ", ".join([*(f"{name} {x}" for name, x in results.items() if name != "rows"), *speeds])
    tables = targets_table(results["rows"]), figures_table(results["rows"])
    return "\n".join(filter(None, [f"{line}\n", *tables]))


def missed(rows: Iterable[Mapping[str, Any]], right: str = "met") -> list[str]:
    """What is asked for of `native`, and not found."""
    return [f"{row['row']}: {x['target']}: {shown(x['found'])} {x['verdict']}" for row in rows for x in row["targets"]
            if x["backend"] == NATIVE and x["verdict"] != right]  # fmt: skip


def write(results: Mapping[str, Any], path: Path) -> None:
    """JSON, and the tables beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, results)
    path.with_suffix(".md").write_text(report(results), encoding="utf-8")


def run(
    table: str, rows: Sequence[Row], arguments: argparse.Namespace, memory: Callable[[str], bool] = lambda name: False,
    written: Callable[[Mapping[str, Any], Path], object] = write,
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows whose name contains --only, each printed and written to --out when it is measured, so that a run that is
    broken off has what it measured. table: the module whose ROWS they are. memory: of which providers the extra memory
    of a call is taken, in processes of their own."""
    meter, results = meter_here(), {**head(), "rows": []}
    for row in rows:
        if arguments.only not in row.name:
            continue
        found = measure(row, meter, Attempt(rounds=arguments.rounds))
        torch.compiler.reset()
        for name, x in found["providers"].items():
            if "rounds" in x and "extra_mib" not in x and memory(name):
                x["extra_mib"] = in_process(extra_bytes, table, row.name, name) / 2**20
        results["rows"].append(found)
        print(figures_table([found]), flush=True)
        if arguments.out:
            written(results, arguments.out)
    print("\n".join([report({**results, "rows": []}).split("\n")[0], *missed(results["rows"])]))
    return results["rows"]
