"""The compiled library by itself: torch loads it, it has nothing of Python in it, and it says how it was built."""

import importlib.util
import platform
import shutil
import subprocess
import sys

import pytest
from instructrl.kernels.native import library

from instructrl import kernels

pytestmark = pytest.mark.skipif(kernels.why_missing("native") is not None, reason=str(kernels.why_missing("native")))
# Three counted numbers, 1, 2 and 6: mean 3, variance with n - 1 of them 7.
ALONE = """
import sys
import torch
torch.ops.load_library(sys.argv[1])
whiten = torch.ops.instructrl._native_masked_whiten
x, mask = torch.tensor([1.0, 2.0, 9.0, 6.0]), torch.tensor([True, True, False, True])
assert torch.allclose(whiten(x, mask, None, True, 1, 0.0, 0), torch.tensor([-2.0, -1.0, 0.0, 3.0]) / 7**0.5)
try:
    whiten(x.long(), mask, None, True, 1, 0.0, 0)
except RuntimeError as error:
    print(error)
assert not any(name.partition(".")[0] == "instructrl" for name in sys.modules)
"""


def test_torch_loads_it_from_anywhere_and_its_errors_arrive(tmp_path):
    path = shutil.copy(library.CPU, tmp_path / "moved.so")
    done = subprocess.run([sys.executable, "-c", ALONE, path], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "expected a floating-point tensor" in done.stdout


def test_there_is_nothing_of_python_in_it():
    content = library.CPU.read_bytes()
    assert b"aoti_torch_library_def" in content
    assert not [name for name in (b"PyInit_", b"PyErr_", b"PyObject", b"libpython", b"pybind11") if name in content]


def test_what_it_says_of_itself():
    info = library.build_info()
    assert info["torch_target"] == "2.10"
    assert info["instruction_set"] in info["instruction_sets"].split()
    assert info["instruction_sets"].split()[-1] == "portable"


def test_the_python_module_says_the_same():
    if importlib.util.find_spec("instructrl._C") is None:
        pytest.skip("instructrl._C is not built: pybind11 was not here, or this is no build in place")
    from instructrl import _C

    found = _C.build_info()
    assert found.pop("python") == platform.python_version()
    assert found.pop("pybind11")
    found["instruction_sets"] = " ".join(found["instruction_sets"])
    assert found == library.build_info()
