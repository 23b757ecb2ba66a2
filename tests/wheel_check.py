"""Installs what `make wheel` made as a stranger would: `make wheel-check`.

    python tests/wheel_check.py [INTERPRETER:TORCH ...]

The wheel goes into an environment for each interpreter and version of torch, in processes that find no compiler; in the
last one the source distribution is then built, with a compiler. Each time `instructrl doctor` tries every backend, the
ops of `native` are differentiated beside the reference, and SFT makes an epoch of two steps. Environments are kept in
build/wheel_check, so that torch is fetched once. PIP_EXTRA_INDEX_URL names an index of small builds of torch.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "wheel_check"
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "nvcc")
OPS = """
import torch
from instructrl import ops
from instructrl.kernels.native import library
from instructrl.ops import advantages, logprobs

def gradients(backend):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 5000, generator=generator).requires_grad_()
    values = torch.randn(3, 40, generator=generator)
    with ops.use_backend(backend):
        logprobs.token_logprobs(logits, torch.arange(7) * 700).square().sum().backward()
        returns = advantages.generalized_advantages(values.exp(), values, values > -1)
        compiled = torch.compile(lambda x: advantages.masked_whiten(x, values > -1), backend="eager", fullgraph=True)
        return logits.grad, *returns, compiled(values)

for found, expected in zip(gradients("native"), gradients("reference"), strict=True):
    torch.testing.assert_close(found, expected)
info = library.build_info()
print("ops:", torch.__version__, "loads what was built with", info["torch"], "for", info["instruction_set"])
"""


def run(command: list[str], **settings) -> str:
    """What a command prints. Ends this program with it where the command fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)[:300]}: exit code {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout


def without_compiler(python: Path) -> dict[str, str]:
    """The variables of a process whose PATH is the environment's own folder."""
    kept = {name: text for name, text in os.environ.items() if name not in ("CC", "CXX", "NVCC", "PIP_CONSTRAINT")}
    reachable = [name for name in COMPILERS if shutil.which(name, path=str(python.parent))]
    if reachable:
        raise SystemExit(f"{python.parent}: found {', '.join(reachable)}, accepted is a folder without a compiler")
    return {**kept, "PATH": str(python.parent), "OMP_NUM_THREADS": "1"}


def environment(interpreter: str, torch: str) -> Path:
    """The Python of the environment for an interpreter and a version of torch, made where it is not there yet."""
    version = run([interpreter, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    python = KEPT / f"python{version}-torch{torch}" / "bin" / "python"
    if not python.exists():
        run([interpreter, "-m", "venv", str(python.parent.parent)])
    installed = [str(python), "-c", "import importlib.metadata as m; print(m.version('torch'))"]
    found = subprocess.run(installed, capture_output=True, text=True).stdout.strip()
    if found.partition("+")[0] != torch:
        run([str(python), "-m", "pip", "install", "--quiet", f"torch=={torch}"], env=without_compiler(python))
    return python


def use(python: Path) -> str:
    """Doctor, ops, and SFT on the toy files of docs/files_and_models.md. Returns what doctor says of `native`."""
    work = python.parent.parent / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    settings = {"cwd": work, "env": without_compiler(python)}
    said = run([str(python.parent / "instructrl"), "doctor"], **settings)
    if "self-test, native on cpu" not in said:
        raise SystemExit(f"instructrl doctor: found no self-test of native\n{said}")
    print(run([str(python), "-c", OPS], **settings).strip())
    toy = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/files_and_models.md").read_text(encoding="utf-8"), re.DOTALL
    )[0]
    run([str(python), "-c", toy], **settings)
    command = "sft --model toy/model --data toy/demonstrations.jsonl --out sft --sft.epochs 1 --sft.batch-size 100"
    command += " --limits.max-prompt-tokens 96 --limits.max-response-tokens 32"
    run([str(python.parent / "instructrl"), *command.split()], **settings)
    return " ".join(said.partition("native: ")[2].partition("self-test")[0].split())


def main(pairs: list[str]) -> int:
    """Check each pair. Returns the exit code."""
    wheel, sdist = next((ROOT / "dist").glob("*.whl")), next((ROOT / "dist").glob("*.tar.gz"))
    install = ["-m", "pip", "install", "--quiet", "--only-binary=:all:"]
    for interpreter, torch in (pair.rsplit(":", 1) for pair in pairs):
        python = environment(interpreter, torch)
        pip = [str(python), *install]
        run([*pip, "--force-reinstall", "--no-deps", str(wheel)], env=without_compiler(python))
        run([*pip, str(wheel), f"torch=={torch}"], env=without_compiler(python))
        print(f"{wheel.name} on {python.parent.parent.name}: {use(python)}", flush=True)
    with_compiler = {name: text for name, text in os.environ.items() if name != "PIP_CONSTRAINT"}
    run([*pip, "setuptools>=77", "pybind11", "ninja"], env=with_compiler)
    source = [str(python), "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--force-reinstall"]
    run([*source, str(sdist)], env=with_compiler)
    print(f"{sdist.name} built on {python.parent.parent.name}: {use(python)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
