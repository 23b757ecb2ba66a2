"""On a machine with an NVIDIA GPU, one command of ten minutes, most valuable first: `make gpu`.

    python -m benchmarks.device.gpu [--out FOLDER] [--peers FOLDER] [--only STEP ...] [--budget-s SECONDS] [--dry]

It uses the Python that runs it, whose torch knows the GPU, and asks no network. The steps are in `steps`: each has a
limit, gets no more than what is left of the time, and whether it passes, fails, lacks something or is cut off, the next
one runs. Before its limit a step is interrupted, so that it can still say what it found.

Files, written as they come: gpu.md and gpu.json (what became of each step), gpu.log (all output), gpu-targets.md, .json
and .log, tests.xml, gpu-bench.md and .json. They go to --out, else to the folder that the variable OUT names, else to
benchmarks/results/MACHINE. --peers: a folder of wheels of other libraries, which are put where these steps alone see
them. --dry goes through all of it with tiny tasks on the CPU. Exit code 0 where every step passed, 1 where one did not,
2 where nothing can be tried, 130 where it was interrupted.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from benchmarks.core import machine
from benchmarks.core.machine import ROOT, SCRATCH
from benchmarks.core.tables import command, markdown, write_json
from benchmarks.device.steps import SITE, Step, dry_steps, steps, version

BUDGET_S = 570.0
GRACE_S = 15.0
"""Between the interrupt of a step and its end; a quarter of its time where that is less."""
LEAST_S = 5.0
# Nothing asks a network or a hub, and pip installs what it is told to, which is this package, with no constraints of
# another torch.
ENVIRONMENT = {
    "PIP_NO_INDEX": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
    "PIP_BREAK_SYSTEM_PACKAGES": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}
DROPPED = ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT", "PIP_REQUIRE_VIRTUALENV")
Outcome = dict[str, Any]
"""name; state: "passed", "failed", "cut off", "not run" or "interrupted"; exit_code: where it ended by itself; seconds;
summary: the last line with something in it, or why it was not run."""


def minimums() -> dict[str, str]:
    """The oldest version of each package that pyproject.toml names."""
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")))


def lacking(step: Step) -> str:
    """What a step cannot be run without, "" where all of it is here."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(map(int, re.findall(r"\d+", text)[:3]))

    least, found = minimums(), {name: version(name) for name in step.needs}
    wrong = [
        f"{name} {here or 'is not installed'}, accepted is {least[name]} or later"
        for name, here in found.items()
        if here is None or numbers(here) < numbers(least[name])
    ]
    return "; ".join(wrong + ([] if shutil.which(step.command[0]) else [f"{step.command[0]} is not here"]))


def exit_code(step: Step, seconds: float, file: TextIO) -> int | None:
    """Run a step's command; None where it was cut off. Nothing that it started outlives it."""
    grace = min(GRACE_S, seconds / 4)
    environment = {name: x for name, x in os.environ.items() if name not in DROPPED} | ENVIRONMENT | step.environment
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SITE), environment.get("PYTHONPATH"))))
    command = [word.replace("{seconds}", f"{max(1.0, seconds - 2 * grace):.0f}") for word in step.command]
    child = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        return child.wait(timeout=seconds - grace)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as why:
        # To all of it, as a terminal does: pytest-xdist waits for workers that were not told.
        os.killpg(child.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=grace)
        if isinstance(why, KeyboardInterrupt):
            raise
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


