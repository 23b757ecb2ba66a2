"""Checkpoints: whole or not there, never believed when damaged, and never anything but numbers."""

import errno
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from probes import assert_same_state, quiet_log
from tiny import comparisons, demonstrations, lively_policy, tiny_encoder, tiny_reward_model

from instructrl import interruption
from instructrl.trainers import checkpoints as module
from instructrl.trainers.checkpoints import Checkpoints, fingerprint
from instructrl.trainers.log import Phase
from instructrl.trainers.reward_model import RewardModelTrainer
from instructrl.trainers.settings import AdamConfig, CheckpointConfig, RewardModelConfig
from instructrl.trainers.state_files import read_state, write_state
from instructrl.types import Comparison

ENCODER = tiny_encoder()
EACH = CheckpointConfig(every_seconds=0, keep=2)
FACTS = dict(metrics_bytes=7, inputs="data")


def trainer(count: int = 6, seed: int = 0, width_seed: int = 0) -> RewardModelTrainer:
    config = RewardModelConfig(adam=AdamConfig(lr=1e-3), batch_size=2, epochs=2)
    reward_model = tiny_reward_model(lively_policy(ENCODER, width_seed))
    return RewardModelTrainer(reward_model, comparisons(count), ENCODER, config, seed=seed)


def store(folder: Path, warnings: list[str] | None = None, config: CheckpointConfig = EACH) -> Checkpoints:
    return Checkpoints(folder, config, (warnings if warnings is not None else []).append)


@pytest.fixture
def saved(tmp_path) -> Path:
    """Checkpoints of steps 1 and 2."""
    for step in (1, 2):
        store(tmp_path / "c").save({"x": torch.arange(100.0) * step}, step=step, **FACTS)
    return tmp_path / "c"


def test_a_state_comes_back_bit_for_bit(tmp_path):
    tied = torch.randn(3, 4)
    state = {
        "tied": {"a": tied, "b": tied, "part": tied[0]},
        "numbers": [1, -(2**60), 0.1, 1e-310, True, None, "text"],
        0: {1: (torch.tensor(float("nan")), torch.zeros(0, 3), torch.tensor([1], dtype=torch.int64))},
        "half": tied.bfloat16().t(),
    }
    write_state(tmp_path, state)
    found = read_state(tmp_path)
    assert found["numbers"] == state["numbers"]
    assert found["tied"]["a"].data_ptr() == found["tied"]["b"].data_ptr()
    assert torch.equal(found["tied"]["part"], tied[0])
    assert torch.equal(found["half"], state["half"])
    assert isinstance(found[0][1], tuple)
    assert found[0][1][0].isnan()
    assert found[0][1][1].shape == (0, 3)
    assert found[0][1][2].dtype == torch.int64


@pytest.mark.parametrize("value", [object(), {1.5: 1}, {"x": lambda: 1}])
def test_what_is_no_number_is_not_written(tmp_path, value):
    with pytest.raises(TypeError, match="accepted are"):
        write_state(tmp_path, value)


def test_a_trainer_continues_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path):
    whole = trainer()
    whole.run(quiet_log(tmp_path / "whole"))
    first, log = trainer(), quiet_log(tmp_path / "run")
    first.run(log, until=4, checkpoints=store(tmp_path / "c"))
    found = store(tmp_path / "c").newest()
    assert found is not None
    assert found.step == 4
    second = trainer()
    second.resume(found)
    log.rewind(found.metrics_bytes)
    second.run(log)
    assert_same_state(whole, second)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_so_many_are_kept(tmp_path):
    trainer().run(quiet_log(tmp_path), checkpoints=store(tmp_path / "c"))
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["step-00000005", "step-00000006"]


def test_a_step_that_is_saved_again_does_not_touch_what_was_saved(saved, monkeypatch):
    """Its state may differ, as an epoch's does when it has been validated; a kill in between leaves the first."""

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match=r"intact before it: step-00000002, step-00000001"):
        store(saved).save({"x": torch.ones(1)}, step=2, **FACTS)
    monkeypatch.undo()
    store(saved).save({"x": torch.ones(1)}, step=2, **FACTS)
    assert sorted(path.name for path in saved.iterdir()) == ["step-00000002", "step-00000002-0001"]
    found = store(saved).newest()
    assert found is not None
    assert torch.equal(found.state["x"], torch.ones(1))


def test_damaged_ones_that_a_run_went_back_behind_are_not_what_is_kept(saved):
    store(saved).save({"x": 3}, step=20, **FACTS)
    truncate_state(saved / "step-00000020")
    store(saved).save({"x": 4}, step=3, **FACTS)
    assert sorted(path.name for path in saved.iterdir()) == ["step-00000002", "step-00000003"]


