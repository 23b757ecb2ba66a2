"""On a machine with an NVIDIA GPU, one command: build, tests on the device, compute-sanitizer, benchmarks.

    make gpu-check        or        python benchmarks/gpu_check.py [--out FOLDER]

It uses the Python that runs it, whose torch knows the GPU, and fits in eight minutes: every step has a limit, and one
that fails or is cut off is written down and the next one runs. Exit code 0 where every step passed, 1 where one did
not, 2 where there is nothing to check with. Files: benchmarks/results/MACHINE/gpu-check.json and gpu-check.log.
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("torch", "triton", "pytest", "pytest_benchmark", "pytest_timeout", "pybind11", "ninja", "setuptools")
# Its tests import the console command and what that needs.
IGNORED = ("--ignore=tests/ops/test_selftest.py",)
# Cases for compute-sanitizer: every kernel, both sides of a tile's edge, masks, misaligned rows; no large vocabulary.
SANITIZED = "native and cuda and float32 and not 50257 and not linear"
RACES = "native and cuda and float32 and not 50257 and not linear and (4097 or 257 or 5x9 or gaps or packed or masked)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """name: in the results. command: run in the repository. limit_s: seconds after which it is cut off.
    environment: added to the caller's. needed: the others are not run when it fails."""

    name: str
    command: tuple[str, ...]
    limit_s: int
    environment: tuple[tuple[str, str], ...] = ()
    needed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """exit_code: None where the step was cut off. summary: its last line with something in it."""

    name: str
    exit_code: int | None
    seconds: float
    summary: str


def pytest(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments)


def architecture(capability: tuple[int, int]) -> str:
    """The compute capability as the build takes it: the only one that this machine needs."""
    major, minor = capability
    return f"{major}{minor}a" if (major, minor) == (9, 0) else f"{major}{minor}"


def steps(benchmark_json: Path, capability: tuple[int, int]) -> list[Step]:
    """What is run, in order: eight minutes at most."""
    pip = (sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--editable", ".")
    build = (("INSTRUCTRL_BUILD_CUDA", "1"), ("INSTRUCTRL_CUDA_ARCHITECTURES", architecture(capability)))
    cases = ("tests/ops/test_ops_cases.py", "tests/ops/test_ops_sampling.py")
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    # Calls of the API that fail are not reported: torch probes with some, and ours are checked.
    check = (sanitizer, "--error-exitcode", "9", "--target-processes", "all", "--report-api-errors", "no", "--tool")
    # The caching allocator hides writes behind the end of a tensor from memcheck.
    uncached = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
    return [
        Step(name="build", command=pip, limit_s=80, environment=build, needed=True),
        Step(name="doctor", command=(sys.executable, "-c", DOCTOR), limit_s=50, needed=True),
        # Every test that knows a device has it in its name; the rest of the suite is the same without a GPU. Most of
        # the time goes to compiling Triton's kernels.
        Step(name="tests", command=pytest("tests/ops", *IGNORED, "-k", "cuda"), limit_s=200),
        Step(
            name="memcheck",
            command=(*check, "memcheck", *pytest(*cases, "-k", SANITIZED)),
            limit_s=60,
            environment=uncached,
        ),
        Step(name="racecheck", command=(*check, "racecheck", *pytest(*cases, "-k", RACES)), limit_s=40),
        Step(
            name="benchmarks",
            command=pytest("benchmarks/test_ops.py", "--benchmark-only", f"--benchmark-json={benchmark_json}"),
            limit_s=50,
        ),
    ]


# The self-test of every backend, without the packages that the console command needs.
DOCTOR = """
from instructrl import kernels, ops
from instructrl.ops import selftest
for row in ops.usability():
    print(row.op, row.backend, "usable" if row.usable else row.why_not)
found = [finding for name in kernels.names() for finding in selftest.self_test(name)]
for finding in found:
    print(finding.backend, "on", finding.device + ":", finding.error or "right", round(finding.seconds, 3), "s")
print(kernels.about("native"))
ran = {(finding.backend, finding.device) for finding in found if not finding.error}
missing = {("native", "cuda"), ("triton", "cuda")} - ran
raise SystemExit(f"not usable: {sorted(missing)}" if missing else 0)
"""


def exit_code(step: Step, file: TextIO, environment: dict[str, str]) -> int | None:
    """Run a step's command; None where it was cut off, with everything that it started."""
    try:
        child = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        file.write(f"{error}\n")
        return 127
    try:
        return child.wait(timeout=step.limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        return None


def run(step: Step, log: Path) -> Outcome:
    """Run a step; its output goes to the log and to the terminal's last line."""
    print(f"{step.name}: at most {step.limit_s} s ...", flush=True)
    start = time.monotonic()
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n==== {step.name}: {' '.join(step.command[:12])}\n")
        file.flush()
        position = file.tell()
        environment = {**os.environ, **dict(step.environment)}
        # pip refuses it beside --no-build-isolation.
        environment.pop("PIP_BUILD_CONSTRAINT", None)
        code = exit_code(step, file, environment)
    text = log.read_text(encoding="utf-8", errors="replace")[position:]
    lines = [line for line in text.splitlines() if line.strip()]
    outcome = Outcome(
        name=step.name, exit_code=code, seconds=round(time.monotonic() - start, 1), summary=lines[-1] if lines else ""
    )
    state = "passed" if code == 0 else "cut off" if code is None else f"failed with exit code {code}"
    print(f"{step.name}: {state} after {outcome.seconds} s: {outcome.summary}", flush=True)
    return outcome


def machine() -> dict[str, object]:
    """What the numbers were taken on."""
    import torch
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "capability": list(torch.cuda.get_device_capability(0)),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }


def why_not() -> str:
    """What is missing, "" where nothing is."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"some packages are not installed: pip install {' '.join(missing).replace('_', '-')}"
    import torch

    if not torch.cuda.is_available() or torch.version.cuda is None:
        return f"torch {torch.__version__} sees no NVIDIA GPU"
    return ""


def benchmark_rows(path: Path) -> list[dict[str, object]]:
    """Medians of pytest-benchmark's file, empty where the step did not finish."""
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    return [
        {"name": row["name"], "median_s": row["stats"]["median"], "iqr_s": row["stats"]["iqr"], **row["extra_info"]}
        for row in found
    ]


def main() -> int:
    """Run the steps and write what came of them. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the two files (default: benchmarks/results/MACHINE)")
    arguments = parser.parse_args()
    why = why_not()
    if why:
        print(f"gpu-check: {why}", file=sys.stderr)
        return 2
    found = machine()
    name = re.sub(r"[^a-z0-9]+", "-", str(found["gpu"]).lower()).strip("-")
    folder = arguments.out or ROOT / "benchmarks" / "results" / name
    folder.mkdir(parents=True, exist_ok=True)
    log, benchmark_json = folder / "gpu-check.log", folder / "pytest-benchmark.json"
    log.write_text(json.dumps(found) + "\n", encoding="utf-8")
    outcomes = []
    for step in steps(benchmark_json, tuple(found["capability"])):  # pyright: ignore
        outcomes.append(run(step, log))
        if step.needed and outcomes[-1].exit_code != 0:
            break
    results = {
        "machine": found,
        "date": time.strftime("%Y-%m-%d"),
        "steps": [asdict(outcome) for outcome in outcomes],
        "benchmarks": benchmark_rows(benchmark_json),
    }
    benchmark_json.unlink(missing_ok=True)
    (folder / "gpu-check.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {folder / 'gpu-check.json'} and {log.name}")
    return 0 if all(outcome.exit_code == 0 for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
