"""What each GPU kernel needs of GPUs that are not here: registers, spills, shared memory, 16-byte loads and stores.

    python -m benchmarks.ahead_of_time.report            compile, and compare with benchmarks/results/ahead_of_time.json
    python -m benchmarks.ahead_of_time.report --write    compile, and store that there and as a table beside it

csrc/cuda/*.cu are compiled by nvcc for each architecture; ptxas says what a kernel needs, and its machine code is read
for the width of loads and stores of global memory. Triton's kernels come from triton_kernels.py, where Triton is
installed; their rows have the same fields. Nothing runs on a GPU. Exit code 1 where the comparison finds a problem.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from benchmarks.core.machine import ROOT
from benchmarks.core.tables import RESULTS, command, markdown

SOURCES = ROOT / "csrc"
STORED = RESULTS / "ahead_of_time.json"
HOMES = ("CUDA_HOME", "CUDA_PATH")
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
REGISTER_SLACK = 8
"""Registers are handed out in eights; patch versions of ptxas differ by less."""
WIDE = r"\bLDG\.E\S*\.128", r"\bSTG\.E\S*\.128"
"""In NVIDIA's machine code: loads and stores of 16 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kernel on one architecture.

    registers: of a thread. spills: bytes of local memory a thread, the stack included. shared_bytes: of a block.
    wide_loads, wide_stores: instructions that move 16 bytes a thread from or to global memory.
    """

    backend: str
    file: str
    kernel: str
    arch: str
    registers: int
    spills: int
    shared_bytes: int
    wide_loads: int
    wide_stores: int

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.backend, self.file, self.kernel, self.arch


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit: from the variable of its name, PATH, beside nvcc, or from Triton's wheel."""
    places = [os.environ.get("PATH", ""), *(f"{os.environ[x]}/bin" for x in HOMES if x in os.environ)]
    triton = importlib.util.find_spec("triton")
    wheel = (
        [] if triton is None else [f"{place}/backends/nvidia/bin" for place in triton.submodule_search_locations or ()]
    )
    places += ["/usr/local/cuda/bin", *wheel]
    return os.environ.get(name.upper()) or shutil.which(name, path=os.pathsep.join(places))


def why_not() -> str | None:
    """What is missing to compile the CUDA kernels and read their machine code, or None."""
    missing = [name for name in ("nvcc", "nvdisasm", "c++filt") if tool(name) is None]
    return f"{', '.join(missing)} not found" if missing else None


