"""How the time and the memory of the ops grow along each axis, and how large a shape fits.

    OMP_NUM_THREADS=2 python -m benchmarks.scaling.growth [--out FILE.json] [--rounds 3] [--only NAME]
        [--parts time memory few largest] [--gib 4] [--patience 20]

With --out the tables go beside the file as Markdown, and times and memory as a plot on log axes.

time, memory: forward and backward on the fastest backend that is here. Slopes are those of log time, or log memory,
over log size, fitted to the larger half of the sizes: 1 is linear. Sizes are visited in turn, a round at a time.
Memory is the peak of a process of its own over that of one that only makes the inputs.
few: few rows that are long, beside eager PyTorch, which is timed in turn, and beside many rows.
largest: the largest size, of those with seven significant bits, whose process, all that is in it counted, stays within
--gib; it ran, and the next one ran and was over it. No size is run that would take longer than --patience seconds.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.core.memory import NOISE_BYTES, in_process
from benchmarks.core.tables import command, markdown, write_json
from benchmarks.core.timing import cpu_seconds
from benchmarks.scaling.largest import extra_bytes, largest_of
from benchmarks.scaling.rows import AXES, EAGER, FEW_ROWS, LARGEST, OURS, Axis, step_of
from instructrl import kernels

PARTS = ("time", "memory", "few", "largest")


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Of log value over log size, by least squares over the larger half."""
    half = len(sizes) // 2
    return fitted(sizes[half:], values[half:])


def fitted(sizes: Sequence[int], values: Sequence[float]) -> float:
    return statistics.linear_regression([math.log(x) for x in sizes], [math.log(y) for y in values]).slope


def memory_slope(sizes: Sequence[int], extra: Sequence[int]) -> float | None:
    """As `slope`, without the sizes whose memory is lost in the noise; None where fewer than three are left."""
    half = len(sizes) // 2
    seen = [(x, y) for x, y in zip(sizes[half:], extra[half:], strict=True) if y >= NOISE_BYTES]
    return fitted(*zip(*seen, strict=True)) if len(seen) >= 3 else None


def medians(steps: dict[str, Any], rounds: int) -> list[float]:
    return [statistics.median(found) for found in cpu_seconds(steps, rounds).values()]


def measure_axis(index: int, axis: Axis, parts: Sequence[str], rounds: int) -> dict[str, Any]:
    row: dict[str, Any] = {"op": axis.op, "axis": axis.axis, "sizes": axis.sizes}
    row |= {"expected_time_slope": axis.expected, "expected_memory_slope": axis.memory}
    if "memory" in parts:
        extra = [in_process(extra_bytes, index, size) for size in axis.sizes]
        row |= {"extra_bytes": extra, "memory_slope": memory_slope(axis.sizes, extra)}
    if "time" in parts:
        times = medians({str(size): axis.make(size) for size in axis.sizes}, rounds)
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
    row = LARGEST[index]
    found = {name: asdict(largest_of(index, name, limit_bytes, patience_seconds)) for name in (OURS, EAGER)}
    return {"op": row.op, "unit": row.axis, "limit_bytes": limit_bytes, **found}


def growth_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line an axis, expected slopes in brackets; what was not measured stays empty."""
    lines = []
    for row in rows:
        times = f"{row['time_slope']:.2f} ({row['expected_time_slope']})" if "seconds" in row else ""
        memory = extra = ""
        if "extra_bytes" in row:
            found = row["memory_slope"]
            memory = "not fitted" if found is None else f"{found:.2f} ({row['expected_memory_slope']})"
            most = max(row["extra_bytes"])
            extra = f"below {NOISE_BYTES / 1e6:.1f} MB" if most < NOISE_BYTES else f"{most / 1e6:.1f} MB"
        lines.append([row["op"], row["axis"], f"{row['sizes'][0]} to {row['sizes'][-1]}", times, memory, extra])
    columns = ("op", "along", "sizes", "slope of time", "slope of memory", "extra memory at most")
    return markdown(columns, lines)


def few_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a shape."""
    lines = []
    for row in rows:
        num_rows, length = row["shape"]
        each, ratio = 1e9 * row["seconds"] / (num_rows * length), row["eager"] / row["seconds"]
        shape = f"{num_rows} x {row['length']} = {length}"
        lines.append([row["op"], shape, f"{1e3 * row['seconds']:.3g}", f"{each:.3g}", f"{ratio:.2f}"])
    return markdown(("op", "shape", "ms", "ns per element", "times as fast as eager"), lines)


