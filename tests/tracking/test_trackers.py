"""Trackers: what they show is what `metrics.jsonl` says, whoever was killed; what fails ends nothing."""

import importlib.util
import json
import os
import shutil
import signal
from pathlib import Path

import lives
import numpy as np
import pytest
import shown
import stand_ins
from lives import EVAL, PPO, SFT, life

from instructrl.tracking import settings, tracker

NAMES = ("tensorboard", "wandb", "trackio")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    lives.make_world(folder)
    return folder


@pytest.fixture(params=[f"{kind} {name}" for kind in ("stand-in for", "real") for name in NAMES])
def kind(request, world, tmp_path, monkeypatch) -> tuple[str, bool]:
    """(name of the tracker, whether it is the real one), in a folder with models and data."""
    what, _, name = request.param.rpartition(" ")
    if what == "real" and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: make trackers-test")
    for path in world.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    # Where they keep files of their own, of this test.
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "home" / variable))
    if what != "real":
        stand_ins.install(monkeypatch)  # of the readers
    return name, what == "real"


@pytest.fixture(scope="module")
def untracked(world, tmp_path_factory) -> Path:
    """Each command once without a tracker."""
    folder, here = tmp_path_factory.mktemp("untracked"), Path.cwd()
    for path in world.iterdir():
        (folder / path.name).symlink_to(path)
    os.chdir(folder)
    for command in (SFT, PPO):
        code, said = life([*command, "--out", command[0]])
        assert code == 0, said
        Path("random").rename(f"random-{command[0]}")
    os.chdir(here)
    return folder


def of_run(name: str, folder: str) -> shown.Shown:
    return shown.of_run(name, Path(folder), Path("trackio"))


def assert_shows(name: str, folder: str) -> shown.Shown:
    """Every curve, point by point: none lacks, none stands twice."""
    found, expected = of_run(name, folder), shown.curves_of(Path(folder, "metrics.jsonl"))
    if name == "tensorboard":  # which has float32
        expected = {key: [(step, float(np.float32(x))) for step, x in points] for key, points in expected.items()}
    assert dict(found.curves) == dict(expected)
    assert found.runs == 1
    return found


def assert_same_results(folder: str, untracked: Path) -> None:
    one, other = (
        {
            path.relative_to(base): path.read_bytes()
            for base_path in ("models", "metrics.jsonl")
            for path in [base / base_path, *(base / base_path).rglob("*")]
            if path.is_file()
        }
        for base in (Path(folder), untracked / folder)
    )
    assert one == other
    assert len(one) > 5


def test_a_run_is_shown_and_is_the_same_run(kind, untracked):
    name, real = kind
    code, said = life([*PPO, "--out", "ppo", "--track", name], real=real)
    assert code == 0, said
    assert_same_results("ppo", untracked)
    assert Path("random").read_text() == (untracked / "random-ppo").read_text()
    found = assert_shows(name, "ppo")
    assert {"ppo 0", "ppo 10"} == set(found.texts)
    assert found.texts["ppo 0"].count("w1") > 2
    assert found.texts["ppo 0"] != found.texts["ppo 10"]
    assert "num_episodes" in found.config
    (profile,) = map(json.loads, Path("ppo/profile.jsonl").read_text().splitlines())
    assert found.profile["ppo/seconds"] == pytest.approx(profile["seconds"], rel=1e-6)
    assert found.profile["ppo/parts/generate"] == pytest.approx(profile["parts"]["generate"], rel=1e-6)


# Rows of this run: 4 steps, validation, 4 steps, validation. Saved after step 2, and at the end of an epoch.
@pytest.mark.parametrize("kills", [(4,), (5, 3), (9,)], ids=str)
def test_a_killed_run_goes_on_in_the_same_run_of_the_tracker(kind, kills, untracked):
    name, real = kind
    for row in kills:
        code, said = life([*SFT, "--out", "sft", "--track", name], real=real, kill_at_row=row, save_after=(2, 4))
        assert code == -signal.SIGKILL, said
    code, said = life([*SFT, "--out", "sft", "--track", name], real=real)
    assert code == 0, said
    assert_same_results("sft", untracked)
    assert_shows(name, "sft")
    assert life([*SFT, "--out", "sft", "--track", name], real=real)[0] == 0
    assert_shows(name, "sft")


def test_a_tracker_that_comes_later_has_everything(kind):
    name, real = kind
    assert life([*SFT, "--out", "sft"], kill_at_row=7, save_after=(2, 6))[0] == -signal.SIGKILL
    code, said = life([*SFT, "--out", "sft", "--track", name], real=real)
    assert code == 0, said
    assert_shows(name, "sft")


def test_fresh_is_another_run(kind):
    name, real = kind
    for more in ((), ("--fresh", "True", "--sft.epochs", "1")):
        code, said = life([*SFT, "--out", "sft", "--track", name, *more], real=real)
        assert code == 0, said
    if name == "trackio":
        assert of_run(name, "sft").runs == 2
    else:
        assert_shows(name, "sft")


