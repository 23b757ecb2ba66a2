"""The targets of the GPU ops, each beside eager PyTorch, torch.compile of it and installed peers, in one run.

    make gpu STEPS="build targets"        or, built before,        python -m benchmarks.device.targets [--only TEXT]

Every provider is held against float64 before it is timed. A round runs each in turn, with a copy of 2 GiB or a bfloat16
product of 8192^3 among them, whose rate is what shares are of: medians of the rounds' own, with the middle half of the
rounds in brackets. Wall time is that of a call among many, device time is by CUDA events or, of short steps, by
replaying a graph. Inputs that fit the cache are taken in turns from several sets, 8 at most. Bytes and FLOPs are the
least that a step must move and multiply; memory is the allocator's high-water mark, workspace what of it is no result.

Each row has a limit, runs in a process that is ended at it, and is written down before the next one begins. A provider
in which a process dies, hangs, loses the device or cannot be captured as a graph costs the others nothing: the row
begins again in a fresh process without it, or without its graph. Exit code 0 where every target is met, 1 where one is
not, 2 where there is no GPU. Files: gpu-targets.json, .md and .log in benchmarks/results/MACHINE. `--dry --out FOLDER`
goes through all of it with tiny shapes on the CPU; its exit code is 0 where every row was measured.
"""

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.core import machine
from benchmarks.core.machine import ROOT, SCRATCH
from benchmarks.core.tables import RESULTS_HELP, command, markdown, write_json
from benchmarks.core.timing import meter_of
from benchmarks.core.workloads import BACKWARD, BOTH, FORWARD, LINEAR_LOGPROBS, LINEAR_PPO
from benchmarks.device.target_measure import CHECK, Attempt, Trouble, run_row
from benchmarks.device.target_rows import (
    Row,
    Setting,
    Target,
    advantages_row,
    head_row,
    logits_row,
    ppo_row,
    ranking_row,
)

BUDGET_S = 465
STARTUP_S = 60
"""For importing, and for the first use of the device, before the first row of a process."""
PROVIDER_S = 30
"""For one provider's first calls, compilers included."""
RETRIES = 3
"""Of a row, each without one more provider or graph."""
GIB = 1024.0


def share(least: float) -> tuple[Target, ...]:
    return (Target(text=f"at least {least:g}% of the copy rate", measure="share_pct", bound=least, at_least=True),)


def most(bound: float, unit: str, kind: str, scale: float = 1.0) -> tuple[Target, ...]:
    """kind: "wall" or "device", whose figures are microseconds."""
    what = f" {kind}" if unit == "us" else ""
    return (Target(text=f"at most {bound:g} {unit}{what}", measure=f"{kind}_us", bound=scale * bound),)


def wall_us(bound: float) -> tuple[Target, ...]:
    return most(bound, "us", "wall")


def device_ms(bound: float) -> tuple[Target, ...]:
    return most(bound, "ms", "device", 1e3)


WORKSPACE = Target(text="at most 1 GiB (1024 MiB) beside the results", measure="workspace_mib", bound=GIB)
ROWS: tuple[Row, ...] = (
    logits_row(128256, FORWARD, share(90)),
    logits_row(50257, FORWARD, share(80)),
    logits_row(128256, BACKWARD, share(88)),
    head_row(LINEAR_LOGPROBS, FORWARD, device_ms(7.8)),
    head_row(LINEAR_LOGPROBS, BOTH, (*device_ms(29), WORKSPACE)),
    head_row(LINEAR_PPO, BOTH, device_ms(21)),
    ppo_row("16M", (16384, 1024), FORWARD, share(75)),
    ppo_row("16M", (16384, 1024), BOTH, share(75)),
    ppo_row("1M", (1024, 1024), BOTH, wall_us(60)),
    ranking_row(FORWARD, most(4, "us", "device")),
    advantages_row(512, 2048, wall_us(10)),
    advantages_row(64, 1024, wall_us(10)),
    advantages_row(8192, 2048, share(70)),
    advantages_row(16, 131072, wall_us(30)),
    advantages_row(512, 2048, wall_us(10), fused=True),
    advantages_row(8192, 2048, share(70), fused=True),
    ranking_row(BOTH, ()),
    logits_row(128256, BOTH, ()),
)
BY_NAME = {row.name: row for row in ROWS}