def size_text(found: dict[str, Any]) -> str:
    """The size, and what is known of larger ones."""
    gib = found["run"]["peak_bytes"] / 2**30
    if found["too_large"] is None:
        return f"at least {found['size']} ({gib:.3f} GiB)"
    return f"{found['size']} ({gib:.3f} GiB; {found['too_large']}: {found['too_large_run']['peak_bytes'] / 2**30:.3f})"


def largest_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line an op. A ratio is a bound where one of the two sizes is."""
    lines = []
    for row in rows:
        ours, eager = row["ours"], row["eager"]
        ratio = f"{ours['size'] / eager['size']:.1f}"
        if eager["too_large"] is None:
            # Of a size that may be larger too there is no bound.
            ratio = "" if ours["too_large"] is None else f"at most {ratio}"
        elif ours["too_large"] is None:
            ratio = f"at least {ratio}"
        limit = f"{row['limit_bytes'] / 2**30:g} GiB"
        lines.append([row["op"], row["unit"], limit, size_text(ours), size_text(eager), ratio])
    return markdown(("op", "counted in", "limit", "ours", "eager", "times as many"), lines)


def plot(rows: list[dict[str, Any]]) -> Figure:
    """Panels of time over panels of memory, a column an op, a line an axis.

    Memory below the noise, 0 included, is drawn at the noise.
    """
    ops = list(dict.fromkeys(row["op"] for row in rows))
    kinds = [kind for kind in (("seconds", 1e3, "ms"), ("extra_bytes", 1e-6, "extra MB")) if kind[0] in rows[0]]
    figure = Figure(figsize=(3.2 * len(ops), 3.4 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), len(ops), squeeze=False)
    for line, (key, scale, unit) in zip(panels, kinds, strict=True):
        for panel, op in zip(line, ops, strict=True):
            for row in (row for row in rows if row["op"] == op):
                found = row["time_slope" if key == "seconds" else "memory_slope"]
                label = f"{row['axis']}: " + ("not fitted" if found is None else f"slope {found:.2f}")
                least = 0 if key == "seconds" else NOISE_BYTES
                drawn = [scale * max(y, least) for y in row[key]]
                panel.plot(row["sizes"], drawn, marker="o", markersize=3, label=label)
            panel.set(title=op, xlabel="size", ylabel=unit, xscale="log", yscale="log")
            panel.legend(fontsize=6, frameon=False)
            panel.grid(alpha=0.3)
    return figure


def write(found: dict[str, Any], path: Path) -> None:
    """The figures, their tables and their plot, of the parts that were measured."""
    write_json(path, found)
    tables = (("axes", growth_table), ("few_rows", few_table), ("largest", largest_table))
    texts = [table(found[name]) for name, table in tables if found[name]]
    path.with_suffix(".md").write_text("\n".join(texts), encoding="utf-8")
    if found["axes"]:
        plot(found["axes"]).savefig(path.with_suffix(".svg"))


def last_line(table: str) -> str:
    return table.splitlines()[-1]


def main() -> None:
    arguments = command(__doc__, rounds=3, only="", out=Path, parts=[*PARTS], gib=4.0, patience=20.0)
    parts, only = arguments.parts, arguments.only
    found: dict[str, Any] = {"about": kernels.about("native"), "threads": torch.get_num_threads()}
    found |= {"torch": torch.__version__, "rounds": arguments.rounds, "axes": [], "few_rows": [], "largest": []}
    for index, axis in enumerate(AXES):
        if only in axis.op and ("time" in parts or "memory" in parts):
            found["axes"].append(measure_axis(index, axis, parts, arguments.rounds))
            print(last_line(growth_table(found["axes"])), flush=True)
    for few in FEW_ROWS:
        if only in few.op and "few" in parts:
            rows = measure_few(few, arguments.rounds)
            found["few_rows"] += rows
            print(few_table(rows), end="", flush=True)
    for index, row in enumerate(LARGEST):
        if only in row.op and "largest" in parts:
            found["largest"].append(measure_largest(index, int(arguments.gib * 2**30), arguments.patience))
            print(last_line(largest_table(found["largest"])), flush=True)
    if arguments.out:
        write(found, arguments.out)


if __name__ == "__main__":
    main()
