"""The kernels of the CPU for the instruction sets that this machine has and would not choose by itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from instructrl import kernels

pytestmark = pytest.mark.skipif(kernels.why_missing("native") is not None, reason=str(kernels.why_missing("native")))
TESTS = Path(__file__).parent
NAME = "from instructrl.kernels.native import library; print(library.build_info()['instruction_set'])"


def run(instruction_set, *arguments):
    environment = {**os.environ, "INSTRUCTRL_CPU_ISA": instruction_set, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("instruction_set", ["portable", "avx2"])
def test_every_case(instruction_set):
    found = run(instruction_set, "-c", NAME)
    if "this machine can run" in found.stderr:
        pytest.skip(found.stderr.splitlines()[-1])
    assert found.stdout.strip() == instruction_set
    files = [str(TESTS / f"test_ops_{name}.py") for name in ("cases", "sampling")]
    result = run(instruction_set, "-m", "pytest", "-p", "no:cacheprovider", *files, "-k", "native")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert int(result.stdout.strip().splitlines()[-1].split(" passed")[0].split()[-1]) > 400


def test_an_instruction_set_that_is_none_is_named():
    found = run("sse9", "-c", NAME)
    assert found.returncode != 0
    assert "INSTRUCTRL_CPU_ISA: found 'sse9', this machine can run" in found.stderr
