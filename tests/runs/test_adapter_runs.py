"""The steps as commands with adapters: what they leave, that they go on, and what a folder of another kind is told."""

import json
import shutil
from pathlib import Path

import pytest
from tiny import comparisons, demonstrations, lively_policy, tiny_encoder

from instructrl import cli
from instructrl.data.readers import write_jsonl
from instructrl.types import Prompt

ENCODER = tiny_encoder()
LIMITS = "--limits.max-prompt-tokens 12 --limits.max-response-tokens 8 --checkpoints.every-seconds 0"
STEPS = {
    "sft": f"--model model --data demonstrations.jsonl --validation none {LIMITS} --sft.epochs 2 --sft.batch-size 8 "
    "--sft.residual-dropout 0 --sft.adam.lr 0.01",
    "rm": f"--model sft/models/sft_epoch_02 --data comparisons.jsonl --validation none {LIMITS} "
    "--reward-model.batch-size 4 --reward-model.adam.lr 0.01",
    "ppo": f"--model sft/models/sft_epoch_02 --reward-model rm/models/reward_model --data prompts.jsonl {LIMITS} "
    "--ppo.num-episodes 16 --ppo.rollout-batch 8 --ppo.minibatch 4 --ppo.policy-adam.lr 0.01 --ppo.ema-decay 0.5",
}


def run(step: str, *more: str, out: str = "") -> int:
    return cli.main([step, *STEPS[step].split(), "--out", out or step, *more])


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """All three steps, with adapters."""
    folder = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        lively_policy(ENCODER).save("model", ENCODER.tokenizer)
        rows = demonstrations(16)
        write_jsonl(Path("demonstrations.jsonl"), rows)
        write_jsonl(Path("comparisons.jsonl"), comparisons(12))
        write_jsonl(Path("prompts.jsonl"), [Prompt(text=row.prompt) for row in rows])
        for step in STEPS:
            assert run(step, "--adapter.rank", "2") == 0
    return folder


@pytest.fixture
def folder(done, tmp_path, monkeypatch) -> Path:
    shutil.copytree(done, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "profile.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_every_step_leaves_adapters_on_the_model_that_was_given(done):
    folders = [path.parent for path in done.rglob("adapter_model.safetensors")]
    assert {path.name for path in folders} == {"sft_epoch_01", "sft_epoch_02", "reward_model", "ppo"}
    facts = [json.loads((path / "instructrl.json").read_text()) for path in folders]
    assert len({entry["base"] for entry in facts}) == 1
    settings = [json.loads((path / "adapter_config.json").read_text()) for path in folders]
    assert {entry["base_model_name_or_path"] for entry in settings} == {"model"}
    assert [path.parent.name for path in done.rglob("model.safetensors")] == ["model"]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_was_left_goes_on_to_the_same_bytes(folder, monkeypatch, step):
    before = content(folder / step)
    trainers = {"sft": "sft.SFTTrainer", "rm": "reward_model.RewardModelTrainer", "ppo": "ppo.PPOTrainer"}
    shutil.rmtree(folder / step)

    def stopped(self) -> None:
        if self.step == 1:
            raise RuntimeError("stopped, accepted is to go on")
        return whole(self)

    name = f"instructrl.trainers.{trainers[step]}._train_step"
    module, _, kind = trainers[step].partition(".")
    whole = getattr(__import__(f"instructrl.trainers.{module}", fromlist=[kind]), kind)._train_step
    with monkeypatch.context() as patch:
        patch.setattr(name, stopped)
        assert run(step, "--adapter.rank", "2") == 2
    assert list((folder / step).rglob("step-00000001"))
    assert run(step, "--adapter.rank", "2") == 0
    assert content(folder / step) == before


@pytest.mark.parametrize(
    ("more", "said"),
    [((), "adapter.rank was 2, is None"), (("--adapter.rank", "2", "--adapter.base-dtype", "bfloat16"), "base_dtype")],
)
def test_a_run_with_other_adapters_is_not_gone_on_with(folder, capsys, more, said):
    before = content(folder)
    assert run("sft", *more) == 2
    assert said in capsys.readouterr().err
    assert content(folder) == before


def test_an_adapter_is_trained_further_without_being_asked_for(folder):
    words = STEPS["sft"].replace("--model model", "--model sft/models/sft_epoch_02")
    assert cli.main(["sft", *words.split(), "--out", "further"]) == 0
    settings = json.loads((folder / "further/models/sft_epoch_02/adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["r"]) == ("model", 2)