def truncate_state(folder: Path) -> None:
    os.truncate(folder / "state.json", 3)


def test_leftovers_of_kills_do_not_pile_up(saved):
    for step in (5, 7):
        (saved / f"writing-{step:08d}").mkdir()
    store(saved).save({"x": 1}, step=9, **FACTS)
    assert not [*saved.glob("writing-*")]


def test_what_a_trainer_uses_is_not_in_the_checkpoint_file(tmp_path):
    first = trainer()
    first.run(quiet_log(tmp_path), until=2, checkpoints=store(tmp_path / "c"))
    found = store(tmp_path / "c").newest()
    assert found is not None
    second = trainer()
    second.resume(found)
    del found
    assert str(tmp_path / "c") not in Path("/proc/self/maps").read_text()


def test_nothing_is_saved_before_its_time(tmp_path):
    trainer().run(quiet_log(tmp_path), checkpoints=store(tmp_path / "c", config=CheckpointConfig(every_seconds=1e6)))
    assert not (tmp_path / "c").exists()


def test_size_and_time_of_checkpoints_are_in_the_profile(tmp_path):
    trainer().run(quiet_log(tmp_path), checkpoints=store(tmp_path / "c"))
    (row,) = map(json.loads, (tmp_path / "profile.jsonl").read_text().splitlines())
    size = sum(path.stat().st_size for path in (tmp_path / "c" / "step-00000006").iterdir() if path.suffix != ".json")
    assert row["checkpoints"] == 6
    assert row["parts"]["checkpoint"] > 0
    assert size < row["checkpoint_bytes"] < 2 * size


def truncate(folder: Path) -> None:
    os.truncate(folder / "tensors.safetensors", 200)


def flip(name: str, place: int):
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 1
        (folder / name).write_bytes(bytes(content))

    return damage


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def half_renamed(folder: Path) -> None:
    folder.rename(folder.with_name(folder.name.replace("step", "writing")))


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def a_link(folder: Path) -> None:
    shutil.copytree(folder, folder.parent.parent / "elsewhere")
    shutil.rmtree(folder)
    folder.symlink_to(folder.parent.parent / "elsewhere")


