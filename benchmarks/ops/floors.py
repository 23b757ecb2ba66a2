"""The CPU floors: each op beside eager PyTorch and torch.compile of it, interleaved, in one run.

    OMP_NUM_THREADS=2 python -m benchmarks.ops.floors [--out FILE.json] [--rounds 9] [--only NAME]

Every row checks its results before it is timed. A round runs each provider in turn, so that what else the machine does
falls on all of them; figures are medians over rounds with the middle half of the rounds in brackets, and
ratios are medians of the rounds' own ratios. The limits (read bandwidth, rate of matrix products) are measured in the
same run. Extra memory is the peak of a call in a process of its own, over what that held with the inputs alone.
"""

import os
import statistics
import sys
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.core import checks, limits
from benchmarks.core.memory import extra_bytes, in_process
from benchmarks.core.tables import command, markdown, median_ratio, spread, write_json
from benchmarks.core.timing import CpuMeter, Step, contender, forced, take_turns
from benchmarks.core.workloads import EAGER, Inputs, Provider
from benchmarks.ops.floor_rows import BARE, OURS, ROWS, WITHOUT, Rates, Row, V
from instructrl import kernels


def rates(rounds: int) -> Rates:
    x = torch.randn(2**26)
    # As a language-model head multiplies, with rows of the output as far apart as the linear ops have them.
    a, b, out = torch.randn(512, 256), torch.randn(V, 256).t(), torch.empty(512, 50304)[:, :V]
    meter = CpuMeter()
    return Rates(
        read_bytes_per_s=limits.rate((x.sum, x.nbytes), meter, rounds),
        fresh_bytes_per_s=limits.rate((lambda: torch.empty(2**26).fill_(1.0), x.nbytes), meter, rounds),
        flops_per_s=limits.rate((lambda: torch.mm(a, b, out=out), 2 * 512 * 256 * V), meter, rounds),
    )


def measured(
    name: str,
    providers: dict[str, Provider],
    inputs: Inputs,
    rounds: int,
    compared: bool,
    bare: Step | None = None,
) -> dict[str, list[float]]:
    """Seconds of each provider in each round, once all of them were found to compute the same as eager, or ours."""
    meter, results, contenders = CpuMeter(), {}, {}
    for key, x in providers.items():
        with forced(x.backend):
            results[key] = x.run(inputs)
    if compared:
        others = {key: x for key, x in results.items() if key != WITHOUT}
        checks.require_agreement(name, others, results.get(EAGER, results[OURS]))
    results.clear()
    for key, x in providers.items():
        contenders[key] = contender(lambda run=x.run: run(inputs), meter, x.backend)
    if bare is not None:
        contenders[BARE] = contender(bare, meter)
    return {key: [wall for wall, _ in x] for key, x in take_turns(contenders, meter, rounds).items()}


def measure(row: Row, rounds: int) -> dict[str, list[float]]:
    inputs = row.inputs()
    bare = None if row.bare is None else row.bare(inputs)
    return measured(row.name, row.providers(), inputs, rounds, row.compared, bare)


def extra(name: str, provider: str) -> int:
    """Memory of a provider's first call in this process."""
    row = next(row for row in ROWS if row.name == name)
    inputs, x = row.inputs(), row.providers()[provider]
    with forced(x.backend):
        return extra_bytes(lambda: x.run(inputs))


def report(row: Row, times: dict[str, list[float]], found: Rates) -> dict[str, Any]:
    """Print a row; returns it for the file."""
    shown = {name: f"{spread([1e3 * x for x in values])} ms" for name, values in times.items()}
    print(f"\n{row.name}\n  ours            {shown[OURS]}")
    ratios = {name: median_ratio(times[name], times[OURS]) for name in row.floors}
    for name, ratio in ratios.items():
        verdict = "reached" if ratio >= row.floors[name] else "MISSED"
        print(f"  {name:<15} {shown[name]}: {ratio:.2f}x, floor {row.floors[name]:g}x {verdict}")
    result: dict[str, Any] = {"name": row.name, "seconds": times, "ratios": ratios, "floors": row.floors}
    limit = row.limit(found)
    if limit is not None:
        result["share_of_limit"] = share = limit[0] / statistics.median(times[OURS])
        print(f"  limit           {1e3 * limit[0]:.3g} ms ({limit[1]}): ours reaches {100 * share:.0f}% of it")
    if BARE in times:
        result["share_of_limit"] = share = median_ratio(times[BARE], times[OURS])
        print(f"  limit           {shown[BARE]} (its matrix products alone): {100 * share:.0f}% of ours")
    if row.memory:
        ours, theirs = (in_process(extra, row.name, provider) for provider in (OURS, row.memory))
        result["extra_bytes"] = {OURS: ours, row.memory: theirs}
        less = f"{ours / theirs:.3f} of {row.memory}'s {theirs / 1e6:.0f} MB"
        print(f"  extra memory    {ours / 1e6:.0f} MB, {less}")
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a line an op, ratios of times against each of those it was measured beside."""
    lines = []
    for row in results:
        share = f"{100 * row['share_of_limit']:.0f}%" if "share_of_limit" in row else ""
        head = [row["name"], share, " / ".join(f"{x / 1e6:.0f} MB" for x in row.get("extra_bytes", {}).values())]
        for provider, ratio in row["ratios"].items():
            lines.append([head[0], provider, f"{ratio:.2f}", f"{row['floors'][provider]:g}", *head[1:]])
            head = ["", "", ""]
    return markdown(("op, shape", "against", "times as fast", "asked for", "of the limit", "extra memory"), lines)


def main() -> int:
    """Print the table. Exit code 1 where a floor is missed."""
    arguments = command(__doc__, rounds=9, only="rows").parse_args()
    if kernels.why_missing("native"):
        print(f"floors: {kernels.why_missing('native')}", file=sys.stderr)
        return 2
    found = rates(arguments.rounds)
    tunables = os.environ.get("GLIBC_TUNABLES", "default allocator")
    print(f"{kernels.about('native')}\n{torch.get_num_threads()} threads, {tunables}")
    rate = f"read {found.read_bytes_per_s / 1e9:.1f} GB/s, fresh memory {found.fresh_bytes_per_s / 1e9:.1f} GB/s"
    print(f"{rate}, matrix products {found.flops_per_s / 1e9:.0f} GFLOP/s")
    results = []
    for row in ROWS:
        if arguments.only in row.name:
            results.append(report(row, measure(row, arguments.rounds), found))
            torch.compiler.reset()
    if arguments.out:
        head = {"about": kernels.about("native"), "threads": torch.get_num_threads(), "rates": asdict(found)}
        write_json(arguments.out, {**head, "allocator": tunables, "rows": results})
        arguments.out.with_suffix(".md").write_text(table(results), encoding="utf-8")
    missed = [row for row in results if any(row["ratios"][p] < f for p, f in row["floors"].items())]
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
