"""Runs pytest several times in one process: starting one, with torch and a backend, takes longer than many tests.

    python tests/pytest_in_turn.py '[[{"VARIABLE": "value"}, ["arguments", "of", "pytest"]], ...]'

The last line that it prints is a list of how many tests passed in each run. Ends where one fails, with its exit code.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_OPTIONS = ("-p", "no:cacheprovider", "--timeout", "600")


class _Passed:
    count = 0

    def pytest_runtest_logreport(self, report):
        self.count += report.when == "call" and report.passed


def numbers_passed(runs: list[tuple[dict[str, str], list[str]]], environment: dict[str, str]) -> list[int]:
    """How many tests passed in each run, all of them in a new process; raises where one did not."""
    command = [sys.executable, __file__, json.dumps(runs)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return json.loads(result.stdout.strip().splitlines()[-1])


def main() -> int:
    counts = []
    for variables, arguments in json.loads(sys.argv[1]):
        os.environ.update(variables)
        passed = _Passed()
        code = pytest.main([*_OPTIONS, *arguments], plugins=[passed])
        if code:
            return int(code)
        counts.append(passed.count)
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
