"""Every op on every backend that can run it here, beside eager PyTorch, torch.compile of it, and peers.

    python -m benchmarks.ops.bench [--out FILE.json] [--rounds 7] [--only NAME] [--quick]

The rows are the large cases of the op table, forward and backward; how each is measured is said in core/runner.py. The
share is that of the time in which the same rounds copy the bytes of inputs and gradients, or for a linear head multiply
three times. Extra memory is the peak of a second call in a process of its own, over what that held before the call.

Writes benchmarks/results/<machine>/<date>.json or --out, and two tables beside it as Markdown, whole and in short.
--quick: our backends and eager PyTorch alone, without the extra memory and the short table.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.core.peers import PEERS
from benchmarks.core.report import machine_name, run, write
from benchmarks.core.rows import COMPILE, EAGER, Row
from benchmarks.core.tables import RESULTS, command, markdown
from benchmarks.core.workloads import Draw, Inputs, Workload, public
from instructrl import kernels, ops
from instructrl.ops.cases import CASES, Case


def row_of(case: Case) -> Row:
    def make(draw: Draw) -> Inputs:
        given = case.make(torch.float32).items()
        return {name: x.to(draw.generator.device) if isinstance(x, Tensor) else x for name, x in given}

    def limit(x: Inputs) -> dict[str, int]:
        """Linear heads are matrix products, at least three with their gradients; all others move bytes."""
        if "weight" not in x:
            return {"copy": case.bytes_moved(x)}
        return {"product": 6 * x["tokens"].numel() * x["weight"].numel()}

    work = Workload(op=case.op, make=make, call=public(case.op), leaves=case.gradients)
    usable = (row.backend for row in ops.usability() if row.usable and row.op == case.op)
    backends = tuple(name for name in usable if name != kernels.REFERENCE)
    name = f"{case.op} {case.name}"
    return Row(name=name, work=work, backends=backends, peers=PEERS.get(case.op, {}), limit=limit)


ROWS = [row_of(case) for case in CASES if case.large]


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the best backend of each row beside eager, torch.compile and the fastest peer."""
    columns = ("op, shape", "backend", EAGER, COMPILE, "fastest peer", "of the limit", "extra memory, eager's")
    lines = []
    for row in rows:
        found = {name: x for name, x in row["providers"].items() if "rounds" in x}
        own = [name for name in found if name in kernels.BACKENDS]
        if not own:
            continue
        best = min(own, key=lambda name: found[name]["device_us"])
        fast = found[best]["times_as_fast"]
        peer = min((x for x in found if x not in (*own, EAGER, COMPILE)), key=lambda name: fast[name], default=None)
        cells = [row["row"], best, f"{fast[EAGER]:.2f}", f"{fast[COMPILE]:.2f}" if COMPILE in fast else ""]
        cells += ["" if peer is None else f"{fast[peer]:.2f} ({peer})", f"{found[best]['share_pct']:.0f}%"]
        lines.append([*cells, " / ".join(f"{found[name].get('extra_mib', 0):.0f} MiB" for name in (best, EAGER))])
    return markdown(columns, lines)


def write_all(results: Mapping[str, Any], path: Path) -> None:
    write(results, path)
    path.with_name(f"{path.stem}-summary.md").write_text(summary(results["rows"]), encoding="utf-8")


def main() -> None:
    arguments = command(__doc__, rounds=7, only="", out=Path, quick=False)
    arguments.out = arguments.out or RESULTS / machine_name() / f"{time.strftime('%Y-%m-%d')}.json"
    if arguments.quick:
        run(__spec__.name, [replace(row, compile=False, peers={}) for row in ROWS], arguments)
    else:
        run(__spec__.name, ROWS, arguments, memory=lambda name: True, written=write_all)


if __name__ == "__main__":
    main()
