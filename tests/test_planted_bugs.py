"""The list of planted_bugs.py fits the sources, and the table of what catches each has a line for every bug."""

import planted_bugs
import pytest

TABLE = (planted_bugs.ROOT / "benchmarks/results/planted_bugs.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("bug", planted_bugs.BUGS, ids=lambda bug: f"{bug.backend}: {bug.kind}")
def test_the_bug_can_be_planted_and_was_caught(bug):
    assert (planted_bugs.ROOT / bug.file).read_text(encoding="utf-8").count(bug.before) == 1
    lines = [line for line in TABLE.splitlines() if line.startswith(f"| {bug.backend} |") and f"| {bug.kind} |" in line]
    assert len(lines) == 1
    assert "not caught" not in lines[0]
