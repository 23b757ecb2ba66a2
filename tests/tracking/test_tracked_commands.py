"""`--track` on the commands: what is shown of real steps, and that no secret is written anywhere."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import lives
import pytest
import shown
from lives import EVAL, NAMES, PPO, RM, SFT, life
from shown import assert_shows

from instructrl.tracking.rows import results_of

REAL = [f"real {name}" for name in NAMES]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    lives.make_world(folder)
    return folder


@pytest.fixture
def track(tracker, world) -> tuple[str, bool]:
    """The tracker, in a working folder with models and data."""
    for path in world.iterdir():
        Path(path.name).symlink_to(path)
    return tracker


@pytest.fixture(scope="module")
def untracked(world, networks, tmp_path_factory) -> Callable[[str], Path]:
    """(command) -> its folder, without a tracker."""
    folder = tmp_path_factory.mktemp("untracked")
    for path in world.iterdir():
        (folder / path.name).symlink_to(path)

    def done(name: str) -> Path:
        if not (folder / name).exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("XDG_CACHE_HOME", networks)
                patch.chdir(folder)
                code, said = life([*{"sft": SFT, "ppo": PPO}[name], "--out", name])
                assert code == 0, said
        return folder / name

    return done


def determined(folder: Path) -> dict[Path, bytes]:
    paths = [*folder.glob("models/**/*"), folder / "metrics.jsonl"]
    found = {path.relative_to(folder): path.read_bytes() for path in paths if path.is_file()}
    assert len(found) > 5
    return found


@pytest.mark.parametrize("tracker", ["stand-in for tensorboard", *REAL], indirect=True)
def test_ppo_is_shown_with_its_rollouts_and_is_the_same_run(track, untracked):
    name, real = track
    code, said = life([*PPO, "--out", "ppo", "--track", name], real=real)
    assert code == 0, said
    assert determined(Path("ppo")) == determined(untracked("ppo"))
    found = assert_shows(name, Path("ppo"))
    assert set(found.texts) == {"ppo 0", "ppo 10"}
    prompts = [json.loads(line)["prompt"] for line in Path("prompts.jsonl").read_text().splitlines()]
    assert sum(prompt in found.texts["ppo 0"] for prompt in prompts) >= 2
    assert "num_episodes" in found.config
    (profile,) = map(json.loads, Path("ppo/profile.jsonl").read_text().splitlines())
    assert found.profile["ppo/seconds"] == pytest.approx(profile["seconds"], rel=1e-6)
    assert found.profile["ppo/parts/generate"] == pytest.approx(profile["parts"]["generate"], rel=1e-6)


# Rows: 4 steps, validation, 4 steps, validation.
@pytest.mark.parametrize("tracker", REAL, indirect=True)
@pytest.mark.parametrize("kills", [(4,), (5, 3), (9,)], ids=str)
def test_a_killed_command_goes_on_in_the_same_run_of_the_tracker(track, kills, untracked):
    name, _ = track
    for row in kills:
        code, said = life([*SFT, "--out", "sft", "--track", name], real=True, kill_at_row=row, save_after=(2, 4))
        assert code == -signal.SIGKILL, said
    for _ in range(2):
        code, said = life([*SFT, "--out", "sft", "--track", name], real=True)
        assert code == 0, said
        assert determined(Path("sft")) == determined(untracked("sft"))
        assert_shows(name, Path("sft"))


@pytest.mark.parametrize("tracker", REAL, indirect=True)
def test_fresh_is_another_run(track):
    name, _ = track
    for more in ((), ("--fresh", "True", "--sft.epochs", "1")):
        code, said = life([*SFT, "--out", "sft", "--track", name, *more], real=True)
        assert code == 0, said
    if name == "trackio":
        assert shown.of_run(name, Path("sft"), Path("trackio")).runs == 2
    else:
        assert_shows(name, Path("sft"))


@pytest.mark.parametrize("tracker", ["stand-in for tensorboard", *REAL], indirect=True)
def test_an_evaluation_is_shown(track):
    name, real = track
    for _ in range(2):
        code, said = life([*EVAL, "--out", "eval", "--track", name], real=real)
        assert code == 0, said
    found, results = (
        shown.of_run(name, Path("eval"), Path("trackio")),
        json.loads(Path("eval/results.json").read_text()),
    )
    assert found.results["other/win_rate"] == pytest.approx(results["models"][1]["win_rate"]["rate"], rel=1e-6)
    row = results["samples"][3]
    for text in (row["prompt"], row["responses"]["model"]["text"], row["responses"]["other"]["text"]):
        assert text in found.texts["results/samples"]
    assert found.runs == 1


@pytest.mark.parametrize("tracker", REAL, indirect=True)
def test_a_reward_model_is_shown(track):
    name, _ = track
    code, said = life([*RM, "--out", "rm", "--track", name], real=True)
    assert code == 0, said
    assert ("reward_model", "accuracy") in assert_shows(name, Path("rm")).curves


# ---- failures of the real ones


@pytest.mark.parametrize("tracker", ["real wandb"], indirect=True)
def test_a_wandb_whose_process_is_gone_ends_nothing(track, untracked):
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
    assert determined(Path("sft")) == determined(untracked("sft"))


@pytest.mark.parametrize("tracker", ["real wandb"], indirect=True)
def test_a_wandb_without_a_key_is_an_error(track, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    code, said = life([*SFT, "--out", "sft", "--track", "wandb"], real=True)
    assert code == 2
    assert "instructrl: error: track wandb: found No API key configured" in said
    assert "accepted is a server that answers to a key (wandb login), or WANDB_MODE=offline" in said


@pytest.mark.parametrize("tracker", ["real trackio"], indirect=True)
def test_a_trackio_without_its_folder_ends_nothing(track, untracked):
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
    assert determined(Path("sft")) == determined(untracked("sft"))


@pytest.mark.parametrize("tracker", ["real tensorboard"], indirect=True)
def test_a_tensorboard_on_a_full_disk_ends_nothing(track, untracked):
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
    assert determined(Path("sft")) == determined(untracked("sft"))
    place = "config"
    code, said = life([*SFT, "--out", "new", "--track", "tensorboard"], real=True, prepare=prepare)
    assert code == 2, "at the start somebody is there to be told"
    assert said.splitlines()[-1].startswith("instructrl: error: track tensorboard: found [Errno 28] No space left")


# ---- secrets

SECRET = "s3cr3t"
ENVIRONMENT = {"HF_TOKEN": f"hf_{SECRET}-1", "WANDB_API_KEY": SECRET.ljust(40, "0"), "DATABASE_PASSWORD": f"{SECRET}-2"}


def told(folder: Path) -> list[Path]:
    """Files that hold the secret, or are called by it."""
    names = [path for path in folder.rglob("*") if path.name != f"me:{SECRET}@host"]
    return [path for path in names if SECRET in path.name or (path.is_file() and SECRET.encode() in path.read_bytes())]


@pytest.mark.parametrize("tracker", ["stand-in for tensorboard", *REAL], indirect=True)
def test_no_secret_is_written_or_said(track, monkeypatch, tmp_path):
    name, real = track
    for variable, value in ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    folder = Path(f"https:/me:{SECRET}@host")
    folder.mkdir(parents=True)
    shutil.copy("demonstrations.jsonl", folder)
    address = f"https://me:{SECRET}@host/demonstrations.jsonl"
    code, said = life([*SFT, "--data", address, "--out", "sft", "--track", name], real=real)
    assert code == 0, said
    assert "https://***@host/demonstrations.jsonl" in Path("sft/config.yaml").read_text()
    code, more = life([*SFT, "--data", address, "--out", "sft", "--track", name, "--seed", "3"], real=real)
    assert code == 2, more
    nowhere = f"https://me:{SECRET}@nowhere/d.jsonl"
    for debug in ((), ("--debug",)):
        code, last = life([*debug, *SFT, "--data", nowhere, "--out", "new", "--track", name], real=real)
        assert code == (3 if debug else 2)
        assert "***@nowhere/d.jsonl: found no such file" in last
        more += last
    assert SECRET not in said + more
    assert not told(tmp_path)


def test_what_public_sets_say_is_among_the_numbers_of_a_run():
    row = {"model": "SFT", "prompt": "QA", "shots": 2, "metric": "true", "group": "", "value": 0.25}
    rows = [row, {**row, "group": "law", "value": 1}, {**row, "prompt": "", "shots": 0, "value": None}]
    results = {
        "models": [{"name": "SFT", "score": 2}],
        "samples": [],
        "suites": [{"suite": "truthfulqa", "rows": rows}],
    }
    assert results_of(results).numbers == {"SFT/score": 2.0, "SFT/truthfulqa, QA, 2-shot, true": 0.25}
