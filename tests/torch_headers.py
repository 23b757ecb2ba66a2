"""Compiles all of csrc/ against the headers of the oldest torch that pyproject.toml promises: `make headers`.

    python tests/torch_headers.py [VERSION ...]

A newer torch has names that an older one does not know, so what builds beside the newest may build beside no other.
The headers are those of a wheel for macOS, the smallest one, whose folder is the same; they are kept in
build/torch_headers. Every .cpp goes through the C++ compiler and every .cu, host and device code, through nvcc for one
GPU; nothing is linked or run. Exit code 0 where everything was compiled and 1 where a file was not accepted; 2 where
nothing was found wrong but a compiler or the headers could not be had.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.ahead_of_time.report import tool  # noqa: E402

SOURCES = ROOT / "csrc"
KEPT = ROOT / "build" / "torch_headers"
# 2.10 and 2.11 were made for the first of them, later ones for the second.
PLATFORMS = ("macosx_11_0_arm64", "macosx_14_0_arm64")
TEXTS = ("INSTRUCTRL_TORCH_VERSION", "INSTRUCTRL_CUDA_COMPILER", "INSTRUCTRL_CUDA_ARCHITECTURES")


class UnavailableError(RuntimeError):
    """What is needed to compile is not here."""


def oldest() -> str:
    """The version that the package's dependencies begin with, such as "2.10"."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = text.partition("\ndependencies = [")[2].partition("\n]")[0]
    return re.findall(r'"torch>=([\d.]+)"', dependencies)[0]


def headers(version: str, kept: Path = KEPT) -> Path:
    """The folder of a torch's headers, fetched where it is not there yet. Raises `UnavailableError`."""
    target = kept / version
    if target.exists():
        return target / "torch" / "include"
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept) as folder:
        options = [option for platform in PLATFORMS for option in ("--platform", platform)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *options]
        command += ["--python-version", "3.11", "--dest", folder, f"torch=={version}"]
        # The constraints are those of the torch that is tested with.
        environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise UnavailableError(f"pip download torch=={version}: {done.stderr.strip().splitlines()[-1:]}")
        unpacked = Path(folder) / "unpacked"
        with zipfile.ZipFile(next(Path(folder).glob("torch-*.whl"))) as wheel:
            names = [name for name in wheel.namelist() if name.startswith("torch/include/")]
            wheel.extractall(unpacked, names)
        unpacked.rename(target)
    return target / "torch" / "include"


def command_for(source: Path, include: Path) -> list[str]:
    """How one file is compiled, its object thrown away. Raises `UnavailableError` without the compiler."""
    if source.suffix == ".cu":
        nvcc = tool("nvcc")
        if nvcc is None:
            raise UnavailableError("nvcc not found: put it on PATH or set NVCC")
        # Unoptimised PTX for one GPU: every line is read, and that is what this is for.
        options = [nvcc, "-std=c++17", "-Werror", "all-warnings", "-O0", "-Xcicc", "-O0", "-cuda", "-o", os.devnull]
        options += ["-gencode", "arch=compute_90a,code=compute_90a"]
    else:
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            raise UnavailableError("neither g++ nor clang++ found")
        # torch has pybind11 among its headers.
        options = [compiler, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-psabi", "-Werror"]
        options += [f'-D{name}=""' for name in TEXTS] + ["-isystem", sysconfig.get_path("include")]
    return [*options, f"-I{SOURCES}", "-isystem", str(include), str(source)]


def refused(source: Path, include: Path) -> str:
    """What the compiler says against a file, "" where it takes it. Raises `UnavailableError`."""
    done = subprocess.run(command_for(source, include), capture_output=True, text=True)
    return "" if done.returncode == 0 else (done.stderr + done.stdout)[-4000:] or f"exit code {done.returncode}"


def check(version: str, sources: Sequence[Path], include: Path) -> int:
    """Compile all sources and print what was found. Returns the exit code."""

    def outcome(source: Path) -> tuple[int, str]:
        try:
            said = refused(source, include)
        except UnavailableError as why:
            return 2, f"not compiled: {why}"
        return (1, said) if said else (0, "")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(outcome, sources))
    for source, (code, text) in zip(sources, found, strict=True):
        if code:
            print(f"torch {version}: {os.path.relpath(source, ROOT)}: {text}")
    codes = [code for code, _ in found]
    print(f"torch {version}: {codes.count(0)} of {len(sources)} files compiled")
    return 1 if 1 in codes else max(codes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile against each version. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("versions", nargs="*", default=[oldest()], help="of torch (default: %(default)s)")
    sources = sorted([*SOURCES.rglob("*.cpp"), *SOURCES.rglob("*.cu")])
    codes = []
    for version in parser.parse_args(arguments).versions:
        try:
            codes.append(check(version, sources, headers(version)))
        except UnavailableError as why:
            print(f"torch {version}: its headers could not be had: {why}")
            codes.append(2)
    return 1 if 1 in codes else max(codes)


if __name__ == "__main__":
    raise SystemExit(main())
