"""Compiles csrc/cuda for the host, as a library of ops that run the kernels on CPU tensors under sanitizers.

A process that loads it must have been started with `environment()`: the address sanitizer's runtime comes first.
"""

import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

_HERE = Path(__file__).resolve().parent
_CSRC = _HERE.parents[1] / "csrc"
_TORCH = Path(torch.__file__).resolve().parent
PREFIX = "_cuda_on_host_"
_COMPILE = [
    *("-std=c++17", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-omit-frame-pointer"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-parameter"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fsanitize-sections=cuda_shared"),
    *("-DINSTRUCTRL_ON_HOST", f'-DINSTRUCTRL_PREFIX="{PREFIX}"'),
    *(f"-I{_CSRC}", f"-I{_HERE}", "-isystem", f"{_TORCH / 'include'}"),
]


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def _digest(paths: Iterable[Path], extra: str) -> str:
    digest = hashlib.sha256(extra.encode())
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _compiled(source: Path, headers: list[Path], folder: Path) -> Path:
    """The object file of one source; made when no earlier one has the same contents, headers and options."""
    # Kernels take longer to compile than to run, the scheduler of their threads does not.
    own = ["-Og", "-include", "cuda_on_host.h", "-x", "c++"] if source.suffix == ".cu" else ["-O2"]
    command = [compiler(), *_COMPILE, *own]
    target = folder / f"{source.stem}-{_digest([source, *headers], ' '.join(command) + torch.__version__)}.o"
    if not target.exists():
        unfinished = target.with_suffix(f".{os.getpid()}.tmp")
        subprocess.run([*command, "-c", str(source), "-o", str(unfinished)], check=True)
        unfinished.replace(target)
    return target


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time builds in a folder: the others would compile the same."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(folder: Path, sources: Iterable[Path] = ()) -> Path:
    """The library, built in `folder` from what is new there. sources: other kernels in place of those of csrc/cuda."""
    with _alone(folder):
        return _built(folder, sources)


def _built(folder: Path, sources: Iterable[Path]) -> Path:
    kernels = sorted(sources) or sorted((_CSRC / "cuda").glob("*.cu"))
    headers = sorted([*_CSRC.glob("*.h"), *(_CSRC / "cuda").glob("*.h"), *_HERE.glob("*.h")])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        everything = [*kernels, *sorted(_HERE.glob("*.cpp"))]
        objects = list(pool.map(lambda source: _compiled(source, headers, folder), everything))
    target = folder / f"cuda_on_host-{_digest(objects, '')}.so"
    if not target.exists():
        unfinished = target.with_suffix(f".{os.getpid()}.tmp")
        libraries = [f"-L{_TORCH / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10", f"-Wl,-rpath,{_TORCH / 'lib'}"]
        options = ["-shared", "-fsanitize=address,undefined"]
        command = [compiler(), *options, *map(str, objects), *libraries, "-o", str(unfinished)]
        subprocess.run(command, check=True)
        unfinished.replace(target)
    return target


def environment(schedule: str = "round") -> dict[str, str]:
    """What a Python process needs to load the library. schedule: see cuda_on_host.h."""
    runtimes = []
    for name in ("libasan.so", "libubsan.so"):
        command = [compiler(), f"-print-file-name={name}"]
        runtimes.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    return {
        **os.environ,
        # CUDA's own and the address sanitizer's want the same addresses.
        "CUDA_VISIBLE_DEVICES": "",
        "LD_PRELOAD": ":".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "INSTRUCTRL_HOST_SCHEDULE": schedule,
    }
