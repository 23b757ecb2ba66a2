"""Commands as torchrun starts them: the whole miniature in two processes, killed, stopped, and gone on with."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torture
from launch import command, environment, torchrun

from instructrl import cli
from instructrl.runs.folder import open_folder

PROGRAM = ("-m", "instructrl.cli")
DETERMINED = ("models/**/*", "metrics.jsonl", "results.json", "state/steps.json")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    """The file of its settings: a tiny run, saved after every step."""
    folder = tmp_path_factory.mktemp("settings")
    open_folder(folder, torture.CONFIG)
    return str(folder / "config.yaml")


@pytest.fixture(scope="module")
def untouched(config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("untouched") / "run"
    found = torchrun(2, *run(folder, config))
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("report: ") == 1
    return folder


def run(folder: Path, config: str) -> tuple[str, ...]:
    return (*PROGRAM, "run", "miniature", "--config", config, "--out", str(folder))


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for pattern in DETERMINED for path in folder.glob(pattern) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def steps_done(folder: Path) -> set[str]:
    return {step["name"] for step in json.loads((folder / "state" / "steps.json").read_text())["steps"]}


def begun(folder: Path, config: str, phase: str) -> subprocess.Popen:
    """A job of two processes that has saved the first step of a phase."""
    job = subprocess.Popen(
        command(2, *run(folder, config)),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while job.poll() is None and not list((folder / "state" / phase).glob("step-*")):
        time.sleep(0.01)
    assert job.poll() is None, job.communicate()
    return job


def process(job: subprocess.Popen, rank: int) -> int:
    """The number of a process of the job."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = re.search(r"^PPid:\t(\d+)", (folder / "status").read_text(), re.MULTILINE)
            own = parent is not None and int(parent[1]) == job.pid
            if own and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"no process of rank {rank}")


def test_killed_processes_end_the_job_and_the_same_command_goes_on_to_the_same_bytes(config, untouched, tmp_path):
    folder = tmp_path / "run"
    for rank, phase in ((1, "reward_model"), (0, "ppo")):
        job = begun(folder, config, phase)
        os.kill(process(job, rank), signal.SIGKILL)
        _, error = job.communicate(timeout=60)
        assert job.returncode == 1
        said = "error: another process of the job is gone; the same command goes on from the last checkpoint"
        assert error.count(said) == 1
        assert not steps_done(folder) & {"ppo_ptx", phase}
    found = torchrun(2, *run(folder, config))
    assert found.returncode == 0, found.stderr
    assert "ppo: going on from step" in found.stderr
    assert found.stderr.count("going on from step") == 1
    assert files(folder) == files(untouched)


def test_a_signal_to_one_process_or_the_launcher_saves_and_another_number_of_processes_goes_on(
    config, untouched, tmp_path, capfd
):
    folder = tmp_path / "run"
    for phase in ("reward_model", "ppo"):
        job = begun(folder, config, phase)
        os.kill(job.pid if phase == "ppo" else process(job, 1), signal.SIGTERM)
        _, error = job.communicate(timeout=60)
        assert job.returncode != 0
        assert error.count("stopped by SIGTERM; the same command goes on from here") == 1
        assert "Error" not in error.split("Traceback")[0]
    capfd.readouterr()
    assert cli.main([*run(folder, config)[2:]]) == 0
    assert "ppo: begun with processes 2, now 1" in capfd.readouterr().err
    own, other = files(folder), files(untouched)
    assert own.keys() == other.keys()
    assert len(own["metrics.jsonl"].splitlines()) == len(other["metrics.jsonl"].splitlines())


def test_a_process_that_is_far_from_the_others_ends_too(tmp_path):
    """One is gone; the other, whom a signal alone does not end, would not need it for a long time."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, time\n"
        "from instructrl import distributed, interruption\n"
        "with distributed.joined(lambda: sys.stderr.write('it is gone\\n')), interruption.heeded():\n"
        "    if distributed.rank() == 1:\n"
        "        os._exit(9)\n"
        "    end = time.monotonic() + 100\n"
        "    while time.monotonic() < end:\n"
        "        time.sleep(0.1)\n"
    )
    started = time.monotonic()
    found = torchrun(2, str(program))
    assert time.monotonic() - started < 100  # it did not run to its end
    assert "it is gone" in found.stderr


def test_input_that_cannot_be_used_is_told_once_and_writes_nothing(tmp_path):
    folder = tmp_path / "run"
    wrong = (*PROGRAM, "sft", "--model", str(tmp_path / "none"), "--data", "none.jsonl", "--validation", "none.jsonl")
    found = torchrun(2, *wrong, "--out", str(folder))
    assert found.returncode == 1
    assert found.stderr.count("instructrl: error:") == 1
    assert f"instructrl: error: model {tmp_path / 'none'}: found no such folder" in found.stderr
    assert not folder.exists()


def test_several_processes_are_for_commands_that_run_networks(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(cli, "_say", print)
    assert cli.main(["doctor"]) == 2
    assert "doctor: found 2 processes, accepted is one" in capsys.readouterr().out


def test_several_processes_without_a_place_to_meet_are_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert cli.main(["run", "miniature", "--out", str(tmp_path / "run")]) == 2
    assert "WORLD_SIZE: found 2 processes without RANK" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
