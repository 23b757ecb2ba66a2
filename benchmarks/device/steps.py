"""The steps of gpu.py: what each runs, how long it may take, what it needs."""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.core.machine import SCRATCH

SITE = SCRATCH / "peers"
BUILD = ("setuptools", "torch", "pybind11", "ninja")
TESTS = ("pytest", "pytest-timeout", "hypothesis")
WORKERS = 8
# One wheel after the other: one that does not fit this Python costs none of the others.
PEERS = """
import subprocess, sys
options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", sys.argv[1]]
codes = [subprocess.run([sys.executable, "-m", "pip", "install", *options, x]).returncode for x in sys.argv[2:]]
print(codes.count(0), "of", len(codes), "wheels installed")
raise SystemExit(any(codes))
"""
# Without the packages that the console command needs; Triton last, whose compiler may raise what nobody catches.
SELF_TEST = """
import sys
from instructrl import kernels, ops
from instructrl.ops import selftest
print(kernels.about("native"))
for row in ops.usability():
    print(row.op, row.backend, "usable" if row.usable else row.why_not)
ran = set()
for name in sorted(kernels.names(), key="native reference triton".split().index):
    for found in selftest.self_test(name):
        print(found.backend, "on", found.device + ":", found.error or "right", round(found.seconds, 3), "s")
        ran |= set() if found.error else {(found.backend, found.device)}
missing = [x for x in ("native", "triton") for device in sys.argv[1:] if (x, device) not in ran]
print("not usable:" if missing else "all is usable", *missing)
raise SystemExit(bool(missing))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """name: in the results. command: run in the repository; "{seconds}" stands for what it may take. limit_s: after
    which it is cut off. environment: added to the caller's. needs: packages, in the versions of pyproject.toml. files:
    in the folder of results, of which none from an earlier run may stay. after: the step that this one stands in for,
    where it failed."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    after: str = ""


def steps(capability: Sequence[int], folder: Path, wheels: Sequence[Path]) -> list[Step]:
    """In order, on a GPU of this compute capability. folder: for results. wheels: of other libraries."""
    major, minor = capability
    # As the build takes it: the only architecture that this machine needs.
    architecture = f"{major}{minor}a" if (major, minor) == (9, 0) else f"{major}{minor}"
    gpu = {"INSTRUCTRL_BUILD_CUDA": "1", "INSTRUCTRL_CUDA_ARCHITECTURES": architecture}
    return [
        *peers(wheels),
        build("build", 130, gpu),
        # With Triton alone there is still something to measure.
        build("build-cpu", 90, {"INSTRUCTRL_BUILD_CUDA": "0"}, after="build"),
        Step(name="self-test", command=python("-c", SELF_TEST, "cuda"), limit_s=60),
        targets(folder),
        tests(folder, "cuda"),
        *(sanitizer(tool, limit_s) for tool, limit_s in (("memcheck", 50), ("racecheck", 45), ("synccheck", 40))),
        benchmarks(folder),
    ]


def dry_steps(folder: Path, wheels: Sequence[Path]) -> list[Step]:
    """The same with tiny tasks on the CPU, without the sanitizers' program."""
    return [
        *peers(wheels),
        build("build", 300, {}),
        build("build-cpu", 300, {"INSTRUCTRL_BUILD_CUDA": "0"}, after="build"),
        Step(name="self-test", command=python("-c", SELF_TEST), limit_s=60),
        targets(folder, "--dry", "--rounds", "3"),
        tests(folder, "ranking and cpu and float32"),
        Step(name="memcheck", command=(*DRIVER, "--device", "cpu"), limit_s=60),
        benchmarks(folder, "--only", "pairwise_ranking_loss 1024x9"),
    ]


def python(*words: str) -> tuple[str, ...]:
    return (sys.executable, *words)


def peers(wheels: Sequence[Path]) -> list[Step]:
    paths = [str(path.resolve()) for path in wheels]
    return [Step(name="peers", command=python("-c", PEERS, str(SITE), *paths), limit_s=60)] if paths else []


def build(name: str, limit_s: float, environment: Mapping[str, str], after: str = "") -> Step:
    pip = python("-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps", "--editable", ".")
    return Step(name=name, command=pip, limit_s=limit_s, environment=environment, needs=BUILD, after=after)


def targets(folder: Path, *options: str) -> Step:
    command = python("-m", "benchmarks.device.targets", "--budget-s", "{seconds}", "--out", str(folder), *options)
    files = ("gpu-targets.json", "gpu-targets.md", "gpu-targets.log")
    return Step(name="targets", command=command, limit_s=290, files=files)


def tests(folder: Path, chosen: str) -> Step:
    """Every test that knows a device has it in its name; the rest of the suite is the same without a GPU. That of the
    self-test imports the console command and what it needs. Without the options of pyproject.toml, which are those of a
    machine that has every tool."""
    command = python("-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "tests/ops", "-k", chosen)
    told = ("--ignore=tests/ops/test_selftest.py", "-v", "--tb=short", "-rfE", f"--junitxml={folder / 'tests.xml'}")
    return Step(name="tests", command=(*command, *told, *in_parallel()), limit_s=130, needs=TESTS, files=("tests.xml",))


def in_parallel() -> tuple[str, ...]:
    """Options for pytest. A worker of pytest-xdist that waits for a GPU, and hears no signal, is ended and replaced."""
    if version("pytest-xdist") is None:
        return ("--timeout=60",)
    return ("-n", str(min(WORKERS, os.cpu_count() or 1)), "--timeout=60", "--timeout-method=thread")


DRIVER = python("-m", "benchmarks.device.sanitized", "--seconds", "{seconds}")


def sanitizer(tool: str, limit_s: float) -> Step:
    """Our kernels alone under one of the tools: all are in the namespace that the filter names."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    # Calls of the API that fail are not reported: torch probes with some, and ours are checked.
    check = ("--tool", tool, "--kernel-name", "kns=instructrl", "--error-exitcode", "9", "--report-api-errors", "no")
    # The caching allocator hides writes behind the end of a tensor from memcheck.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {}
    return Step(name=tool, command=(program, *check, *DRIVER), limit_s=limit_s, environment=environment)


def benchmarks(folder: Path, *options: str) -> Step:
    out = ("--out", str(folder / "gpu-bench.json"), "--rounds", "5")
    command = python("-m", "benchmarks.ops.bench", "--quick", *out, *options)
    return Step(name="benchmarks", command=command, limit_s=60, files=("gpu-bench.json", "gpu-bench.md"))


def version(package: str) -> str | None:
    """Of what is installed, the peers' folder included; None where it is not."""
    found: Any = importlib.metadata.distributions(name=package, path=[str(SITE), *sys.path])
    return next((x.version for x in found), None)