def test_an_evaluation_is_shown(kind):
    name, real = kind
    for _ in range(2):
        code, said = life([*EVAL, "--out", "eval", "--track", name], real=real)
        assert code == 0, said
    found, results = of_run(name, "eval"), json.loads(Path("eval/results.json").read_text())
    assert found.results["other/win_rate"] == pytest.approx(results["models"][1]["win_rate"]["rate"], rel=1e-6)
    row = results["samples"][3]
    for text in (row["prompt"], row["responses"]["model"]["text"], row["responses"]["other"]["text"]):
        assert text in found.texts["results/samples"]
    assert found.runs == 1


# ---- failures


def fails_after(rows: int):
    """Every write of a stand-in fails once so many rows were written."""

    def prepare(patch) -> None:
        for owner, method in (
            (stand_ins.RecordWriter, "write"),
            (stand_ins.WandbRun, "log"),
            (stand_ins.TrackioRun, "log"),
        ):
            real, calls = getattr(owner, method), [0]

            def call(*args, real=real, calls=calls, **kwargs):
                calls[0] += 1
                if calls[0] > rows:
                    raise OSError(28, "No space left on device: https://me:secret@host")
                return real(*args, **kwargs)

            patch.setattr(owner, method, call)

    return prepare


@pytest.mark.parametrize("kind", [f"stand-in for {name}" for name in NAMES], indirect=True)
def test_a_tracker_that_fails_ends_nothing(kind, untracked):
    name, _ = kind
    code, said = life([*SFT, "--out", "sft", "--track", name], prepare=fails_after(6))
    assert code == 0, said
    assert_same_results("sft", untracked)
    (line,) = [line for line in said.splitlines() if "track" in line and "Trackio" not in line]
    assert line == (
        f"warning: track {name}: found [Errno 28] No space left on device: https://***@host; training goes on "
        "without it. The same command sends what is missing, where the run is not over"
    )
    assert life([*SFT, "--out", "sft", "--track", name])[0] == 0
    assert_shows(name, "sft")


@pytest.mark.parametrize("kind", ["real wandb"], indirect=True)
def test_a_wandb_whose_process_is_gone_ends_nothing(kind, untracked):
    """What a network that fails cannot do: that is in wandb's own process, which waits and tries again."""

    def prepare(patch) -> None:
        import psutil

        from instructrl.tracking.wandb_run import WandbRun

        row = WandbRun.row

        def call(self, *args):
            row(self, *args)
            for child in psutil.Process().children(recursive=True):
                child.kill()
                child.wait()

        patch.setattr(WandbRun, "row", call)

    code, said = life([*SFT, "--out", "sft", "--track", "wandb"], real=True, prepare=prepare)
    assert code == 0, said
    assert said.count("warning: track wandb: found") == 1
    assert_same_results("sft", untracked)


@pytest.mark.parametrize("kind", ["real trackio"], indirect=True)
def test_a_trackio_without_its_folder_ends_nothing(kind, untracked):
    def prepare(patch) -> None:
        from instructrl.tracking.trackio_run import TrackioRun

        start = TrackioRun.start

        def call(self):
            start(self)
            shutil.rmtree("trackio", ignore_errors=True)
            Path("trackio").write_text("")

        patch.setattr(TrackioRun, "start", call)

    code, said = life([*SFT, "--out", "sft", "--track", "trackio"], real=True, prepare=prepare)
    assert code == 0, said
    assert_same_results("sft", untracked)


@pytest.mark.parametrize("kind", ["real tensorboard"], indirect=True)
def test_a_tensorboard_on_a_full_disk_ends_nothing(kind, untracked):
    def prepare(patch) -> None:
        from instructrl.tracking.tensorboard_files import TensorBoardFiles

        new_file = TensorBoardFiles._new_file

        def full(self, room: str):
            return new_file(self, room) if room != place else open("/dev/full", "wb")

        patch.setattr(TensorBoardFiles, "_new_file", full)

    place = "sft"
    code, said = life([*SFT, "--out", "sft", "--track", "tensorboard"], real=True, prepare=prepare)
    assert code == 0, said
    assert said.count("warning: track tensorboard: found [Errno 28] No space left on device; training goes on") == 1
    assert_same_results("sft", untracked)
    place = "config"
    code, said = life([*SFT, "--out", "new", "--track", "tensorboard"], real=True, prepare=prepare)
    assert code == 2, "at the start somebody is there to be told"
    assert said.splitlines()[-1].startswith("instructrl: error: track tensorboard: found [Errno 28] No space left")


# ---- what is refused


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_is_not_installed_or_unknown_is_one_line(name, monkeypatch, tmp_path, capsys):
    from instructrl import cli

    monkeypatch.chdir(tmp_path)

    def missing(name: str) -> str:
        raise settings.importlib.metadata.PackageNotFoundError(name)

    for version in (missing, lambda name: "0.1.0", lambda name: "99.0"):
        monkeypatch.setattr(settings.importlib.metadata, "version", version)
        assert cli.main([*SFT, "--out", "sft", "--track", name]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"instructrl: error: track: found {'no package ' if version is missing else ''}{name}")
        assert f"pip install 'instructrl[{name}]'" in line
    assert not list(tmp_path.iterdir())


def test_an_identity_that_is_damaged_is_refused(tmp_path):
    (tmp_path / tracker.IDENTITY).write_text("{}")
    with pytest.raises(ValueError, match=r"tracking.json: found it damaged, accepted is the file as it was written"):
        tracker._identity(tmp_path)
