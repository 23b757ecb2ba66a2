"""Plants bugs in copies of the compiled backends, one at a time, and says which test catches each.

    python tests/planted_bugs.py [--only TEXT] [--out benchmarks/results/planted_bugs.md]

A bug replaces one piece of a source by another in a copy of the repository. The CPU kernels are built there, the CUDA
kernels compiled for the host (tests/cuda_on_host), Triton's interpreted; then the tests of the ops run until one fails.
Each backend runs once without a bug before. Exit code 1 where a bug is not caught, or a test fails without one.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU, CUDA, TRITON = "native, CPU", "native, CUDA", "triton"
SCHEDULES = ("round", "random:1", "random:2", "ahead:0", "ahead:1")
# What the interpreter is not tested with: see tests/triton_interpreted.
NOT_INTERPRETED = "not same_bits and not linear_ops_hold and not schemas_in_cpp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """kind: of mistake. before: text that is in the file exactly once. chosen: of the tests, as for `pytest -k`."""

    kind: str
    backend: str
    file: str
    before: str
    after: str
    chosen: str


BUGS = [
    Bug(
        kind="off by one at a vector's edge: the last partial vector of a row is read as a whole one",
        backend=CPU,
        file="csrc/cpu/kernels/softmax.h",
        before="return n >= L::kWidth ? load(x)",
        after="return n >= L::kWidth - 1 ? load(x)",
        chosen="logprobs",
    ),
    Bug(
        kind="int32 offset of a row",
        backend=CPU,
        file="csrc/cpu/kernels/softmax.h",
        before="+ (n / rows.inner) * rows.outer_stride +",
        after="+ static_cast<int32_t>((n / rows.inner) * rows.outer_stride) +",
        chosen="logprobs or two_to_the_31",
    ),
    Bug(
        kind="unmasked load: what does not count enters the arithmetic",
        backend=CPU,
        file="csrc/cpu/kernels/sums.h",
        before="return select(mask, n == L::kWidth ? load(from) : load_partial(from, n), L(0.0));",
        after="return n == L::kWidth ? load(from) : load_partial(from, n);",
        chosen="advantages or ppo",
    ),
    Bug(
        kind="stale carry: the value to the right of a vector",
        backend=CPU,
        file="csrc/cpu/kernels/advantages.h",
        before="carry = {lane(advantages, 0), lane(values, 0)};",
        after="carry = {lane(advantages, 0), carry.value};",
        chosen="advantages",
    ),
    Bug(
        kind="sums are not brought to a new maximum",
        backend=CPU,
        file="csrc/cpu/kernels/logprobs.h",
        before="    row.sum *= factor;\n",
        after="",
        chosen="logprobs",
    ),
    Bug(
        kind="head of a row not peeled before streaming stores",
        backend=CPU,
        file="csrc/cpu/kernels/logprobs.h",
        before="const int64_t head = streaming ? least(misaligned_elements(to), n) : 0;",
        after="const int64_t head = 0;",
        chosen="logprobs or caches",
    ),
    Bug(
        kind="sums carried from block to block: they depend on the number of threads",
        backend=CPU,
        file="csrc/cpu/kernels/ppo.h",
        before="    PpoTotals<DoubleSum<L>> totals;\n",
        after="    static thread_local PpoTotals<DoubleSum<L>> totals;\n",
        chosen="ppo",
    ),
    Bug(
        kind="swapped clip bounds",
        backend=CPU,
        file="csrc/formulas.h",
        before="minimum(maximum(ratio, low), high)",
        after="minimum(maximum(ratio, high), low)",
        chosen="ppo",
    ),
    Bug(
        kind="half gradient at a tie forgotten",
        backend=CPU,
        file="csrc/formulas.h",
        before="select(tie_outside, half * unclipped, unclipped)",
        after="unclipped",
        chosen="ppo or eager_pytorch",
    ),
    Bug(
        kind="temperature missing in the backward",
        backend=CPU,
        file="csrc/cpu/kernels/logprobs.h",
        before="{at<Scalar>(args.grad_logprobs, n) / args.temperature,",
        after="{at<Scalar>(args.grad_logprobs, n),",
        chosen="logprobs",
    ),
    Bug(
        kind="a tie counts as ranked right",
        backend=CPU,
        file="csrc/cpu/kernels/ranking.h",
        before="const auto first_ahead = margin > zero;",
        after="const auto first_ahead = margin >= zero;",
        chosen="ranking",
    ),
    Bug(
        kind="missing barrier: a tile is read before it is written",
        backend=CUDA,
        file="csrc/cuda/ranking.cu",
        before="a.response_stride]);\n      __syncthreads();\n",
        after="a.response_stride]);\n",
        chosen="ranking",
    ),
    Bug(
        kind="missing barrier: a sum's parts are read before they are written",
        backend=CUDA,
        file="csrc/cuda/columns.h",
        before="total[thread] = found;\n  __syncthreads();",
        after="total[thread] = found;",
        chosen="ppo",
    ),
    Bug(
        kind="one buffer in place of two between barriers",
        backend=CUDA,
        file="csrc/cuda/advantages.cu",
        before="      buffer ^= 1;\n    }\n",
        after="    }\n",
        chosen="advantages",
    ),
    Bug(
        kind="wrong lane mask",
        backend=CUDA,
        file="csrc/cuda/advantage_scan.h",
        before="__shfl_down_sync(kFullWarp, carry.map.term, offset)",
        after="__shfl_down_sync(0xffffu, carry.map.term, offset)",
        chosen="advantages",
    ),
    Bug(
        kind="lanes of a warp that do not all come to a shuffle",
        backend=CUDA,
        file="csrc/cuda/ranking.cu",
        before="const int last = static_cast<int>(a.num_responses);",
        after="const int last = num_responses;",
        chosen="ranking",
    ),
    Bug(
        kind="missing barrier: choices are read before they are written",
        backend=CUDA,
        file="csrc/cuda/ranking_models.cu",
        before="  __syncwarp(kFullWarp);\n",
        after="",
        chosen="plackett_luce",
    ),
    Bug(
        kind="off by one at the end of a row",
        backend=CUDA,
        file="csrc/cuda/online_softmax.h",
        before="if (thread < num_classes - tail) add",
        after="if (thread < num_classes - tail - 1) add",
        chosen="logprobs",
    ),
    Bug(
        kind="a vector behind the end of a row",
        backend=CUDA,
        file="csrc/cuda/online_softmax.h",
        before="if (first + u * num_threads < aligned.num_vectors) raw",
        after="if (first + u * num_threads <= aligned.num_vectors) raw",
        chosen="logprobs",
    ),
    Bug(
        kind="head of a row not peeled before 16-byte loads",
        backend=CUDA,
        file="csrc/cuda/rows.h",
        before="const int to_boundary = (kLanes<T> - phase) & (kLanes<T> - 1);",
        after="const int to_boundary = 0 * phase;",
        chosen="logprobs",
    ),
    Bug(
        kind="int32 offset of a row",
        backend=CUDA,
        file="csrc/cuda/rows.h",
        before="return base + (row / layout.inner) * layout.outer_stride + (row % layout.inner) * layout.inner_stride;",
        after="return base + static_cast<int>((row / layout.inner) * layout.outer_stride + (row % layout.inner) *"
        " layout.inner_stride);",
        chosen="logprobs or two_to_the_31",
    ),
    Bug(
        kind="unmasked tail: positions behind the end count",
        backend=CUDA,
        file="csrc/cuda/advantage_scan.h",
        before="    if (!inside) counted &= ~(1u << i);\n",
        after="",
        chosen="advantages",
    ),
    Bug(
        kind="stale carry: from the chunk after the next one",
        backend=CUDA,
        file="csrc/cuda/advantages.cu",
        before="range.chunk + 1, args.chunks_per_row",
        after="range.chunk + 2, args.chunks_per_row",
        chosen="advantages",
    ),
    Bug(
        kind="store behind the end",
        backend=CUDA,
        file="csrc/cuda/tokens.h",
        before="if (first + k < num_tokens) target",
        after="if (first + k <= num_tokens) target",
        chosen="ppo or whiten",
    ),
    Bug(
        kind="the last block's sums are left out",
        backend=CUDA,
        file="csrc/cuda/columns.h",
        before="b < (thread + 1) * share && b < num_blocks",
        after="b < (thread + 1) * share && b < num_blocks - 1",
        chosen="ppo",
    ),
    Bug(
        kind="a scan one step short",
        backend=CUDA,
        file="csrc/cuda/sampling.cu",
        before="offset = 1; offset < kWarpSize; offset *= 2",
        after="offset = 1; offset < kWarpSize / 2; offset *= 2",
        chosen="sampl",
    ),
    Bug(
        kind="stale carry: what is owed to the left of a tile",
        backend=TRITON,
        file="kernels/triton/advantages.py",
        before="debt_carry = _at(w + k * debt_carry, lane, 0)",
        after="debt_carry = _at(w, lane, 0)",
        chosen="advantages",
    ),
    Bug(
        kind="a chunk composed with itself",
        backend=TRITON,
        file="kernels/triton/advantages.py",
        before="right = (lane > chunk) & (lane < num_chunks)",
        after="right = (lane >= chunk) & (lane < num_chunks)",
        chosen="advantages",
    ),
    Bug(
        kind="sums are not brought to a new maximum",
        backend=TRITON,
        file="kernels/triton/logprobs.py",
        before="total = total * decay + tl.sum(exponential, 1)",
        after="total = total + tl.sum(exponential, 1)",
        chosen="logprobs",
    ),
    Bug(
        kind="swapped clip bounds",
        backend=TRITON,
        file="kernels/triton/ppo.py",
        before="        1.0 - clip_low,\n        1.0 + clip_high,\n",
        after="        1.0 + clip_high,\n        1.0 - clip_low,\n",
        chosen="ppo",
    ),
    Bug(
        kind="unmasked load: what does not count enters the arithmetic",
        backend=TRITON,
        file="kernels/triton/ppo.py",
        before="return tl.where(counted, tl.load(pointer + start + lane, mask=inside, other=0.0).to(tl.float32), 0.0)",
        after="return tl.load(pointer + start + lane, mask=inside, other=0.0).to(tl.float32)",
        chosen="ppo",
    ),
    Bug(
        kind="elements behind the last whole vector are left out",
        backend=TRITON,
        file="kernels/triton/ppo.py",
        before="start, lane, lane < num_elements - start, sums,",
        after="start, lane, lane < 0, sums,",
        chosen="ppo",
    ),
]


def copy_repository(tree: Path) -> None:
    """What the tests of the ops need, with the backends where the installed package has them."""
    for name in ("csrc", "instructrl", "kernels", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    for name in ("native", "triton"):
        (tree / "instructrl" / "kernels" / name).symlink_to(tree / "kernels" / name)


def pytest(tree: Path, environment: dict[str, str], names: tuple[str, ...], chosen: str) -> str:
    """Which test fails first and what it says, "" where none does."""
    files = [f"tests/ops/test_{name}.py" for name in names]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--capture=sys", "-x", "-vv", *files]
    command += ["-k", f"({chosen}) and not graph_break"]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    # Warnings are listed by test behind what ran, and a process that died has no summary.
    ran = done.stdout.partition("warnings summary")[0]
    started = re.findall(r"^tests/\S*?(test_\w+\.py::.*?)(?: (?:PASSED|FAILED|SKIPPED).*)?$", ran, re.MULTILINE)
    reasons = r"ERROR: (AddressSanitizer: \S+)|(runtime error: .*)|^E +(\S.*)|(Fatal Python error: .*)"
    found = re.search(reasons, done.stdout + done.stderr, re.MULTILINE)
    reason = next(filter(None, found.groups())) if found else f"exit code {done.returncode}"
    return f"`{started[-1] if started else 'collection'}`: {reason[:160]}"


def environments(backend: str, tree: Path, work: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Builds what is there to build; then a name and an environment for each run of the tests."""
    plain = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    plain.pop("INSTRUCTRL_BACKEND", None)
    path = os.pathsep.join(
        [str(tree), str(tree / "tests" / "cuda_on_host"), str(tree / "tests" / "triton_interpreted")]
    )
    plain["PYTHONPATH"] = path
    if backend == CPU:
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(build, cwd=tree, env={**plain, "INSTRUCTRL_BUILD_CUDA": "0"}, check=True, capture_output=True)
        yield "", plain
    elif backend == TRITON:
        yield "", {**plain, "TRITON_INTERPRET": "1", "INSTRUCTRL_TEST_PLUGIN": "triton_plugin"}
    else:
        for schedule in SCHEDULES:
            code = "import host_library, json, pathlib, sys; library = host_library.build(pathlib.Path(sys.argv[1]));"
            code += "print(json.dumps([str(library), host_library.environment(sys.argv[2])]))"
            command = [sys.executable, "-c", code, str(work / "objects"), schedule]
            done = subprocess.run(command, env=plain, check=True, capture_output=True, text=True)
            library, environment = json.loads(done.stdout)
            plugin = {"INSTRUCTRL_HOST_LIBRARY": library, "INSTRUCTRL_TEST_PLUGIN": "cuda_on_host_plugin"}
            yield f" (threads in the order {schedule})", {**environment, **plugin}


