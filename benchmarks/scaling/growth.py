"""How the time and the memory of the ops grow along each axis, and how large a shape fits.

    OMP_NUM_THREADS=2 python -m benchmarks.scaling.growth [--out FILE.json] [--rounds 3] [--only NAME]
        [--parts time memory few largest] [--gib 4] [--patience 20]

time, memory: forward and backward on the fastest backend that is here, sizes in turns. Slopes are those of log time, or
log memory, over log size, fitted to the larger half of the sizes: 1 is linear. Memory is that of a process of its own.
few: few rows that are long, beside eager PyTorch, which is timed in turn, and beside many rows.
largest: the largest size, of those with seven significant bits, whose process, all that is in it counted, stays within
--gib; it ran, and the next one ran and was over it. No size is run that would take longer than --patience seconds.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.core.memory import NOISE_BYTES, in_process
from benchmarks.core.tables import command, markdown, write_json
from benchmarks.core.timing import Step, cpu_seconds
from benchmarks.scaling.largest import extra_bytes, largest_of
from benchmarks.scaling.rows import AXES, EAGER, FEW_ROWS, LARGEST, OURS, Axis, step_of
from instructrl import kernels

Rows = Sequence[Mapping[str, Any]]


def slope(sizes: Sequence[int], values: Sequence[float], least: float = 0.0) -> float | None:
    """Of log value over log size, by least squares over the larger half, without values below the least; None where
    fewer than three are left."""
    half = len(sizes) // 2
    seen = [(math.log(x), math.log(y)) for x, y in zip(sizes[half:], values[half:], strict=True) if y >= least]
    return statistics.linear_regression(*zip(*seen, strict=True)).slope if len(seen) >= 3 else None


def medians(steps: Mapping[str, Step], rounds: int) -> list[float]:
    return [statistics.median(found) for found in cpu_seconds(steps, rounds).values()]


def measure_axis(index: int, axis: Axis, parts: Sequence[str], rounds: int) -> dict[str, Any]:
    row: dict[str, Any] = {"op": axis.op, "axis": axis.axis, "sizes": axis.sizes}
    row |= {"expected_time_slope": axis.expected, "expected_memory_slope": axis.memory}
    if "memory" in parts:
        extra = [in_process(extra_bytes, index, size) for size in axis.sizes]
        row |= {"extra_bytes": extra, "memory_slope": slope(axis.sizes, extra, NOISE_BYTES)}
    if "time" in parts:
        times = medians({str(size): step_of(axis.work, axis.shape(size)) for size in axis.sizes}, rounds)
        row |= {"seconds": times, "time_slope": slope(axis.sizes, times)}
    return row


def measure_few(few: Axis, rounds: int) -> list[dict[str, Any]]:
    """A row a shape."""
    found = []
    for shape in few.sizes:
        ours, eager = medians({name: step_of(few.work, shape, name) for name in (OURS, EAGER)}, rounds)
        found.append({"op": few.op, "length": few.axis, "shape": shape, "seconds": ours, "eager": eager})
    return found


def measure_largest(index: int, limit_bytes: int, patience_seconds: float) -> dict[str, Any]:
    row: dict[str, Any] = {"op": LARGEST[index].op, "unit": LARGEST[index].axis, "limit_bytes": limit_bytes}
    return row | {name: asdict(largest_of(index, name, limit_bytes, patience_seconds)) for name in (OURS, EAGER)}


def growth_table(rows: Rows) -> str:
    """Markdown: a line an axis, expected slopes in brackets; what was not measured stays empty."""

    def fitted(row: Mapping[str, Any], kind: str) -> str:
        found = row.get(f"{kind}_slope", "")
        return "not fitted" if found is None else found and f"{found:.2f} ({row[f'expected_{kind}_slope']})"

    def extra(row: Mapping[str, Any]) -> str:
        most = max(row.get("extra_bytes", [-1]))
        return "" if most < 0 else f"below {NOISE_BYTES / 1e6:.1f} MB" if most < NOISE_BYTES else f"{most / 1e6:.1f} MB"

    columns = ("op", "along", "sizes", "slope of time", "slope of memory", "extra memory at most")
    heads = ([x["op"], x["axis"], f"{x['sizes'][0]} to {x['sizes'][-1]}"] for x in rows)
    found = ([fitted(x, "time"), fitted(x, "memory"), extra(x)] for x in rows)
    return markdown(columns, (a + b for a, b in zip(heads, found, strict=True)))


def few_table(rows: Rows) -> str:
    """Markdown: a line a shape."""
    lines = []
    for x in rows:
        (num_rows, length), seconds = x["shape"], x["seconds"]
        figures = f"{1e3 * seconds:.3g}", f"{1e9 * seconds / (num_rows * length):.3g}", f"{x['eager'] / seconds:.2f}"
        lines.append([x["op"], f"{num_rows} x {x['length']} = {length}", *figures])
    return markdown(("op", "shape", "ms", "ns per element", "times as fast as eager"), lines)


def size_text(found: Mapping[str, Any]) -> str:
    """The size, and what is known of larger ones."""
    gib = found["run"]["peak_bytes"] / 2**30
    if found["too_large"] is None:
        return f"at least {found['size']} ({gib:.3f} GiB)"
    return f"{found['size']} ({gib:.3f} GiB; {found['too_large']}: {found['too_large_run']['peak_bytes'] / 2**30:.3f})"


# Whether ours, and whether eager's, is a bound -> what the ratio of the two is.
BOUNDS = {(False, False): "{:.1f}", (True, False): "at least {:.1f}", (False, True): "at most {:.1f}", (True, True): ""}


def largest_table(rows: Rows) -> str:
    """Markdown: a line an op. A ratio is a bound where one of the two sizes is."""
    lines = []
    for row in rows:
        pair = row["ours"], row["eager"]
        ratio = BOUNDS[pair[0]["too_large"] is None, pair[1]["too_large"] is None]
        limit, ratio = f"{row['limit_bytes'] / 2**30:g} GiB", ratio.format(pair[0]["size"] / pair[1]["size"])
        lines.append([row["op"], row["unit"], limit, *map(size_text, pair), ratio])
    return markdown(("op", "counted in", "limit", "ours", "eager", "times as many"), lines)


TABLES = {"axes": growth_table, "few_rows": few_table, "largest": largest_table}


def main() -> None:
    parts = ["time", "memory", "few", "largest"]
    arguments = command(__doc__, rounds=3, only="", out=Path, parts=parts, gib=4.0, patience=20.0)
    parts, only, rounds = arguments.parts, arguments.only, arguments.rounds
    head = {"about": kernels.about("native"), "threads": torch.get_num_threads(), "torch": torch.__version__}
    found: dict[str, Any] = {**head, "rounds": rounds, "axes": [], "few_rows": [], "largest": []}

    def add(name: str, rows: list[dict[str, Any]]) -> None:
        found[name] += rows
        print(TABLES[name](rows), flush=True)

    for index, axis in enumerate(AXES):
        if only in axis.op and {"time", "memory"} & {*parts}:
            add("axes", [measure_axis(index, axis, parts, rounds)])
    for few in FEW_ROWS:
        if only in few.op and "few" in parts:
            add("few_rows", measure_few(few, rounds))
    for index, row in enumerate(LARGEST):
        if only in row.op and "largest" in parts:
            add("largest", [measure_largest(index, int(arguments.gib * 2**30), arguments.patience)])
    if arguments.out:
        write_json(arguments.out, found)
        tables = [table(found[name]) for name, table in TABLES.items() if found[name]]
        arguments.out.with_suffix(".md").write_text("\n".join(tables), encoding="utf-8")


if __name__ == "__main__":
    main()