DAMAGES = {
    "truncated": (truncate, "tensors.safetensors has 200 bytes of"),
    "a bit of a weight": (flip("tensors.safetensors", -1), "tensors.safetensors was changed"),
    "a bit of the header": (flip("tensors.safetensors", 20), "tensors.safetensors was changed"),
    "a bit of the state": (flip("state.json", 5), "state.json was changed"),
    "a bit of the manifest": (flip("manifest.json", 60), "manifest.json"),
    "no tensors": (remove("tensors.safetensors"), "tensors.safetensors is missing"),
    "no state": (remove("state.json"), "state.json is missing"),
    "no manifest": (remove("manifest.json"), "manifest.json is missing"),
    "empty": (empty, "manifest.json is missing"),
    "a file": (a_file, "is missing|Not a directory"),
    "a link": (a_link, "found a link"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_one_gives_way_to_the_one_before(saved, name):
    damage, reason = DAMAGES[name]
    damage(saved / "step-00000002")
    warnings: list[str] = []
    found = store(saved, warnings).newest()
    assert found is not None
    assert found.step == 1
    assert torch.equal(found.state["x"], torch.arange(100.0))
    (warning,) = warnings
    assert "step-00000002" in warning
    assert any(part in warning for part in reason.split("|"))
    assert "Going on from step-00000001" in warning
    # The next one of that step takes its place.
    store(saved).save({"x": torch.ones(1)}, step=2, **FACTS)
    again = store(saved).newest()
    assert again is not None
    assert again.step == 2


def test_one_that_was_being_written_is_not_looked_at(saved):
    half_renamed(saved / "step-00000002")
    warnings: list[str] = []
    found = store(saved, warnings).newest()
    assert found is not None
    assert found.step == 1
    assert not warnings
    store(saved).save({"x": torch.ones(1)}, step=2, **FACTS)
    assert sorted(path.name for path in saved.iterdir()) == ["step-00000001", "step-00000002"]


def test_damaged_ones_alone_are_an_error(saved):
    for folder in saved.iterdir():
        truncate(folder)
    with pytest.raises(ValueError, match=r"damaged checkpoints alone: step-00000002 \(.*step-00000001 \(.*Remove"):
        store(saved).newest()


def test_no_checkpoint_is_no_error(tmp_path):
    assert store(tmp_path / "none").newest() is None


class _Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.write_text, (self.marker, "ran"))


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_pickle_by_our_name_is_refused_and_not_run(saved, tmp_path, name):
    folder, marker = saved / "step-00000002", tmp_path / "marker"
    shutil.rmtree(saved / "step-00000001")
    (folder / name).write_bytes(pickle.dumps(_Hostile(marker)))
    if name != "manifest.json":  # with a manifest that vouches for it
        content = json.loads((folder / "manifest.json").read_text())["manifest"]
        content["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": module._digest(folder / name)}
        (folder / "manifest.json").write_text(
            json.dumps({"manifest": content, "sha256": module.json_digest(content)}), encoding="utf-8"
        )
    with pytest.raises(ValueError, match="damaged checkpoints alone"):
        store(saved).newest()
    assert not marker.exists()


def test_a_manifest_cannot_name_other_files(saved):
    folder = saved / "step-00000002"
    content = json.loads((folder / "manifest.json").read_text())["manifest"]
    content["files"]["../../evil"] = {"bytes": 1, "sha256": ""}
    (folder / "manifest.json").write_text(json.dumps({"manifest": content, "sha256": module.json_digest(content)}))
    warnings: list[str] = []
    store(saved, warnings).newest()
    assert "names other files" in warnings[0]


def test_a_checkpoint_of_another_model_or_other_data_is_refused(tmp_path):
    trainer().run(quiet_log(tmp_path), until=2, checkpoints=store(tmp_path / "c"))
    found = store(tmp_path / "c").newest()
    assert found is not None
    with pytest.raises(ValueError, match="step-00000002: found a checkpoint of other data"):
        trainer(count=7).resume(found)
    with pytest.raises(ValueError, match="step-00000002: found a checkpoint of other data"):
        trainer(seed=1).resume(found)
    other = trainer()
    other._modules["reward_model"].network.score.weight.data = torch.zeros(1, 31)
    with pytest.raises(ValueError, match=r"another model \(reward_model/network.score.weight: found \[1, 32\] float32"):
        other.resume(found)


def test_a_fingerprint_tells_records_apart():
    rows = comparisons(3)
    same = [Comparison(**{name: getattr(row, name) for name in row.__slots__}) for row in rows]
    assert fingerprint(rows, 1) == fingerprint(same, 1)
    others = [rows[:2], rows[::-1], demonstrations(3), torch.zeros(3), torch.zeros(3, dtype=torch.int32), ["a", "bc"]]
    found = {fingerprint(rows, 1), *(fingerprint(other, 1) for other in others), fingerprint(["ab", "c"], 1)}
    assert len(found) == len(others) + 2


@pytest.mark.parametrize("where", ["space", "write", "rename", "sync"])
def test_a_disk_that_fails_leaves_the_earlier_checkpoint(saved, monkeypatch, where):
    before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "space":
        monkeypatch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    elif where == "write":
        monkeypatch.setattr(module, "write_state", fail)
    elif where == "rename":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        monkeypatch.setattr(module.durable, "sync", fail)
    with pytest.raises(OSError, match=r"step-00000003: found .*; intact before it: step-00000002, step-00000001"):
        store(saved).save({"x": torch.ones(4)}, step=3, **FACTS)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()} == before


def test_a_signal_saves_and_leaves(tmp_path, monkeypatch):
    whole = trainer()
    whole.run(quiet_log())
    interrupted = trainer()
    take = interrupted.train_step

    def step():
        if interrupted.step == 2:
            os.kill(os.getpid(), interruption.signal.SIGTERM)
        return take()

    monkeypatch.setattr(interrupted, "train_step", step)
    calm = store(tmp_path / "c", config=CheckpointConfig(every_seconds=1e6))
    with pytest.raises(interruption.Interrupted) as caught, interruption.heeded():
        interrupted.run(quiet_log(tmp_path), checkpoints=calm)
    assert caught.value.exit_code == 143
    assert interrupted.step == 3
    found = store(tmp_path / "c").newest()
    assert found is not None
    second = trainer()
    second.resume(found)
    second.run(quiet_log())
    assert_same_state(whole, second)


def test_a_signal_after_the_question_waits_for_the_next_step(tmp_path, monkeypatch):
    """Whatever moment it comes in, what was done is saved before the trainer leaves."""
    interrupted = trainer()
    show = Phase.advance

    def advance(self, **more):
        if interrupted.step == 2:
            os.kill(os.getpid(), interruption.signal.SIGINT)
        show(self, **more)

    monkeypatch.setattr(Phase, "advance", advance)
    calm = store(tmp_path / "c", config=CheckpointConfig(every_seconds=1e6))
    with pytest.raises(interruption.Interrupted), interruption.heeded():
        interrupted.run(quiet_log(tmp_path), checkpoints=calm)
    found = calm.newest()
    assert found is not None
    assert found.step == interrupted.step == 3