def work(names: list[str], lines: Path, dry: bool, rounds: int, without: dict[str, dict[str, Trouble]]) -> None:
    """In a process of its own: a line for each row's results, as it is finished, and one for what is begun."""
    torch._functorch.config.donated_buffer = False  # pyright: ignore  (a backward is timed again and again)
    device = torch.device("cpu" if dry else "cuda")
    meter = meter_of(device)
    setting = Setting(device=device, dry=dry, cache_bytes=meter.cache_bytes)

    def write(line: dict[str, Any]) -> None:
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    for name in names:
        row = BY_NAME[name]
        attempt = Attempt(
            rounds=rounds,
            deadline=time.monotonic() + 0.6 * row.limit_s,
            without=without.get(name, {}),
            tell=lambda provider, stage: write({"begun": provider, "stage": stage}),
        )
        write(run_row(row, setting, meter, attempt))
        torch.compiler.reset()
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


class Run:
    """Rows in processes, under a time budget; files after each row.

    command: starts a process that does what `work` does, given the file for lines, what to do without as JSON, and then
    names of rows. head: what the numbers were taken on.
    """

    def __init__(self, command: list[str], folder: Path, head: dict[str, Any], deadline: float) -> None:
        self.command, self.folder, self.head, self.deadline = command, folder, head, deadline
        self.rows: list[dict[str, Any]] = []
        self.without: dict[str, dict[str, Trouble]] = {}
        self._lines, self._log = SCRATCH / f"targets-{os.getpid()}.part", folder / "gpu-targets.log"
        self._begun = ("", "")
        self._position = 0

    def all(self, rows: list[Row]) -> None:
        waiting = list(rows)
        while waiting:
            if time.monotonic() > self.deadline:
                for row in waiting:
                    self._add(unmeasured(row, "not run: no time was left"))
                return
            done = self._process(waiting)
            waiting = waiting[done:]

    def _process(self, rows: list[Row]) -> int:
        """Start a process on these; returns how many of them are done with."""
        self._lines.parent.mkdir(parents=True, exist_ok=True)
        self._lines.write_text("", encoding="utf-8")
        self._begun = ("", "")
        without = {name: {x: asdict(trouble) for x, trouble in found.items()} for name, found in self.without.items()}
        with self._log.open("a", encoding="utf-8") as log:
            self._position = log.tell()
            child = subprocess.Popen(
                [*self.command, str(self._lines), json.dumps(without), *(row.name for row in rows)],
                stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
            )  # fmt: skip
        try:
            return self._watch(child, rows)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            self._lines.unlink()

    def _watch(self, child: subprocess.Popen[bytes], rows: list[Row]) -> int:
        done, read, spare = 0, 0, STARTUP_S
        row_since = since = time.monotonic()
        while True:
            ended = child.poll()
            # A line that is being written has no end yet.
            lines = self._lines.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
            for line in map(json.loads, lines[read:]):
                since = time.monotonic()
                if "begun" in line:
                    self._begun = (line["begun"], line["stage"])
                else:
                    self._add(line)
                    done, row_since, spare, self._begun = done + 1, since, 0, ("", "")
            read = len(lines)
            if done == len(rows):
                # Its end may take a moment; nothing is lost by not waiting for it.
                return done
            if ended is not None:
                return done + self._failed(rows[done], f"failed with exit code {ended}: {self._last_line()}")
            now, limit = time.monotonic(), min(row_since + spare + rows[done].limit_s, self.deadline)
            if now > limit or (self._begun[0] and now > since + PROVIDER_S):
                began = since if self._begun[0] else row_since
                return done + self._failed(rows[done], f"cut off after {now - began:.0f} s")
            time.sleep(0.1)

    def _failed(self, row: Row, why: str) -> int:
        """Blame the provider that was under way; 1 where the row is done with, 0 where it is worth another try."""
        provider, stage = self._begun
        known = self.without.setdefault(row.name, {})
        # Without plain PyTorch there is nothing to check the others by.
        needed = stage == CHECK and provider in ("eager", "reference")
        if provider and not needed and len(known) < RETRIES and time.monotonic() < self.deadline:
            known[provider] = Trouble(stage=stage, why=why)
            print(f"{row.name}: {provider}, {stage}: {why}; again without", flush=True)
            return 0
        self._add(unmeasured(row, why))
        return 1

    def _last_line(self) -> str:
        """What a process said last, or of what it died."""
        text = self._log.read_bytes()[self._position :].decode(errors="replace")
        lines = [x for x in text.splitlines() if x.strip()]
        died = [x for x in lines if x.startswith("Fatal Python error")]
        return (died or lines or [""])[-1][:300]

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        results = {**self.head, "rows": self.rows}
        write_json(self.folder / "gpu-targets.json", results, indent=1)
        (self.folder / "gpu-targets.md").write_text(report(results), encoding="utf-8")
        for x in row["targets"]:
            print(f"{row['row']}: {x['target']}: {x['backend']} {shown(x['found'])} {x['verdict']}", flush=True)
        if not row["targets"]:
            print(f"{row['row']}: {row.get('why', 'measured')}", flush=True)


