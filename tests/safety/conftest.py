"""What the tests of safety share: hostile files, tiny models and data to break, the command line in this process."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hostile import write_hostile_pickle
from tiny import comparisons, demonstrations, tiny_encoder, tiny_policy, tiny_reward_model

from instructrl import cli
from instructrl.data.readers import write_jsonl
from instructrl.types import Document, Prompt

# The synthetic run of the report's own tests.
sys.path.append(str(Path(__file__).parents[1] / "evaluation"))


class Answer(NamedTuple):
    """Of a command line: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys, monkeypatch, tmp_path) -> Callable[..., Answer]:
    """(arguments) -> Answer, in an empty folder; whoever is asked a question says yes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *question: "y")

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Answer(code=code, out=captured.out, err=captured.err)

    return run


@pytest.fixture
def marker(tmp_path) -> Path:
    """What hostile files write when they go off."""
    return tmp_path / "went-off"


@pytest.fixture
def hostile_file(marker) -> Callable[..., Path]:
    """(path, kind="torch" or "pickle") -> marker: writes a file under any name that makes the marker when unpickled."""

    def make(path: Path, kind: str = "torch") -> Path:
        write_hostile_pickle(Path(path), marker, kind)
        return marker

    return make


@pytest.fixture(scope="session")
def _good(tmp_path_factory) -> Path:
    """A policy, a reward model, and data of every kind."""
    folder = tmp_path_factory.mktemp("good")
    encoder = tiny_encoder()
    policy = tiny_policy(encoder)
    policy.save(folder / "policy", encoder.tokenizer)
    tiny_reward_model(policy).save(folder / "reward", encoder.tokenizer)
    data = folder / "data"
    data.mkdir()
    for split, seed in (("train", 0), ("valid", 1)):
        write_jsonl(data / f"demonstrations.{split}.jsonl", demonstrations(12, seed))
        write_jsonl(data / f"comparisons.{split}.jsonl", comparisons(10, seed))
    prompts = [Prompt(text=row.prompt, user=f"u{number % 4}") for number, row in enumerate(demonstrations(10, 2))]
    for split in ("train", "test"):
        write_jsonl(data / f"prompts.{split}.jsonl", prompts)
    write_jsonl(data / "corpus.jsonl", [Document(text=row.prompt + " " + row.completion) for row in demonstrations(60)])
    return folder


@pytest.fixture
def good(_good, tmp_path) -> Path:
    """A copy that a test may break: `policy`, `reward` and `data`."""
    return Path(shutil.copytree(_good, tmp_path / "good"))
