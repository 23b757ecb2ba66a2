"""Hosts with and without their adapters: each function that is replaced, and the host's own trainers.

python -m benchmarks.end_to_end.hosts [--only trl] [--rounds 15] [--steps 10] [--repeats 3] [--newest] [--out FILE.json]

A host has an environment of its own, made where there is none. Functions take turns in one process, forward and
backward, and memory is the peak of a call in a process of its own. A trainer runs in processes of its own, with and
without in turns. --newest only says what of the newest release of each host is not as it was tried.
"""

import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.core.machine import ROOT
from benchmarks.core.tables import command, markdown, median_ratio, spread, write_json
from benchmarks.end_to_end.host_runs.environments import available, environment
from benchmarks.end_to_end.host_runs.record import largest_gaps, run

FUNCTIONS = ("host", "function", "the same within, roundings", "host's, ms", "ours, ms", "faster by", "smaller by")
SIDES = "own", "ours"
TRAINERS = ("host", "trainer", "losses within", "gradient norms within", "weights within", "faster by", "peak, MiB")
SHOW_TRAINERS = "from benchmarks.end_to_end.host_runs import {host} as x; print('@' + ' '.join(x.TRAINERS))"
EXAMINE = "from instructrl.integrations import {host} as x; print(x.ADAPTER.examine())"


def functions(python: str, host: str, rounds: int) -> dict[str, Any]:
    module = "benchmarks.end_to_end.host_functions"
    return json.loads(_said([python, "-m", module, host, "--memory", "--rounds", str(rounds)]))


def trainers(python: str, host: str, steps: int, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """By trainer: pairs of runs, whose order alternates."""
    found = {}
    for name in _said([python, "-c", SHOW_TRAINERS.format(host=host)]).split():
        found[name] = []
        for repeat in range(repeats):
            sides = SIDES if repeat % 2 else SIDES[::-1]
            runs = {side: run(host, name, adapter=side == "ours", steps=steps, python=python) for side in sides}
            found[name].append(runs)
    return found


def _said(arguments: list[str]) -> str:
    """The line with a mark. Raises RuntimeError with the end of what it said where there is none."""
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    lines = [line[1:] for line in done.stdout.splitlines() if line.startswith("@")]
    if done.returncode or not lines:
        raise RuntimeError(f"{' '.join(arguments)}: ended with {done.returncode}: {done.stderr[-2000:]}")
    return lines[-1]


def function_cells(host: str, row: dict[str, Any]) -> list[str]:
    own, ours = (row["seconds"][whose] for whose in ("own", "ours"))
    extra = row["extra_bytes"]
    # Below a MiB it is noise.
    smaller = f"{extra['own'] / extra['ours']:.1f}" if min(extra.values()) > 2**20 else ""
    times = [spread([1e3 * x for x in seconds]) for seconds in (own, ours)]
    return [host, row["name"], f"{row['roundings']:.1f}", *times, f"{median_ratio(own, ours):.1f}", smaller]


def trainer_cells(host: str, name: str, pairs: list[dict[str, Any]]) -> list[str]:
    gaps = largest_gaps(pairs[0]["ours"], pairs[0]["own"])
    # Without the first step, in which much is made once.
    own, ours = ([statistics.median(pair[side]["seconds"][1:]) for pair in pairs] for side in SIDES)
    peaks = " -> ".join(f"{min(pair[side]['peak_bytes'] for pair in pairs) / 2**20:.0f}" for side in SIDES)
    cells = (f"{gaps[x]:.1e}" for x in ("losses", "gradient_norms", "weights"))
    return [host, name, *cells, spread([a / b for a, b in zip(own, ours, strict=True)]), peaks]


def shown(found: dict[str, Any]) -> str:
    rows = [function_cells(host, row) for host, of in found.items() for row in of["functions"]["rows"]]
    runs = [trainer_cells(host, name, pairs) for host, of in found.items() for name, pairs in of["trainers"].items()]
    versions = ", ".join(f"{host} {of['functions']['version']}" for host, of in found.items())
    problems = "".join(f"- {problem}\n" for of in found.values() for problem in of["functions"]["problems"])
    left = f"\nLeft alone:\n\n{problems}" if problems else ""
    taken = f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    head = f"{versions}; {taken}. In brackets the middle half of the rounds.\n"
    return f"{head}\n{markdown(FUNCTIONS, rows)}\n{markdown(TRAINERS, runs)}{left}"


def main() -> int:
    given = command(__doc__, rounds=15, only="", out=Path, steps=10, repeats=3, newest=False)
    hosts = [host for host in available() if given.only in host]
    if not hosts:
        raise SystemExit(f"--only: found {given.only!r}, accepted is a part of {', '.join(available())}")
    if given.newest:
        moved = [_moved(host) for host in hosts]
        return int(any(moved))
    found = {}
    for host in hosts:
        python = environment(host)
        found[host] = {"functions": functions(python, host, given.rounds)}
        found[host]["trainers"] = trainers(python, host, given.steps, given.repeats)
        print(shown({host: found[host]}), flush=True)
        if given.out:
            write_json(given.out, found)
            given.out.with_suffix(".md").write_text(shown(found), encoding="utf-8")
    return 0


def _moved(host: str) -> bool:
    """Says what of the newest release is not as it was tried."""
    arguments = [environment(host, pinned=False), "-c", EXAMINE.format(host=host)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    print(done.stdout or f"{host}: {done.stderr[-500:]}", flush=True)
    return "left alone" in done.stdout or bool(done.returncode)


if __name__ == "__main__":
    raise SystemExit(main())
