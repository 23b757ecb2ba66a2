"""The host execution of CUDA kernels finds what it is there to find: faults.cu has one faulty kernel for each."""

import json
import subprocess
import sys
from pathlib import Path

import host_library
import pytest

# Each kind in each order of threads, in one process; then in a copy of the process what ends it.
_RUN = """
import json, os, sys
import torch
library, folder, schedules, kinds, aborts = json.loads(sys.argv[1])
torch.ops.load_library(library)
x = torch.arange(64, dtype=torch.float32)
for schedule in schedules:
    os.environ["INSTRUCTRL_HOST_SCHEDULE"] = schedule
    for kind in kinds:
        try:
            y = torch.ops.instructrl._cuda_on_host_fault(x, kind)
            print("right" if torch.equal(y, x.flip(0)) else "wrong")
        except RuntimeError as error:
            print(str(error).splitlines()[0])
os.environ["INSTRUCTRL_HOST_SCHEDULE"] = "round"
for kind in aborts:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.path.join(folder, kind), os.O_CREAT | os.O_WRONLY), 2)
        torch.ops.instructrl._cuda_on_host_fault(x, kind)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
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


@pytest.fixture(scope="module")
def said(library, tmp_path_factory):
    """What each schedule says of each fault that does not end the process; and exit code and errors of the others."""
    kinds, folder = ("none", *_WRONG, *_ERRORS, "none"), tmp_path_factory.mktemp("said")
    arguments = json.dumps([str(library), str(folder), _SCHEDULES, kinds, list(_ABORTS)])
    command = [sys.executable, "-c", _RUN, arguments]
    result = subprocess.run(command, env=host_library.environment(), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = iter(result.stdout.splitlines())
    found = {schedule: {kind: next(lines) for kind in kinds} for schedule in _SCHEDULES}
    ended = {kind: (int(next(lines)), (folder / kind).read_text(encoding="utf-8")) for kind in _ABORTS}
    return found, ended


@pytest.fixture(scope="module")
def findings(said):
    return said[0]


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
def test_a_sanitizer_ends_the_process(said, kind):
    code, errors = said[1][kind]
    assert code != 0
    assert _ABORTS[kind] in errors