class Run:
    """Steps under a time budget; gpu.json and gpu.md after each."""

    def __init__(self, found: dict[str, Any], folder: Path, deadline: float) -> None:
        self.found, self.folder, self.deadline = found, folder, deadline
        self.outcomes: list[Outcome] = []
        self._log = folder / "gpu.log"
        self._log.write_text(json.dumps(found) + "\n", encoding="utf-8")

    def all(self, chosen: Sequence[Step]) -> None:
        for step in chosen:
            if not step.after or any(x["name"] == step.after and x["state"] != "passed" for x in self.outcomes):
                self._run(step)

    def _run(self, step: Step) -> None:
        seconds = min(step.limit_s, self.deadline - time.monotonic())
        if why := "no time was left" if seconds < LEAST_S else lacking(step):
            self._add(step, "not run", None, 0.0, why)
            return
        print(f"{step.name}: at most {seconds:.0f} s ...", flush=True)
        for name in step.files:
            (self.folder / name).unlink(missing_ok=True)
        start, state, code = time.monotonic(), "interrupted", None
        with self._log.open("a", encoding="utf-8") as file:
            # The scripts of some steps are long words.
            print(f"\n==== {step.name}: {' '.join(step.command)[:400]}", file=file, flush=True)
            position = file.tell()
            try:
                code = exit_code(step, seconds, file)
                state = "cut off" if code is None else "failed" if code else "passed"
            finally:
                text = self._log.read_bytes()[position:].decode(errors="replace")
                lines = [line for line in text.splitlines() if line.strip()]
                if state not in ("passed", "interrupted"):
                    # A compiler's words come first, and long before the last ones.
                    shown = [*[line for line in lines[:-20] if " error" in line][:6], *lines[-20:]]
                    print("\n".join(f"    {line[:200]}" for line in shown), flush=True)
                summary = lines[-1].strip("= ")[:300] if lines else ""
                self._add(step, state, code, round(time.monotonic() - start, 1), summary)

    def _add(self, step: Step, state: str, code: int | None, seconds: float, summary: str) -> None:
        outcome = {"name": step.name, "state": state, "exit_code": code, "seconds": seconds, "summary": summary}
        self.outcomes.append(outcome)
        print(f"{step.name}: {state} after {seconds} s: {summary}", flush=True)
        results = {"machine": self.found, "date": time.strftime("%Y-%m-%d"), "steps": self.outcomes}
        write_json(self.folder / "gpu.json", results, indent=1)
        (self.folder / "gpu.md").write_text(self.table(), encoding="utf-8")

    def table(self) -> str:
        """Markdown: the machine, then a line a step."""
        head = ", ".join(f"{name} {value}" for name, value in self.found.items())
        rows = [[x["name"], x["state"], str(x["seconds"]), x["summary"]] for x in self.outcomes]
        return f"{head}\n\n" + markdown(("step", "", "seconds", "its last line"), rows)


def parsed() -> argparse.Namespace:
    return command(__doc__, out=Path, peers=Path, only=[], budget_s=BUDGET_S, dry=False)


def prepared(arguments: argparse.Namespace) -> tuple[dict[str, Any], Path, list[Step]]:
    """The machine, the folder and the steps. RuntimeError where there is nothing to be done here."""
    if arguments.dry and arguments.out is None:
        raise RuntimeError("--dry needs --out: its figures are not results")
    found = {"gpu": "dry"} if arguments.dry else {**machine.gpu(), "triton": version("triton")}
    folder = machine.results_folder(arguments.out, str(found["gpu"]))
    if arguments.peers is not None and not arguments.peers.is_dir():
        print(f"gpu: --peers: {arguments.peers} is no folder; without peers then", file=sys.stderr)
    shutil.rmtree(SITE, ignore_errors=True)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    wheels = sorted(arguments.peers.glob("*.whl")) if arguments.peers else []
    everything = dry_steps(folder, wheels) if arguments.dry else steps(found["capability"], folder, wheels)
    unknown = sorted(set(arguments.only) - {step.name for step in everything})
    if unknown:
        raise RuntimeError(f"--only: found {unknown}, accepted are {[step.name for step in everything]}")
    return found, folder, [step for step in everything if not arguments.only or step.name in arguments.only]


def main() -> int:
    """Run the steps. Returns the exit code."""
    start, arguments = time.monotonic(), parsed()
    try:
        found, folder, chosen = prepared(arguments)
    except RuntimeError as why:
        print(f"gpu: {why}", file=sys.stderr)
        return 2
    # SIGINT too: started in the background, a process may have been told to ignore it, and what it starts as well.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    run, code = Run(found, folder, start + arguments.budget_s), 0
    try:
        run.all(chosen)
    except KeyboardInterrupt:
        code = 130
    targets = folder / "gpu-targets.md"
    if any(x["name"] == "targets" and x["state"] != "not run" for x in run.outcomes) and targets.exists():
        lines = targets.read_text(encoding="utf-8").partition("\n\n| row | provider")[0].splitlines()
        print("", *(line[:160] for line in lines), sep="\n")
    print("\n" + run.table())
    print(f"wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return code or int(any(x["state"] != "passed" for x in run.outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
