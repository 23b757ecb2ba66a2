"""The Triton kernels run through the cases of the ops, by Triton's interpreter, in a process of their own.

The interpreter is chosen where a kernel is decorated, so a process that compiles kernels cannot interpret them. It
shows what the kernels mean: not their races, their alignment or their use of registers.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from pytest_in_turn import numbers_passed

TESTS = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.timeout(1200),
]


def run(*runs):
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "INSTRUCTRL_TEST_PLUGIN": "triton_plugin",
        "PYTHONPATH": os.pathsep.join([str(TESTS / "triton_interpreted"), *filter(None, sys.path)]),
        "OMP_NUM_THREADS": "1",
    }
    return numbers_passed([({}, arguments) for arguments in runs], environment)


def test_every_case():
    (count,) = run(["tests/ops/test_ops_cases.py", "tests/ops/test_ops_sampling.py"])
    assert count > 300


def test_private_ops_and_what_training_code_does():
    # One program after the other, in numpy: there are no threads.
    private = ["tests/ops/test_compiled_ops.py", "-k", "not same_bits and not linear_ops_hold and not schemas_in_cpp"]
    counts = run(private, ["tests/ops/test_ops_hazards.py", "-k", "not float64 and not symbols"])
    assert counts[0] > 40
    assert counts[1] > 15
