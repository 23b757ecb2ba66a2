"""Every row of the table of bad inputs: one line that says what was found and what is accepted, exit code 2, and
nothing written, removed or changed."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import accepted
import pytest
import render
import rows_ops
import rows_ops_advantages
import rows_ops_ranking
import rows_python
from table import STEPS, contents, make_world, matches

from instructrl import cli
from instructrl.commands import options
from instructrl.runs.named import RUNS

PREFIX, SUFFIX = "instructrl: error: ", " (--debug shows where)"
ROWS = [row for _, rows in render.FAMILIES for row in rows]
OP_ROWS = [*rows_ops.ROWS, *rows_ops_advantages.ROWS, *rows_ops_ranking.ROWS]
SUBPROCESSES = ("word for a number", "truncated gzip", "unknown architecture")


@pytest.fixture(scope="session")
def good_world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "world"
    folder.mkdir()
    make_world(folder)
    return folder


@pytest.fixture
def world(good_world, tmp_path, monkeypatch) -> Path:
    """A folder of its own with right input, the working folder of the test."""
    folder = tmp_path / "world"
    shutil.copytree(good_world, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    return folder


def only_line(stderr: str) -> str:
    """The message of the one line that there is."""
    assert stderr.startswith(PREFIX), stderr
    assert stderr.endswith("\n")
    assert stderr.count("\n") == 1, stderr
    return stderr[len(PREFIX) : -1].removesuffix(SUFFIX)


def test_the_table_is_long_and_its_rows_differ():
    assert len(ROWS) + len(OP_ROWS) >= 80
    assert len({(row.shown, row.what) for row in ROWS}) == len(ROWS)
    for row in [*ROWS, *OP_ROWS, *rows_python.ROWS]:
        assert any(
            words in row.message for words in (" accepted ", "did you mean", "needs", "argument", "missing, required")
        ), row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.step} {row.what}".strip())
def test_bad_input(row, world, capfd):
    row.make()
    before = contents(world)
    capfd.readouterr()
    assert cli.main(row.arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    found = only_line(captured.err)
    assert matches(row.message, found), found
    assert contents(world) == before


@pytest.mark.parametrize("row", [row for row in ROWS if row.what in SUBPROCESSES], ids=lambda row: row.what)
def test_bad_input_in_a_process_of_its_own(row, world):
    row.make()
    before = contents(world)
    command = [sys.executable, "-m", "instructrl.cli", *row.arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert matches(row.message, only_line(found.stderr))
    assert contents(world) == before


@pytest.mark.parametrize("step", ["sft", "rm", "ppo", "eval", "prepare", "report"])
def test_the_right_input_is_accepted(step, world, capfd):
    """Otherwise a row could fail for another reason than its own, and nothing could be overwritten."""
    before = contents(world)
    assert cli.main(shlex.split(STEPS[step])) == 0, capfd.readouterr().err
    assert contents(world) != before


def test_the_right_files_are_accepted(world):
    """All steps would take minutes: the input is read, which is what a row of `run files` makes fail."""
    words = shlex.split(STEPS["files"].replace("--out out --fresh", ""))[2:]
    named = RUNS["files"]
    config = options.parse(named.config, words, program="p", description="d")
    assert len(named.read(config).material.test) == 12


@pytest.mark.parametrize("step", ["sft", "rm", "ppo", "eval"])
def test_a_new_folder_is_not_made(step, world):
    Path("rows.jsonl").write_text('{"prompt": 3}\n')
    assert cli.main(shlex.split(f"{STEPS[step]} --data rows.jsonl --out new/run")) == 2
    assert not Path("new").exists()


def test_debug_shows_where(world):
    with pytest.raises(ValueError, match="found no such file"):
        cli.main(["--debug", "data", "check", "prompts", "nowhere.jsonl"])


def test_several_bad_rows_are_a_line_each(world, capfd):
    Path("rows.jsonl").write_text('{"prompt": 3}\n{"prompt": "w1"}\n{}\n')
    assert cli.main(["data", "check", "prompts", "rows.jsonl"]) == 2
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith(f"{PREFIX}rows.jsonl:1: prompt: found int 3")
    assert second.startswith(f"{PREFIX}rows.jsonl:3: prompt: found the columns (none)")


@pytest.mark.parametrize("row", OP_ROWS, ids=lambda row: f"{row.call} {row.what}")
def test_bad_arguments_of_an_op(row):
    with pytest.raises((ValueError, TypeError)) as caught:
        row.run()
    assert matches(row.message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("row", rows_python.ROWS, ids=lambda row: row.what)
def test_a_bad_call_from_python(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError)) as caught:
        row.run()
    assert matches(row.message, str(caught.value)), str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_page_is_up_to_date():
    page = Path(__file__).parents[2] / "docs/bad_input.md"
    assert page.read_text(encoding="utf-8") == render.page(), "python tests/bad_input/render.py writes it"


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("row", accepted.ROWS, ids=lambda row: row.what)
def test_what_is_accepted(row):
    row.check()