def unmeasured(row: Row, why: str) -> dict[str, Any]:
    targets = [{"backend": "native", "target": x.text, "found": None, "verdict": why} for x in row.targets]
    return {"row": row.name, "why": why, "providers": {}, "targets": targets}


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def report(results: dict[str, Any]) -> str:
    """Markdown: the targets, then everybody's figures."""
    lines = [f"{results['machine']}, {results['date']}", ""]
    if results["dry"]:
        lines += ["Tiny shapes on the CPU, to try the table: the figures mean nothing.", ""]
    targets, figures = [], []
    for row in results["rows"]:
        name = row["row"]
        targets += [[name, x["target"], x["backend"], shown(x["found"]), x["verdict"]] for x in row["targets"]]
        if "yardstick" in row:
            rate = row["yardstick"]
            unit, scale = ("GB/s", 1e9) if rate["kind"] == "copy" else ("TFLOP/s", 1e12)
            figures.append([name, f"{rate['kind']}: {rate['per_second'] / scale:.4g} {unit}", *[""] * 7])
            name = ""
        for provider, x in row["providers"].items():
            figures.append([name, provider, *figures_line(x)])
            name = ""
    columns = ("row", "provider", "wall us", "device us", "by", "share", "extra MiB", "results MiB", "error")
    tables = markdown(("row", "target", "backend", "found", ""), targets), markdown(columns, figures)
    return "\n".join([*lines, *tables])


def figures_line(x: dict[str, Any]) -> list[str]:
    error = shown(x.get("error"))
    if "left_out" in x:
        return [f"left out: {x['left_out']}", *[""] * 5, error]
    wall, device = (
        f"{middle:.4g} [{low:.4g}, {high:.4g}]"
        for low, middle, high in (x["wall_quartiles_us"], x["device_quartiles_us"])
    )
    percent = f"{x['share_pct']:.0f}%" if "share_pct" in x else ""
    return [wall, device, x["device_time_by"], percent, shown(x.get("extra_mib")), shown(x.get("result_mib")), error]


def parsed() -> argparse.Namespace:
    parser = command(__doc__, rounds=9, only="rows", out=RESULTS_HELP)
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="seconds for everything")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU; needs --out")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.dry and not arguments.work and arguments.out is None:
        parser.error("--dry needs --out: its figures are not results")
    return arguments


def main() -> int:
    """Measure and write. Returns the exit code."""
    start, arguments = time.monotonic(), parsed()
    if arguments.work:
        lines, without, *names = arguments.work
        found = {
            row: {name: Trouble(**trouble) for name, trouble in troubles.items()}
            for row, troubles in json.loads(without).items()
        }
        work(names, Path(lines), arguments.dry, arguments.rounds, found)
        return 0
    try:
        found = {"gpu": "dry"} if arguments.dry else machine.gpu()
        folder = machine.results_folder(arguments.out, str(found["gpu"]))
    except (RuntimeError, subprocess.TimeoutExpired) as why:
        print(f"gpu-targets: {why}", file=sys.stderr)
        return 2
    (folder / "gpu-targets.log").write_text(json.dumps(found) + "\n", encoding="utf-8")
    head = {"machine": found, "date": time.strftime("%Y-%m-%d"), "dry": arguments.dry}
    given = ["--rounds", str(arguments.rounds), *(["--dry"] if arguments.dry else []), "--work"]
    process = [sys.executable, "-X", "faulthandler", "-m", "benchmarks.device.targets", *given]
    run = Run(process, folder, head, start + arguments.budget_s)
    run.all([row for row in ROWS if arguments.only in row.name])
    right = "dry" if arguments.dry else "met"
    verdicts = [x["verdict"] for row in run.rows for x in row["targets"] if x["backend"] == "native"]
    measured = sum("why" not in row for row in run.rows)
    print(f"wrote {folder / 'gpu-targets.json'}, .md and .log")
    print(f"{measured} of {len(run.rows)} rows measured, {verdicts.count(right)} of {len(verdicts)} targets {right}")
    return 0 if measured == len(run.rows) and verdicts.count(right) == len(verdicts) else 1


if __name__ == "__main__":
    # Ended from outside, it ends the process that measures too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise SystemExit(main())
