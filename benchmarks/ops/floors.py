"""The CPU floors: each op beside eager PyTorch and torch.compile of it, interleaved, in one run.

    OMP_NUM_THREADS=2 python -m benchmarks.ops.floors [--out FILE.json] [--rounds 9] [--only NAME]

Every row checks its results before it is timed. A round runs each provider in turn, so that what else the machine does
falls on all of them; figures are medians over rounds with the middle half of the rounds in brackets, and
ratios are medians of the rounds' own ratios. The limits (read bandwidth, rate of matrix products) are measured in the
same run. Peak memory is the high-water mark of a process of its own, over that of one that only makes the inputs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.ops.floor_rows import BARE, ROWS, Rates, Row, V
from instructrl import kernels


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def rates(rounds: int) -> Rates:
    x = torch.randn(2**26)
    # As a language-model head multiplies, with rows of the output as far apart as the linear ops have them.
    a, b = torch.randn(512, 256), torch.randn(V, 256).t()
    read = statistics.median(seconds(x.sum) for _ in range(rounds))
    fresh = statistics.median(seconds(lambda: torch.empty(2**26).fill_(1.0)) for _ in range(rounds))
    out = torch.empty(512, 50304)[:, :V]
    product = statistics.median(seconds(lambda: torch.mm(a, b, out=out)) for _ in range(rounds))
    return Rates(
        read_bytes_per_s=x.nbytes / read,
        fresh_bytes_per_s=x.nbytes / fresh,
        flops_per_s=2 * 512 * 256 * V / product,
    )


def check(row: Row, results: dict[str, list[Tensor]]) -> None:
    """Every provider computes the same thing; float32 sums in other orders agree to a few parts in ten thousand."""
    for provider, tensors in results.items():
        for found, expected in zip(tensors, results["eager" if "eager" in results else "ours"], strict=True):
            error = (found.double() - expected.double()).abs().max()
            if row.compared and not error <= 2e-4 * expected.abs().max():
                raise RuntimeError(f"{row.name}: {provider} is off by {float(error)}")


def measure(row: Row, rounds: int) -> dict[str, list[float]]:
    """Seconds of each provider in each round, by provider. Fast steps are repeated within a round."""
    steps = row.make()
    check(row, {name: step() for name, step in steps.items()})
    if row.bare is not None:
        steps[BARE] = row.bare()
    for step in steps.values():
        step()
    repeats = {name: max(1, min(1000, int(0.02 / seconds(step)))) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            # Once untimed: in a training loop an op follows itself, not another that has freed its gigabytes.
            step()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                step()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return times


def high_water_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def peak(name: str, provider: str) -> int:
    """Peak memory of one provider in a process of its own; of no provider: of the inputs alone."""
    command = [sys.executable, "-m", "benchmarks.ops.floors", "--peak", name, provider]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(name: str, provider: str) -> None:
    steps = next(row for row in ROWS if row.name == name).make()
    if provider:
        steps[provider]()
    print(high_water_bytes())


def ms(times: list[float]) -> str:
    low, middle, high = statistics.quantiles(times, n=4)
    return f"{1e3 * middle:.3g} [{1e3 * low:.3g}, {1e3 * high:.3g}]"


def report(row: Row, times: dict[str, list[float]], found: Rates) -> dict[str, Any]:
    """Print a row; returns it for the file."""
    print(f"\n{row.name}")
    print(f"  ours            {ms(times['ours'])} ms")
    ratios = {}
    for provider in [name for name in times if name not in ("ours", BARE)]:
        per_round = [a / b for a, b in zip(times[provider], times["ours"], strict=True)]
        ratios[provider] = statistics.median(per_round)
        floor = row.floors[provider]
        verdict = "reached" if ratios[provider] >= floor else "MISSED"
        text = f"{ratios[provider]:.2f}x, floor {floor:g}x {verdict}"
        print(f"  {provider:<15} {ms(times[provider])} ms: {text}")
    result: dict[str, Any] = {"name": row.name, "seconds": times, "ratios": ratios, "floors": row.floors}
    if row.limit is not None:
        limit, text = row.limit(found)
        share = limit / statistics.median(times["ours"])
        print(f"  limit           {1e3 * limit:.3g} ms ({text}): ours reaches {100 * share:.0f}% of it")
        result["share_of_limit"] = share
    if BARE in times:
        share = statistics.median(a / b for a, b in zip(times[BARE], times["ours"], strict=True))
        print(f"  limit           {ms(times[BARE])} ms (its matrix products alone): {100 * share:.0f}% of ours")
        result["share_of_limit"] = share
    if row.memory:
        alone, ours, theirs = (peak(row.name, provider) for provider in ("", "ours", row.memory))
        result["extra_bytes"] = {"ours": ours - alone, row.memory: theirs - alone}
        less = f"{(ours - alone) / (theirs - alone):.3f} of {row.memory}'s"
        print(f"  extra memory    {(ours - alone) / 1e6:.0f} MB, {less} {(theirs - alone) / 1e6:.0f} MB")
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a line an op, ratios of times against each of those it was measured beside."""
    lines = ["| op, shape | against | times as fast | asked for | of the limit | extra memory |", "| --- " * 6 + "|"]
    for row in results:
        share = f"{100 * row['share_of_limit']:.0f}%" if "share_of_limit" in row else ""
        extra = " / ".join(f"{x / 1e6:.0f} MB" for x in row.get("extra_bytes", {}).values())
        for provider, ratio in row["ratios"].items():
            floor = f"{row['floors'][provider]:g}"
            lines.append(f"| {row['name']} | {provider} | {ratio:.2f} | {floor} | {share} | {extra} |")
            row = {**row, "name": ""}
            share = extra = ""
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the table. Exit code 1 where a floor is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--peak", nargs=2, metavar=("NAME", "PROVIDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if kernels.why_missing("native"):
        print(f"floors: {kernels.why_missing('native')}", file=sys.stderr)
        return 2
    if arguments.peak:
        print_peak(*arguments.peak)
        return 0
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
        text = json.dumps({**head, "allocator": tunables, "rows": results}) + "\n"
        arguments.out.write_text(text, encoding="utf-8")
        arguments.out.with_suffix(".md").write_text(table(results), encoding="utf-8")
    missed = [row for row in results if any(row["ratios"][p] < f for p, f in row["floors"].items())]
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
