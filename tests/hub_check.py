"""Builds the Hugging Face kernels package for the CPU as kernel-builder does, and runs it: `make hub-check`.

    python tests/hub_check.py [--out DIR]

`setup.py hub_package` writes the package; what is listed in its build.toml is compiled by the flags that are listed
there, against the limited interface of Python 3.9, and loaded from a folder beside an installed instructrl, whose ops
it must not touch. Nix, which kernel-builder runs in, is not needed.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "instructrl_ops"
EXTENSION = f"_{PACKAGE}_cpu_check"
# kernel-builder has a header of this name on the path.
REGISTRATION = """#pragma once
#include <Python.h>
#define INSTRUCTRL_JOIN(a, b) a##b
#define INSTRUCTRL_INIT(name) INSTRUCTRL_JOIN(PyInit_, name)
#define REGISTER_EXTENSION(name)                                               \\
  PyMODINIT_FUNC INSTRUCTRL_INIT(name)() {                                     \\
    static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "ops", 0, -1};  \\
    return PyModule_Create(&module);                                           \\
  }
"""
OPS = f"""import torch

from . import {EXTENSION}

ops = torch.ops.{EXTENSION}


def add_op_namespace_prefix(name):
    return "{EXTENSION}::" + name
"""
METADATA = '{"id": "%s", "name": "instructrl-ops", "version": 0, "license": "Apache-2.0", "backend": {"type": "cpu"}}'
USE = """
import torch
import instructrl.ops
from built import instructrl_ops
from built.instructrl_ops.kernels.native import library
from built.instructrl_ops.ops import private_ops, selftest

findings = selftest.self_test("native")
assert findings and not any(finding.error for finding in findings), findings
assert instructrl_ops.ppo is not instructrl.ops.ppo
x, mask = torch.randn(3, 50), torch.rand(3, 50) > 0.3
with instructrl_ops.use_backend("native"), instructrl.ops.use_backend("reference"):
    found = torch.compile(instructrl_ops.advantages.masked_whiten, backend="eager", fullgraph=True)(x, mask)
    torch.testing.assert_close(found, instructrl.ops.advantages.masked_whiten(x, mask))
print(private_ops.NAMESPACE, library.build_info(), [finding.ops for finding in findings])
"""


def generate(out: Path, *options: str) -> dict:
    """Write the package into a folder that is not there yet. Returns what its build.toml says.

    Raises subprocess.CalledProcessError with what was said.
    """
    import tomllib

    command = [sys.executable, "setup.py", "--quiet", "hub_package", "--out", str(out), *options]
    # Whether CUDA kernels would be built here is asked of torch, whose import takes longer than all else.
    environment = {**os.environ, "INSTRUCTRL_BUILD_CUDA": "0"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    (out / "registration.h").write_text(REGISTRATION, encoding="utf-8")
    return tomllib.loads((out / "build.toml").read_text(encoding="utf-8"))


def compile_command(out: Path, build: dict, source: str, torch: Path) -> list[str]:
    """How one C++ source of the framework's section is compiled. torch: the folder of its headers."""
    major, minor = map(int, build["torch"]["stable-abi"]["cpu"].split("."))
    defines = [f"TORCH_EXTENSION_NAME={EXTENSION}", "CPU_KERNEL", "Py_LIMITED_API=0x03090000"]
    defines.append(f"TORCH_TARGET_VERSION={(major << 56) | (minor << 48):#x}ULL")
    own = [f"-I{out}", *(f"-I{out / folder}" for folder in build["torch"]["include"])]
    others = ["-isystem", str(torch), "-isystem", sysconfig.get_path("include")]
    flags = ["-std=c++17", "-fPIC", "-fno-gnu-unique", "-Wno-psabi", *build["torch"]["cxx-flags"]]
    return [os.environ.get("CXX", "g++"), *flags, *(f"-D{name}" for name in defines), *own, *others, str(out / source)]


def build_variant(out: Path, build: dict, place: Path) -> None:
    """Compile and link the package, and lay it as it is downloaded: the Python files beside the extension."""
    import torch

    folder = Path(torch.__file__).parent
    listed = [name for name in build["torch"]["src"] if name.endswith(".cpp")]
    objects = [out / f"{number}.o" for number in range(len(listed))]

    def compiled(pair) -> None:
        command = compile_command(out, build, pair[0], folder / "include")
        subprocess.run([*command, "-c", "-o", str(pair[1])], check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compiled, zip(listed, objects, strict=True)))
    (out / "torch-ext" / PACKAGE).rename(place)
    libraries = [f"-L{folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    target = place / f"{EXTENSION}.abi3.so"
    command = [os.environ.get("CXX", "g++"), "-shared", *map(str, objects), "-o", str(target), *libraries]
    subprocess.run(command, check=True)
    (place / "_ops.py").write_text(OPS, encoding="utf-8")
    (place / "metadata.json").write_text(METADATA % EXTENSION, encoding="utf-8")


def main() -> int:
    """Generate, build, run. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="a folder that is not there yet, to keep what is built")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.out or Path(temporary) / "hub"
        build = generate(work / "sources")
        (work / "built").mkdir()
        build_variant(work / "sources", build, work / "built" / PACKAGE)
        environment = {**os.environ, "PYTHONPATH": str(work)}
        return subprocess.run([sys.executable, "-c", USE], env=environment, cwd=work).returncode


if __name__ == "__main__":
    raise SystemExit(main())
