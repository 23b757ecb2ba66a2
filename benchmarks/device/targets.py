"""The targets of the GPU ops, each beside eager PyTorch, torch.compile of it and installed peers, in one run.

    make gpu STEPS="build targets"        or, built before,        python -m benchmarks.device.targets [--only TEXT]

How each is measured is said in core/runner.py; shares are of a copy of 2 GiB or a bfloat16 product of 8192^3. Wall time
is that of a call among many, device time is by CUDA events or, of short steps, by replaying a graph. Memory is the
allocator's high-water mark, workspace what of it is no result.

Each row has a limit, runs in a process that is ended at it, and is written down before the next one begins. A provider
in which a process dies, hangs, loses the device or cannot be captured as a graph costs the others nothing: the row
begins again in a fresh process without it, or without its graph. Exit code 0 where every target is met, 1 where one is
not, 2 where there is no GPU. Files: gpu-targets.json, .md and .log in --out, else the folder that the variable OUT
names, else benchmarks/results/MACHINE. `--dry --out FOLDER` goes through all of it with tiny shapes on the CPU.
"""

import gc
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.core import machine
from benchmarks.core.machine import ROOT
from benchmarks.core.report import missed, shown, write
from benchmarks.core.rows import EAGER, Row
from benchmarks.core.runner import CHECK, Attempt, Trouble, measure
from benchmarks.core.tables import command
from benchmarks.core.timing import CpuMeter, GpuMeter
from benchmarks.core.turns import Worker, say, turns
from benchmarks.device.target_rows import ROWS

BUDGET_S = 465
STARTUP_S = 60
"""For importing, and for the first use of the device."""
PROVIDER_S = 30
"""For one provider's first calls, compilers included."""
RETRIES = 3
"""Of a row, each without one more provider or graph."""
BY_NAME = {row.name: row for row in ROWS}


def work(dry: bool, rounds: int) -> None:
    """In a process of its own: a turn names a row and what to do without; says what is begun, then the results."""
    torch._functorch.config.donated_buffer = False  # pyright: ignore  (a backward is timed again and again)
    meter = CpuMeter(tiny=True) if dry else GpuMeter()
    for word in turns():
        name, without = json.loads(word)
        row = BY_NAME[name]
        attempt = Attempt(
            rounds=rounds,
            deadline=time.monotonic() + 0.6 * row.limit_s,
            without={provider: Trouble(*trouble) for provider, trouble in without.items()},
            tell=lambda provider, stage: say({"begun": provider, "stage": stage}),
        )
        say(measure(row, meter, attempt))
        torch.compiler.reset()
        if not dry:
            gc.collect()
            torch.cuda.empty_cache()


