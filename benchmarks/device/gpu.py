"""On a machine with an NVIDIA GPU, one command of ten minutes, most valuable first: `make gpu`.

    python -m benchmarks.device.gpu [--out FOLDER] [--peers FOLDER] [--only STEP ...] [--dry]

It uses the Python that runs it, whose torch knows the GPU, and asks no network. The steps are in `steps`: each has a
limit, gets no more than what is left of the time, and whether it passes, fails, lacks something or is cut off, the next
one runs. Before its limit a step is interrupted, so that it can still say what it found.

Files, written as they come: gpu.md and gpu.json (what became of each step), gpu.log (all output), gpu-targets.md, .json
and .log, tests.xml. They go to --out, else to the folder that the variable OUT names, else to
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from benchmarks.core import machine
from benchmarks.core.machine import ROOT, SCRATCH
from benchmarks.core.tables import RESULTS_HELP, command, markdown, write_json
from benchmarks.device.steps import BENCHMARKS, SITE, Step, dry_steps, steps, version

BUDGET_S = 570
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """state: "passed", "failed", "cut off", "not run" or "interrupted". exit_code: where it ended by itself. summary:
    the last line with something in it, or why it was not run."""

    name: str
    state: str
    exit_code: int | None
    seconds: float
    summary: str


def described() -> dict[str, Any]:
    """What the numbers are taken on. RuntimeError where there is no GPU."""
    return {**machine.gpu(), "triton": version("triton")}


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


def minimums() -> dict[str, str]:
    """The oldest version of each package that pyproject.toml names."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)"', text))


def lacking(step: Step) -> str:
    """What a step cannot be run without, "" where all of it is here."""
    least = minimums()
    found = {name: version(name) for name in step.needs}
    wrong = [
        f"{name} {here or 'is not installed'}, accepted is {least[name]} or later"
        for name, here in found.items()
        if here is None or numbers(here) < numbers(least[name])
    ]
    if shutil.which(step.command[0]) is None:
        wrong.append(f"{step.command[0]} is not here")
    return "; ".join(wrong)


