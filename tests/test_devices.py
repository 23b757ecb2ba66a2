"""Devices: which one a process takes, what it is refused, and what travels there in which precision."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import blocks, comparisons, demonstrations, tiny_encoder, tiny_policy, tiny_reward_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.scaling import parts
from instructrl import cli, distributed, ops
from instructrl.commands.settings import SFTCommand
from instructrl.models.policy import Policy
from instructrl.models.settings import Precision
from instructrl.models.spread import spread_for_use
from instructrl.ops import precision
from instructrl.rollout.generate import Sampling, sample_texts
from instructrl.rollout.settings import Truncation
from instructrl.runs.folder import check_folder, open_folder
from instructrl.trainers.log import RunLog
from instructrl.trainers.loop import Trainer
from instructrl.trainers.ppo import PPOTrainer
from instructrl.trainers.reward_model import RewardModelTrainer
from instructrl.trainers.settings import PPOConfig, RewardModelConfig, SFTConfig
from instructrl.trainers.sft import SFTTrainer

ENCODER = tiny_encoder()


def with_devices(monkeypatch, *names: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in names)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in names)


@pytest.mark.parametrize(
    ("there", "asked", "expected"),
    [
        ((), "auto", "cpu"),
        (("mps",), "auto", "cpu"),
        (("cuda",), "auto", "cuda:2"),
        (("cuda",), "cuda", "cuda:2"),
        (("cuda", "mps"), "cpu", "cpu"),
        (("mps",), "mps", "mps"),
    ],
)
def test_a_process_has_the_device_that_it_asks_for(monkeypatch, there, asked, expected):
    with_devices(monkeypatch, *there)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with distributed.joined(device=asked):
        assert distributed.device() == torch.device(expected)
    assert distributed.device() is None


@pytest.mark.parametrize(("there", "asked"), [((), "cuda"), ((), "mps"), (("mps",), "cuda"), (("cuda",), "tpu")])
def test_a_device_that_is_not_there_is_refused(monkeypatch, there, asked):
    with_devices(monkeypatch, *there)
    with pytest.raises(ValueError, match=f"device: found {asked}.* accepted: cpu"), distributed.joined(device=asked):
        pass


def test_several_processes_are_refused_on_mps(monkeypatch):
    with_devices(monkeypatch, "mps")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="mps in a job of several processes"):
        distributed.use("mps")


@pytest.mark.parametrize("command", ["sft", "rm", "ppo", "eval", "generate", "run"])
def test_commands_refuse_a_device_in_one_line_and_write_nothing(command, monkeypatch, capsys, tmp_path):
    """Before anything is loaded: the folders that are named are not there."""
    with_devices(monkeypatch)
    monkeypatch.setattr("instructrl.commands.given_models.check_given_models", lambda settings: None)
    words = {
        "sft": ["--model", "m", "--data", "d"],
        "rm": ["--model", "m", "--data", "d"],
        "ppo": ["--model", "m", "--reward-model", "r", "--data", "d"],
        "eval": ["--baseline", "m", "--models", "n", "--reward-model", "r", "--data", "d"],
        "generate": ["--model", "m", "--prompts", "x"],
        "run": ["miniature"],
    }[command]
    words = [*words, "--device", "cuda"] if command == "generate" else [*words, "--device", "cuda", "--out", "out"]
    monkeypatch.chdir(tmp_path)
    if command == "run":
        words = ["miniature", "--device", "cuda", "--out", "out"]
    assert cli.main([command, *words]) == 2
    said = capsys.readouterr().err
    assert "device: found cuda" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_page_has_the_table_of_the_results():
    root = Path(__file__).parent.parent
    found = json.loads((root / parts.RESULTS).read_text(encoding="utf-8"))
    assert parts.section(found) in (root / parts.PAGE).read_text(encoding="utf-8")


class Without(TorchDispatchMode):
    """No float64, as on Apple's GPUs."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        wide = [x for x in tree_leaves(found) if isinstance(x, torch.Tensor) and x.dtype == torch.float64]
        assert not wide, f"{func}: found float64"
        return found


@pytest.fixture
def no_float64(monkeypatch):
    """A CPU that has no float64: what asks for the widest type gets float32, and a tensor of float64 is an error."""
    widest = precision.widest
    for name, module in list(sys.modules.items()):
        if name.startswith("instructrl.") and getattr(module, "widest", None) is widest:
            monkeypatch.setattr(module, "widest", lambda device: torch.float32)
    with ops.use_backend("reference"), Without():
        yield


def sft() -> Trainer:
    config = SFTConfig(batch_size=4, epochs=1, pretraining_fraction=0.2)
    return SFTTrainer(tiny_policy(ENCODER), demonstrations(8), ENCODER, config, blocks=blocks(9))


def reward_model() -> Trainer:
    return RewardModelTrainer(
        tiny_reward_model(tiny_policy(ENCODER)), comparisons(4), ENCODER, RewardModelConfig(batch_size=4)
    )


def ppo() -> Trainer:
    config = PPOConfig(num_episodes=8, rollout_batch=8, minibatch=4, ptx_coef=0.5, ptx_examples_per_episode=1)
    policy = tiny_policy(ENCODER)
    prompts = [row.prompt for row in demonstrations(8)]
    return PPOTrainer(policy, tiny_reward_model(policy), prompts, ENCODER, config, blocks=blocks(9))


@pytest.mark.parametrize("make", [sft, reward_model, ppo])
def test_a_step_needs_no_float64(make, no_float64):
    trainer = make()
    trainer.run(RunLog(None))
    assert trainer.step == trainer.num_steps


def test_sampling_from_a_part_of_the_tokens_needs_no_float64(no_float64):
    policy = tiny_policy(ENCODER)
    sampling = Sampling(seed=0, max_response_tokens=4, truncation=Truncation(top_p=0.9, top_k=5))
    assert len(sample_texts(policy, ENCODER, ["w1 w2"], sampling).texts) == 1


class Arrivals(TorchDispatchMode):
    """The dtypes of what comes to a device: here "meta", which any machine has."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and found.device.type == "meta" and found.is_floating_point():
            self.dtypes.append(found.dtype)
        return found


def moved(network: Policy, weights: Precision) -> list[torch.dtype]:
    with pytest.MonkeyPatch.context() as patch, Arrivals() as arrivals:
        patch.setattr(distributed, "_device", torch.device("meta"))
        spread_for_use(network, weights)
    return arrivals.dtypes


def test_a_network_that_does_not_learn_is_rounded_before_it_is_moved():
    """On its way it is never in float32 on a device that may have no room for that."""
    for weights, expected in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        assert set(moved(tiny_policy(ENCODER), weights)) == {expected}


def test_a_run_goes_on_on_another_device(tmp_path):
    config = SFTCommand(model="m", data="d", out=str(tmp_path / "run"))
    open_folder(tmp_path / "run", config)
    check_folder(tmp_path / "run", replace(config, device="cpu"))
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        check_folder(tmp_path / "run", replace(config, device="cpu", seed=1))