class Run:
    """Rows under a time budget, in a process that is replaced where it fails; files after each row.

    command: starts a process that does what `work` does. head: what the numbers were taken on.
    """

    def __init__(self, command: list[str], folder: Path, head: dict[str, Any], deadline: float) -> None:
        self.command, self.folder, self.deadline = command, folder, deadline
        self.results: dict[str, Any] = {**head, "rows": []}
        self._log, self._position = (folder / "gpu-targets.log").open("a", encoding="utf-8"), 0
        self._worker: Worker | None = None

    def all(self, rows: list[Row]) -> list[dict[str, Any]]:
        try:
            for row in rows:
                self._add(self._measured(row))
        finally:
            self._stop()
            self._log.close()
        return self.results["rows"]

    def _measured(self, row: Row) -> dict[str, Any]:
        without: dict[str, Trouble] = {}
        while time.monotonic() < self.deadline:
            begun, since = {"begun": "", "stage": ""}, time.monotonic()
            try:
                worker = self._worker or self._started()
                row_since = since = time.monotonic()
                worker.ask(json.dumps([row.name, without]))
                while "begun" in begun:
                    since = time.monotonic()
                    limit = min(row_since + row.limit_s, self.deadline)
                    found = worker.hear(min(limit - since, PROVIDER_S if begun["begun"] else row.limit_s))
                    if "begun" not in found:
                        return found
                    begun = found
            except TimeoutError:
                why = f"cut off after {time.monotonic() - since:.0f} s"
            except (RuntimeError, OSError):
                why = self._ended()
            self._stop()
            provider, stage = begun["begun"], begun["stage"]
            # Without plain PyTorch there is nothing to check the others by.
            if not provider or (provider == EAGER and stage == CHECK) or len(without) == RETRIES:
                return unmeasured(row, why)
            without[provider] = Trouble(stage, why)
            print(f"{row.name}: {provider}, {stage}: {why}; again without", flush=True)
        return unmeasured(row, "not run: no time was left")

    def _started(self) -> Worker:
        self._position = self._log.seek(0, 2)
        self._worker = Worker(self.command, self._log, STARTUP_S, cwd=ROOT)
        return self._worker

    def _ended(self) -> str:
        """With what exit code, and what was said last, or of what it died."""
        text = (self.folder / "gpu-targets.log").read_bytes()[self._position :].decode(errors="replace")
        lines = [x for x in text.splitlines() if x.strip()]
        died = [x for x in lines if x.startswith("Fatal Python error")]
        code = self._worker.process.wait() if self._worker else "unknown"
        return f"failed with exit code {code}: {(died or lines or [''])[-1][:300]}"

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.process.kill()
            self._worker.process.wait()
            self._worker = None

    def _add(self, row: dict[str, Any]) -> None:
        self.results["rows"].append(row)
        write(self.results, self.folder / "gpu-targets.json")
        for x in row["targets"]:
            print(f"{row['row']}: {x['target']}: {x['backend']} {shown(x['found'])} {x['verdict']}", flush=True)
        if not row["targets"]:
            print(f"{row['row']}: {row.get('why', 'measured')}", flush=True)


def unmeasured(row: Row, why: str) -> dict[str, Any]:
    targets = [{"backend": "native", "target": x.text, "found": None, "verdict": why} for x in row.targets]
    return {"row": row.name, "why": why, "providers": {}, "targets": targets}


def main() -> int:
    """Measure and write. Returns the exit code."""
    start = time.monotonic()
    arguments = command(__doc__, rounds=9, only="", out=Path, budget_s=float(BUDGET_S), dry=False, work=False)
    if arguments.work:
        work(arguments.dry, arguments.rounds)
        return 0
    if arguments.dry and arguments.out is None:
        raise SystemExit("--dry needs --out: its figures are not results")
    try:
        found = {"gpu": "dry"} if arguments.dry else machine.gpu()
        folder = machine.results_folder(arguments.out, str(found["gpu"]))
    except RuntimeError as why:
        print(f"gpu-targets: {why}", file=sys.stderr)
        return 2
    (folder / "gpu-targets.log").write_text(json.dumps(found) + "\n", encoding="utf-8")
    head = {"machine": found, "date": time.strftime("%Y-%m-%d")}
    if arguments.dry:
        head["dry"] = "tiny shapes on the CPU, the figures mean nothing"
    given = ["--rounds", str(arguments.rounds), *(["--dry"] if arguments.dry else []), "--work"]
    process = [sys.executable, "-X", "faulthandler", "-m", "benchmarks.device.targets", *given]
    rows = Run(process, folder, head, start + arguments.budget_s).all([x for x in ROWS if arguments.only in x.name])
    asked = sum(x["backend"] == "native" for row in rows for x in row["targets"])
    measured, wrong = sum("why" not in row for row in rows), missed(rows, "dry" if arguments.dry else "met")
    print(f"wrote {folder / 'gpu-targets.json'}, .md and .log")
    print(f"{measured} of {len(rows)} rows measured, {asked - len(wrong)} of {asked} targets met")
    return 0 if measured == len(rows) and not wrong else 1


if __name__ == "__main__":
    # Ended from outside, it ends the process that measures too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise SystemExit(main())