def ended(child: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit code of a process, None where it had to be interrupted because its seconds were nearly over."""
    grace = min(GRACE_S, seconds / 4)
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


def exit_code(step: Step, seconds: float, file: TextIO) -> int | None:
    """Run a step's command; None where it was cut off. Nothing that it started outlives it."""
    environment = {**os.environ, **ENVIRONMENT, **dict(step.environment)}
    paths = [str(SITE), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    for name in DROPPED:
        environment.pop(name, None)
    allowed = f"{max(1.0, seconds - 2 * min(GRACE_S, seconds / 4)):.0f}"
    command = [word.replace("{seconds}", allowed) for word in step.command]
    child = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        return ended(child, seconds)
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
            failed = any(x.name == step.after and x.state != "passed" for x in self.outcomes)
            if not step.after or failed:
                self._add(self._outcome(step))

    def _outcome(self, step: Step) -> Outcome:
        seconds = min(step.limit_s, self.deadline - time.monotonic())
        why = "no time was left" if seconds < LEAST_S else lacking(step)
        if why:
            return Outcome(name=step.name, state="not run", exit_code=None, seconds=0.0, summary=why)
        print(f"{step.name}: at most {seconds:.0f} s ...", flush=True)
        start = time.monotonic()
        for name in step.files:
            (self.folder / name).unlink(missing_ok=True)
        with self._log.open("a", encoding="utf-8") as file:
            # The scripts of some steps are long words.
            print(f"\n==== {step.name}: {' '.join(step.command)[:400]}", file=file, flush=True)
            position = file.tell()
            try:
                code = exit_code(step, seconds, file)
                state = "cut off" if code is None else "failed" if code else "passed"
            except KeyboardInterrupt:
                self._add(self._told(step, "interrupted", None, start, position))
                raise
        return self._told(step, state, code, start, position)

    def _told(self, step: Step, state: str, code: int | None, start: float, position: int) -> Outcome:
        with self._log.open("rb") as file:
            file.seek(position)
            text = file.read().decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        if state not in ("passed", "interrupted"):
            # A compiler's words come first, and long before the last ones.
            shown = [*[line for line in lines[:-20] if " error" in line][:6], *lines[-20:]]
            print("\n".join(f"    {line[:200]}" for line in shown), flush=True)
        seconds = round(time.monotonic() - start, 1)
        summary = lines[-1].strip("= ")[:300] if lines else ""
        return Outcome(name=step.name, state=state, exit_code=code, seconds=seconds, summary=summary)

    def _add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        print(f"{outcome.name}: {outcome.state} after {outcome.seconds} s: {outcome.summary}", flush=True)
        results = {"machine": self.found, "date": time.strftime("%Y-%m-%d"),
                   "steps": [asdict(x) for x in self.outcomes], "benchmarks": benchmark_rows()}  # fmt: skip
        write_json(self.folder / "gpu.json", results, indent=1)
        (self.folder / "gpu.md").write_text(table(self.found, self.outcomes), encoding="utf-8")


def table(found: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """Markdown: the machine, then a line a step."""
    head = ", ".join(f"{name} {value}" for name, value in found.items())
    rows = [[x.name, x.state, str(x.seconds), x.summary] for x in outcomes]
    return f"{head}\n\n" + markdown(("step", "", "seconds", "its last line"), rows)


def benchmark_rows() -> list[dict[str, object]]:
    """Medians of pytest-benchmark's file, empty where the step did not finish."""
    if not BENCHMARKS.exists() or BENCHMARKS.stat().st_size == 0:
        return []
    found = json.loads(BENCHMARKS.read_text(encoding="utf-8"))["benchmarks"]
    return [
        {"name": row["name"], "median_s": row["stats"]["median"], "iqr_s": row["stats"]["iqr"], **row["extra_info"]}
        for row in found
    ]


def parsed() -> argparse.Namespace:
    parser = command(__doc__, out=RESULTS_HELP)
    parser.add_argument("--peers", type=Path, help="folder of wheels of other libraries")
    parser.add_argument("--only", nargs="+", default=(), metavar="STEP", help="these steps alone")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="seconds for everything (%(default)s)")
    parser.add_argument("--dry", action="store_true", help="tiny tasks on the CPU; needs --out")
    arguments = parser.parse_args()
    if arguments.dry and arguments.out is None:
        parser.error("--dry needs --out: its figures are not results")
    return arguments


def prepared(arguments: argparse.Namespace) -> tuple[dict[str, Any], Path, list[Step]]:
    """The machine, the folder and the steps. RuntimeError where there is nothing to be done here."""
    found: dict[str, Any] = {"gpu": "dry"} if arguments.dry else described()
    folder = machine.results_folder(arguments.out, str(found["gpu"]))
    if arguments.peers is not None and not arguments.peers.is_dir():
        print(f"gpu: --peers: {arguments.peers} is no folder; without peers then", file=sys.stderr)
    shutil.rmtree(SITE, ignore_errors=True)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    BENCHMARKS.unlink(missing_ok=True)
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
    except (RuntimeError, subprocess.TimeoutExpired) as why:
        print(f"gpu: {why}", file=sys.stderr)
        return 2
    # SIGINT too: started in the background, a process may have been told to ignore it, and what it starts as well.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    run = Run(found, folder, start + arguments.budget_s)
    code = 0
    try:
        run.all(chosen)
    except KeyboardInterrupt:
        code = 130
    targets = folder / "gpu-targets.md"
    if any(x.name == "targets" and x.state != "not run" for x in run.outcomes) and targets.exists():
        lines = targets.read_text(encoding="utf-8").partition("\n\n| row | provider")[0].splitlines()
        print("", *(line[:160] for line in lines), sep="\n")
    print("\n" + table(found, run.outcomes))
    print(f"wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return code or int(any(x.state != "passed" for x in run.outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
