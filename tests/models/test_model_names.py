"""A hub is asked for names alone, and only after the folder was looked for."""

import warnings
from pathlib import Path

import pytest
from tiny import tiny_encoder, tiny_policy
from transformers import AutoConfig, AutoTokenizer

from instructrl.data.tokenizers import load_tokenizer
from instructrl.models import folders
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel

PATHS = ["./x", "../x", "/x", "/x/y", "~/x", "a/b/c", "x/", "there/x", "C:\\x", "./org/name"]
NAMES = ["gpt2", "org/name", "org/name-1.5b"]


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list[str]:
    """What transformers is asked for, in a working folder with the folders `there` and `gpt-2`."""
    names: list[str] = []

    def ask(name, *args, **kwargs):
        names.append(str(name))
        raise OSError("no answer")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", ask)
    monkeypatch.setattr(AutoConfig, "from_pretrained", ask)
    monkeypatch.chdir(tmp_path)
    for name in ("there", "gpt-2"):
        Path(name).mkdir()
    return names


@pytest.mark.parametrize("load", [load_tokenizer, Policy.load, RewardModel.load])
def test_no_hub_is_asked_for_a_path(load, asked):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in PATHS:
            with pytest.raises(ValueError, match=r"found no such folder.*, accepted is a transformers folder or name"):
                load(path)
    assert asked == []


@pytest.mark.parametrize("load", [load_tokenizer, Policy.load])
@pytest.mark.parametrize("name", NAMES)
def test_a_hub_is_asked_for_a_name_after_this_is_said(load, asked, name):
    with (
        pytest.warns(UserWarning, match=f"model {name}: found no such folder.*; a model hub is asked"),
        pytest.raises(ValueError, match="no answer"),
    ):
        load(name)
    assert asked == [name]


def test_a_folder_of_nearly_that_name_is_named(asked):
    with pytest.warns(UserWarning, match="did you mean 'gpt-2'"), pytest.raises(ValueError, match="no answer"):
        load_tokenizer("gpt2")


def test_a_model_at_a_hub_may_have_an_adapter(tmp_path, monkeypatch):
    """Where peft is installed, transformers would load it: with no parameter that learns."""
    folder = tmp_path / "cached"
    tiny_policy(tiny_encoder()).save(folder, tiny_encoder().tokenizer)
    config = AutoConfig.from_pretrained(folder)
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *args, **kwargs: config)
    monkeypatch.setattr(folders, "cached_file", lambda name, file: str(folder / file))
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="hub is asked"), pytest.raises(ValueError, match="found a LoRA adapter"):
        folders.read_config("org/name")
