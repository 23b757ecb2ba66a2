"""The CUDA kernels run through the cases of the ops, on the CPU, under sanitizers, in several thread orders."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import host_library
import pytest

TESTS = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.skipif(shutil.which(host_library.compiler()) is None, reason="no C++ compiler is here"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def library(objects):
    return host_library.build(objects)


def run(library, schedule, *arguments):
    """pytest in a process that starts with the sanitizers; one thread, because a launch is one thread's work."""
    environment = host_library.environment(schedule) | {
        "INSTRUCTRL_HOST_LIBRARY": str(library),
        "INSTRUCTRL_TEST_PLUGIN": "cuda_on_host_plugin",
        "PYTHONPATH": os.pathsep.join([str(TESTS / "cuda_on_host"), *filter(None, sys.path)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout", "600", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=TESTS.parent)


def passed(result):
    """The number of tests that passed; raises where one did not."""
    last = result.stdout.strip().splitlines()[-1:]
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return int(last[0].split(" passed")[0].split()[-1])


def test_every_case(library):
    files = [str(TESTS / "ops" / name) for name in ("test_ops_cases.py", "test_ops_sampling.py")]
    assert passed(run(library, "round", *files)) > 300


def test_private_ops(library):
    chosen = "not linear_ops_hold and not schemas_in_cpp"
    assert passed(run(library, "round", str(TESTS / "ops" / "test_compiled_ops.py"), "-k", chosen)) > 50


@pytest.mark.parametrize("schedule", ["random:1", "random:2", "ahead:0", "ahead:1"])
def test_cases_in_another_order_of_threads(library, schedule):
    chosen = "float32 and not 50257 and not linear"
    assert passed(run(library, schedule, str(TESTS / "ops" / "test_ops_cases.py"), "-k", chosen)) > 60


def test_what_training_code_does(library):
    file = str(TESTS / "ops" / "test_ops_hazards.py")
    assert passed(run(library, "round", file, "-k", "not float64 and not symbols")) > 15
