"""A policy that was trained against its judge is known by the folder of its run, wherever that can be known."""

import shutil
from pathlib import Path

import pytest
import yaml

from instructrl.runs.judging import judge_note, short_names, trained_against


def model(path: Path, content: bytes = b"weights") -> Path:
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(content)
    return path


def run(folder: Path, name: str, **settings: str) -> Path:
    policy = model(folder / "models" / name, b"policy")
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 0, **settings}))
    return policy


def test_a_single_step_names_its_reward_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher, other = model(tmp_path / "rm/models/reward_model"), model(tmp_path / "judge/models/reward_model", b"other")
    policy = run(tmp_path / "ppo", "ppo_ptx", reward_model="rm/models/reward_model")
    assert trained_against(str(policy), str(teacher)) is True
    assert trained_against("ppo/models/ppo_ptx", "rm/models/reward_model/") is True
    assert trained_against(str(policy), str(other)) is False
    copied = shutil.copytree(teacher, tmp_path / "copied")
    assert trained_against(str(policy), str(copied)) is True
    monkeypatch.chdir(tmp_path.parent)  # from where the relative name leads to nothing
    assert trained_against(str(policy), str(other)) is None


def test_a_run_of_all_steps_has_its_reward_model_beside(tmp_path):
    policy = run(tmp_path / "run", "ppo")
    teacher = model(tmp_path / "run/models/reward_model")
    judge = model(tmp_path / "run/models/judge", b"other")
    assert trained_against(str(policy), str(teacher)) is True
    assert trained_against(str(policy), str(judge)) is False
    for name in ("sft", "ppo_start_epoch_01"):
        assert trained_against(str(model(tmp_path / "run/models" / name)), str(teacher)) is False


@pytest.mark.parametrize("settings", ["{", "[1]", "reward_model: 3", "reward_model: nowhere"])
def test_what_the_folder_does_not_tell_is_not_known(tmp_path, settings):
    judge = model(tmp_path / "judge")
    policy = model(tmp_path / "run/models/ppo")
    assert trained_against(str(policy), str(judge)) is None
    (tmp_path / "run/config.yaml").write_text(settings)
    assert trained_against(str(policy), str(judge)) is None
    assert trained_against("gpt2", str(judge)) is None
    assert "not known" in judge_note(str(judge), [("ppo", str(policy))])


def test_the_note_names_who_is_flattered(tmp_path):
    teacher = model(tmp_path / "rm/models/reward_model")
    policy = run(tmp_path / "ppo", "ppo", reward_model=str(teacher))
    assert "ppo was trained against, and flatters it" in judge_note(str(teacher), [("ppo", str(policy))])
    assert judge_note(str(model(tmp_path / "judge", b"other")), [("ppo", str(policy))]) == ""


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["toy/sft/models/sft_epoch_02", "toy/ppo/models/ppo_ptx/"], ["sft_epoch_02", "ppo_ptx"]),
        (["a/models/ppo", "b/models/ppo", "b/models/sft"], ["a/models/ppo", "b/models/ppo", "sft"]),
        (["gpt2", "org/gpt2"], ["gpt2", "org/gpt2"]),
        (["/x/a", "/y/a"], ["x/a", "y/a"]),
    ],
)
def test_a_name_is_as_much_of_the_path_as_tells_it_apart(paths, names):
    assert short_names(paths) == names