def run_tool(name: str, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    program = tool(name)
    if program is None:
        raise RuntimeError(f"{name} not found: put it on PATH or set {name.upper()}")
    done = subprocess.run([program, *arguments], input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{name} {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr[-4000:]}")
    return done


def _compiled(source: Path, arch: str, cubin: Path) -> str:
    """Compile one file for one architecture; what ptxas said. Warnings are errors."""
    import torch

    folders = [f"-I{SOURCES}", "-isystem", str(Path(torch.__file__).parent / "include")]
    options = ["-std=c++17", "-O3", f"-arch={arch}", "-Werror", "all-warnings", "-Xptxas", "-v", "-DUSE_CUDA"]
    return run_tool("nvcc", *options, *folders, "-cubin", str(source), "-o", str(cubin)).stderr


def _numbers(pattern: str, text: str) -> int:
    """The sum of a pattern's numbers in a text; 0 where it is not there."""
    return sum(int(number) for number in re.findall(pattern, text))


def resources(report: str) -> dict[str, dict[str, int]]:
    """Registers, spills and shared memory by mangled kernel name, from the report of `ptxas -v`."""
    found = {}
    for part in re.split(r"ptxas info\s+: Compiling entry function ", report)[1:]:
        name = re.match(r"'(\w+)'", part)
        assert name is not None
        local = [_numbers(rf"(\d+) bytes {what}", part) for what in ("stack frame", "spill stores", "spill loads")]
        found[name[1]] = {
            "registers": _numbers(r"Used (\d+) registers", part),
            "spills": max(local),
            "shared_bytes": _numbers(r"(\d+) bytes smem", part),
        }
    return found


def memory_instructions(assembly: str) -> dict[str, dict[str, int]]:
    """Loads and stores of 16 bytes by mangled kernel name, from the output of nvdisasm."""
    found = {}
    for part in re.split(r"^\.text\.", assembly, flags=re.MULTILINE)[1:]:
        name, _, code = part.partition(":")
        found[name] = {
            kind: len(re.findall(x, code)) for kind, x in zip(("wide_loads", "wide_stores"), WIDE, strict=True)
        }
    return found


def readable(names: Sequence[str]) -> list[str]:
    """Kernel names as the source has them: `kernel<float, true>`, an enumerator as `Enum 2`."""
    plain = run_tool("c++filt", text="\n".join(names)).stdout
    plain = plain.replace("(anonymous namespace)::", "").replace("(bool)0", "false").replace("(bool)1", "true")
    plain = re.sub(r"\(([\w:]+)\)(\d+)", r"\1 \2", plain)
    # What is left in parentheses is the list of parameters.
    return [re.sub(r"^void |\(.*$|instructrl::|c10::", "", name) for name in plain.splitlines()]


def cuda_rows(sources: Iterable[Path] = (), architectures: Sequence[str] = ARCHITECTURES) -> list[Row]:
    """The kernels of CUDA sources, by default those of csrc/cuda. RuntimeError where one does not compile."""

    def compiled(job: tuple[Path, str]) -> list[Row]:
        source, arch = job
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernels.cubin"
            needs = resources(_compiled(source, arch, cubin))
            moves = memory_instructions(run_tool("nvdisasm", str(cubin)).stdout)
        names, file = sorted(needs), source.relative_to(ROOT) if source.is_relative_to(ROOT) else source.name
        place = {"backend": "cuda", "file": str(file), "arch": arch}
        kernels = zip(names, readable(names), strict=True)
        return [Row(**place, kernel=kernel, **needs[name], **moves[name]) for name, kernel in kernels]

    jobs = [(source, arch) for source in sources or sorted((SOURCES / "cuda").glob("*.cu")) for arch in architectures]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [row for found in pool.map(compiled, jobs) for row in found]


def triton_rows() -> list[Row]:
    """The kernels of the Triton backend; none where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return []
    from benchmarks.ahead_of_time import triton_kernels

    return [Row(**asdict(row)) for row in triton_kernels.rows()]


def problems(found: Iterable[Row], stored: Iterable[Row]) -> list[str]:
    """Where what was found is worse than what is stored, a line each: any spill, more registers than the slack allows,
    fewer 16-byte loads or stores, more shared memory, and kernels that only one of the two has."""
    now, before = {row.key: row for row in found}, {row.key: row for row in stored}
    lines = [(key, "not in the stored report") for key in now.keys() - before.keys()]
    lines += [(key, "only in the stored report") for key in before.keys() - now.keys()]
    for key, row in now.items():
        old = before.get(key, row)
        wrong = {
            f"{row.spills} bytes of local memory": row.spills > 0,
            f"{row.registers} registers, stored are {old.registers}": abs(row.registers - old.registers)
            > REGISTER_SLACK,
            f"{row.wide_loads} wide_loads, stored are {old.wide_loads}": row.wide_loads < old.wide_loads,
            f"{row.wide_stores} wide_stores, stored are {old.wide_stores}": row.wide_stores < old.wide_stores,
            f"{row.shared_bytes} bytes shared, stored are {old.shared_bytes}": row.shared_bytes > old.shared_bytes,
        }
        lines += [(key, text) for text, is_wrong in wrong.items() if is_wrong]
    return sorted(f"{' '.join(key)}: {text}" for key, text in lines)


def stored_rows(path: Path = STORED) -> list[Row]:
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]


def stored_versions(path: Path = STORED) -> dict[str, str]:
    return json.loads(path.read_text(encoding="utf-8"))["versions"]


def tool_versions() -> dict[str, str]:
    versions = {}
    if tool("nvcc") is not None:
        release = re.search(r"release .*, (V[\d.]+)", run_tool("nvcc", "--version").stdout)
        versions["nvcc"] = release[1] if release else "unknown"
    if importlib.util.find_spec("triton") is not None:
        import triton

        versions["triton"] = triton.__version__
    return versions


def _age(arch: str) -> tuple[bool, int]:
    return not arch.startswith("sm_"), int(re.sub(r"\D", "", arch))


def table(rows: Sequence[Row], versions: Mapping[str, str]) -> str:
    """Markdown: a line a kernel, a column an architecture."""
    text = f"""# GPU kernels compiled ahead of time

`make ahead-of-time` writes this table. Nothing was run.
Compilers: {", ".join(f"{name} {version}" for name, version in versions.items())}.

Each cell: registers a thread / bytes of local memory a thread / bytes of shared memory a block / 16-byte
loads / 16-byte stores (instructions).
"""
    for (backend, file), group in groupby(sorted(rows, key=lambda row: row.key), lambda row: (row.backend, row.file)):
        cells: dict[str, dict[str, str]] = {}
        for row in group:
            numbers = (row.registers, row.spills, row.shared_bytes, row.wide_loads, row.wide_stores)
            cells.setdefault(row.kernel, {})[row.arch] = " / ".join(map(str, numbers))
        columns = sorted({arch for by_arch in cells.values() for arch in by_arch}, key=_age)
        lines = [[f"`{kernel}`", *(by_arch.get(arch, "") for arch in columns)] for kernel, by_arch in cells.items()]
        text += f"\n## {backend}: {file}\n\n{markdown(('kernel', *columns), lines)}"
    return text


def write(rows: Sequence[Row], path: Path = STORED) -> None:
    versions = tool_versions()
    body = ",\n".join("  " + json.dumps(asdict(row)) for row in sorted(rows, key=lambda row: row.key))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"versions": {json.dumps(versions)},\n "rows": [\n{body}\n ]}}\n', encoding="utf-8")
    path.with_suffix(".md").write_text(table(rows, versions), encoding="utf-8")


def main() -> int:
    given = command(__doc__, write=False, backend=["cuda", "triton"])
    rows = [row for name in given.backend for row in {"cuda": cuda_rows, "triton": triton_rows}[name]()]
    kept = stored_rows() if STORED.exists() else []
    if given.write:
        rows += [row for row in kept if row.backend not in given.backend]
        write(rows)
        kept = rows
    lines = problems(rows, [row for row in kept if given.write or row.backend in given.backend])
    print("\n".join([*lines, f"{len(rows)} kernels, {len(lines)} problems"]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
