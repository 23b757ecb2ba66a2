"""What a wheel and a Hugging Face kernels package are made of; `make wheel-check` and `make hub-check` use them."""

import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import hub_check
import pytest

ROOT = Path(__file__).resolve().parent.parent
# A compiler that makes empty files: what is packed does not depend on what is in them.
COMPILER = """#!/bin/sh
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then : > "$2"; fi
    shift
done
"""
# Every module of the package by its relative imports, where there is no library beside it.
IMPORT = """
import importlib, pkgutil, sys
from elsewhere import instructrl_ops
names = [x.name for x in pkgutil.walk_packages(instructrl_ops.__path__, "elsewhere.instructrl_ops.")]
for name in names:
    if not name.startswith("elsewhere.instructrl_ops.kernels.triton."):
        importlib.import_module(name)
import torch
from elsewhere.instructrl_ops.ops import private_ops
assert private_ops.NAMESPACE == "of_this_build"
# Two numbers at a distance of 2: mean 2, variance with n - 1 of them 2.
white = instructrl_ops.advantages.masked_whiten(torch.tensor([1.0, 3.0]), torch.tensor([True, True]))
assert torch.allclose(white, torch.tensor([-1.0, 1.0]) / 2**0.5)
print(len(names), [name for name in sys.modules if name.partition(".")[0] == "instructrl"])
"""


def wheel(folder: Path, environment: dict[str, str]) -> zipfile.ZipFile:
    """The wheel that is built from an empty folder."""
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(folder)]
    command += ["build", "--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp")]
    command += ["bdist_wheel", "--bdist-dir", str(folder / "bdist"), "--dist-dir", str(folder / "dist")]
    given = {**os.environ, "INSTRUCTRL_BUILD_CUDA": "0", **environment}
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return zipfile.ZipFile(next((folder / "dist").iterdir()))


def test_a_wheel_is_for_every_python_and_has_the_library_alone(tmp_path):
    pytest.importorskip("ninja")
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER)
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    found = wheel(tmp_path, {"CXX": str(compiler)})
    assert re.search(r"instructrl-[\d.]+-py3-none-linux_\w+\.whl$", str(found.filename))
    assert [name for name in found.namelist() if name.endswith(".so")] == ["instructrl/_C_cpu.so"]
    assert {"instructrl/kernels/native/library.py", "instructrl/py.typed"} <= set(found.namelist())
    assert not [name for name in found.namelist() if not name.startswith("instructrl")]


def test_without_a_compiler_it_has_the_references(tmp_path):
    found = wheel(tmp_path, {"CXX": "", "PATH": str(tmp_path)})
    assert re.search(r"-py3-none-any\.whl$", str(found.filename))
    assert not [name for name in found.namelist() if name.endswith(".so")]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    """The folder of a kernels package, and its build.toml."""
    out = tmp_path_factory.mktemp("hub") / "package"
    return out, hub_check.generate(out, "--repo-id", "someone/ops")


def test_build_toml_lists_every_source(package):
    out, build = package
    # The fields of edition 5; others are refused there.
    assert set(build) == {"general", "torch", "kernel"}
    assert set(build["general"]) == {"name", "version", "edition", "license", "backends", "hub"}
    assert build["general"]["hub"] == {"repo-id": "someone/ops"}
    assert set(build["torch"]) == {"include", "src", "cxx-flags", "stable-abi"}
    (kernel,) = build["kernel"].values()
    assert set(kernel) == {"backend", "depends", "include", "cuda-capabilities", "src"}
    assert re.fullmatch(r"[a-z][-a-z0-9]*[a-z0-9]", build["general"]["name"])
    assert (out / "torch-ext" / build["general"]["name"].replace("-", "_") / "__init__.py").exists()
    listed = {*build["torch"]["src"], *kernel["src"]}
    assert not [name for name in listed if not (out / name).is_file()]
    ours = {
        str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*") if path.suffix in (".cpp", ".cu", ".h")
    }
    elsewhere = {"csrc/bindings.cpp", "csrc/python_module.cpp"}
    assert listed - {"torch-ext/torch_binding.cpp"} == ours - elsewhere
    oldest = re.findall(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert set(build["torch"]["stable-abi"].values()) == set(oldest)


def test_nothing_is_written_over(package):
    with pytest.raises(subprocess.CalledProcessError) as told:
        hub_check.generate(package[0])
    assert "accepted is a folder that is not there yet" in told.value.stderr


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler is here")
def test_a_source_compiles_by_the_listed_flags(package):
    import torch

    out, build = package
    source = "torch-ext/torch_binding.cpp"
    assert source in build["torch"]["src"]
    command = hub_check.compile_command(out, build, source, Path(torch.__file__).parent / "include")
    done = subprocess.run([*command, "-fsyntax-only", "-Wall", "-Werror"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_its_python_lies_anywhere(package, tmp_path):
    out, _ = package
    place = tmp_path / "elsewhere" / "instructrl_ops"
    shutil.copytree(out / "torch-ext" / "instructrl_ops", place)
    shutil.rmtree(place / "kernels" / "native")
    (place / "_ops.py").write_text('def add_op_namespace_prefix(name):\n    return "of_this_build::" + name\n')
    done = subprocess.run([sys.executable, "-c", IMPORT], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    count, others = done.stdout.split(maxsplit=1)
    assert int(count) > 30
    assert others.strip() == "[]"
