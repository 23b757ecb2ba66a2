"""The host execution of CUDA kernels finds what it is there to find: faults.cu has one faulty kernel for each."""

import subprocess
import sys
from pathlib import Path

import host_library
import pytest

_RUN = """
import sys
import torch
torch.ops.load_library(sys.argv[1])
x = torch.arange(64, dtype=torch.float32)
for kind in sys.argv[2:]:
    try:
        y = torch.ops.instructrl._cuda_on_host_fault(x, kind)
        print("right" if torch.equal(y, x.flip(0)) else "wrong")
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""
_SCHEDULES = ("round", "random:0", "ahead:0", "ahead:1")
_WRONG = ("no barrier", "no barrier behind a shuffle", "unwritten shared")
_ERRORS = {
    "barrier in a branch": "waits for ever",
    "different barriers": "different barriers",
    "shuffle after return": "thread 63 has returned",
    "mask without caller": "not in the mask",
    "source outside of mask": "reads lane 20 outside of the mask",
}
_ABORTS = {
    "behind shared": "AddressSanitizer: heap-buffer-overflow",
    "behind static shared": "AddressSanitizer: global-buffer-overflow",
    "behind output": "AddressSanitizer: heap-buffer-overflow",
    "misaligned vector": "misaligned address",
}


@pytest.fixture(scope="module")
def library(objects):
    return host_library.build(objects, [Path(__file__).with_name("faults.cu")])


def run(library, schedule, *kinds):
    command = [sys.executable, "-c", _RUN, str(library), *kinds]
    return subprocess.run(command, env=host_library.environment(schedule), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def findings(library):
    """What each schedule says of each fault that does not end the process, and of a kernel without one."""
    kinds = ("none", *_WRONG, *_ERRORS, "none")
    found = {}
    for schedule in _SCHEDULES:
        result = run(library, schedule, *kinds)
        assert result.returncode == 0, result.stderr
        found[schedule] = dict(zip(kinds, result.stdout.splitlines(), strict=True))
    return found


def test_a_right_kernel_runs_also_after_errors(findings):
    assert {found["none"] for found in findings.values()} == {"right"}


@pytest.mark.parametrize("kind", _WRONG)
def test_some_schedule_gives_a_wrong_result(findings, kind):
    assert "wrong" in {found[kind] for found in findings.values()}


@pytest.mark.parametrize("kind", _ERRORS)
@pytest.mark.parametrize("schedule", _SCHEDULES)
def test_every_schedule_reports_an_error(findings, kind, schedule):
    assert "block 0, thread" in findings[schedule][kind]
    assert _ERRORS[kind] in findings[schedule][kind]


@pytest.mark.parametrize("kind", _ABORTS)
def test_a_sanitizer_ends_the_process(library, kind):
    result = run(library, "round", kind)
    assert result.returncode != 0
    assert _ABORTS[kind] in result.stderr
