"""The Triton kernels run through the cases of the ops, by Triton's interpreter, in a process of their own.

The interpreter is chosen where a kernel is decorated, so a process that compiles kernels cannot interpret them. It
shows what the kernels mean: not their races, their alignment or their use of registers.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.timeout(1200),
]


def run(*arguments):
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "INSTRUCTRL_TEST_PLUGIN": "triton_plugin",
        "PYTHONPATH": os.pathsep.join([str(TESTS / "triton_interpreted"), *filter(None, sys.path)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout", "600", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=TESTS.parent)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return int(result.stdout.strip().splitlines()[-1].split(" passed")[0].split()[-1])


def test_every_case():
    files = [str(TESTS / "ops" / name) for name in ("test_ops_cases.py", "test_ops_sampling.py")]
    assert run(*files) > 300


def test_private_ops():
    # One program after the other, in numpy: there are no threads.
    chosen = "not same_bits and not linear_ops_hold and not schemas_in_cpp"
    assert run(str(TESTS / "ops" / "test_compiled_ops.py"), "-k", chosen) > 40


def test_what_training_code_does():
    file = str(TESTS / "ops" / "test_ops_hazards.py")
    assert run(file, "-k", "not float64 and not symbols") > 15