def catch(backend: str, tree: Path, work: Path, chosen: str) -> str:
    """Who catches what is in the tree now; "" for nobody."""
    names, only = ("ops_cases", "ops_sampling", "compiled_ops"), NOT_INTERPRETED
    if backend == CPU:
        # The others are alone in their processes, and know no float64.
        names, only = (*names, "ops_behaviour"), "native"
    for order, environment in environments(backend, tree, work):
        found = pytest(tree, environment, names, f"({chosen}) and {only}")
        if found:
            return found + order
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="bugs whose backend, file or kind contains this")
    parser.add_argument("--out", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    bugs = [bug for bug in BUGS if arguments.only in f"{bug.backend} {bug.file} {bug.kind}"]
    failures, lines = 0, ["| backend | file | bug | caught by |", "| --- | --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tree = work / "tree"
        copy_repository(tree)
        for backend in dict.fromkeys(bug.backend for bug in bugs):
            found = catch(backend, tree, work, "float32 or not float")
            print(f"{backend}, no bug: {found or 'nothing fails'}", flush=True)
            failures += bool(found)
        for bug in bugs:
            path = tree / bug.file
            right = path.read_text(encoding="utf-8")
            assert right.count(bug.before) == 1, f"{bug.file}: {bug.before!r} is there {right.count(bug.before)} times"
            path.write_text(right.replace(bug.before, bug.after), encoding="utf-8")
            found = catch(bug.backend, tree, work, bug.chosen)
            path.write_text(right, encoding="utf-8")
            failures += not found
            lines.append(f"| {bug.backend} | {Path(bug.file).name} | {bug.kind} | {found or '**not caught**'} |")
            print(lines[-1], flush=True)
    if arguments.out:
        title = "# Planted bugs\n\nWhich test catches each: `python tests/planted_bugs.py --out FILE` wrote this.\n\n"
        arguments.out.write_text(title + "\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
