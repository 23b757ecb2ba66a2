"""The CUDA kernels run through the cases of the ops, on the CPU, under sanitizers, in several thread orders."""

import os
import shutil
import sys
from pathlib import Path

import host_library
import pytest
from pytest_in_turn import numbers_passed

TESTS = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.skipif(shutil.which(host_library.compiler()) is None, reason="no C++ compiler is here"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def library(objects):
    return host_library.build(objects)


def run(library, *runs):
    """Runs of pytest in a process with the sanitizers; one thread, because a launch is one thread's work."""
    environment = host_library.environment() | {
        "INSTRUCTRL_HOST_LIBRARY": str(library),
        "INSTRUCTRL_TEST_PLUGIN": "cuda_on_host_plugin",
        "PYTHONPATH": os.pathsep.join([str(TESTS / "cuda_on_host"), *filter(None, sys.path)]),
        "OMP_NUM_THREADS": "1",
    }
    return numbers_passed(runs, environment)


def test_every_case_private_ops_and_what_training_code_does(library):
    cases = ["tests/ops/test_ops_cases.py", "tests/ops/test_ops_sampling.py"]
    private = ["tests/ops/test_compiled_ops.py", "-k", "not linear_ops_hold and not schemas_in_cpp"]
    hazards = ["tests/ops/test_ops_hazards.py", "-k", "not float64 and not symbols"]
    counts = run(library, *(({"INSTRUCTRL_HOST_SCHEDULE": "round"}, x) for x in (cases, private, hazards)))
    assert counts[0] > 300
    assert counts[1] > 50
    assert counts[2] > 15


def test_cases_in_other_orders_of_threads(library):
    cases = ["tests/ops/test_ops_cases.py", "-k", "float32 and not 50257 and not linear"]
    orders = ("random:1", "random:2", "ahead:0", "ahead:1")
    assert min(run(library, *(({"INSTRUCTRL_HOST_SCHEDULE": order}, cases) for order in orders))) > 60
