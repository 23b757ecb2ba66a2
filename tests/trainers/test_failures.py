"""What stops a run, and what only makes it speak."""

import io
import json
import math

import pytest
import torch
from probes import quiet_log, weights
from rich.console import Console
from tiny import blocks, comparisons, demonstrations, lively_policy, tiny_encoder, tiny_reward_model

from instructrl import profiling
from instructrl.trainers.checkpoints import Checkpoints
from instructrl.trainers.log import RunLog
from instructrl.trainers.ppo import PPOTrainer
from instructrl.trainers.pretraining import PretrainingTrainer
from instructrl.trainers.reward_model import RewardModelTrainer
from instructrl.trainers.settings import (
    AdamConfig,
    CheckpointConfig,
    PPOConfig,
    PretrainingConfig,
    RewardModelConfig,
    SFTConfig,
)
from instructrl.trainers.sft import SFTTrainer

ENCODER = tiny_encoder()
ADAM = AdamConfig(lr=1e-3)


def ppo(**more) -> PPOTrainer:
    policy = lively_policy(ENCODER)
    config = PPOConfig(
        num_episodes=16, rollout_batch=8, minibatch=4, policy_adam=ADAM, value_adam=ADAM, warmup_iterations=0, **more
    )
    return PPOTrainer(policy, tiny_reward_model(policy), ["w1 w2", "w3"] * 4, ENCODER, config, seed=0)


MAKE = {
    "pretraining": lambda: PretrainingTrainer(lively_policy(ENCODER), blocks(8), PretrainingConfig(adam=ADAM), 0),
    "sft": lambda: SFTTrainer(lively_policy(ENCODER), demonstrations(8), ENCODER, SFTConfig(adam=ADAM), seed=0),
    "reward_model": lambda: RewardModelTrainer(
        tiny_reward_model(lively_policy(ENCODER)), comparisons(8), ENCODER, RewardModelConfig(adam=ADAM), seed=0
    ),
    "ppo": ppo,
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_before_any_weight_changes(name, value, tmp_path):
    trainer = MAKE[name]()
    module = next(iter(trainer._modules.values()))
    before = weights(module)
    parameter = next(p for p in module.parameters() if p.dim() == 1)
    parameter.register_hook(lambda gradient: torch.full_like(gradient, value))
    store = Checkpoints(tmp_path / "c", CheckpointConfig(every_seconds=0), print)
    with pytest.raises(
        RuntimeError, match=rf"^{name}, step 0: the loss is .* norm (nan|inf); .*failed-{name}-00000000"
    ):
        trainer.run(quiet_log(tmp_path), checkpoints=store)
    assert torch.equal(weights(module), before)
    assert all(p.grad is None for p in module.parameters())
    assert store.newest() is None
    batch = json.loads((tmp_path / f"failed-{name}-00000000.json").read_text())
    texts = {"pretraining": "tokens", "sft": "demonstrations", "reward_model": "comparisons", "ppo": "responses"}
    assert len(batch[texts[name]]) == len(batch["rows"]) == 8


def test_neither_of_ppos_networks_changes_when_the_other_fails(tmp_path):
    trainer = ppo()
    before = [weights(module) for module in trainer._modules.values()]
    trainer.value_function.network.score.weight.register_hook(lambda gradient: torch.full_like(gradient, math.nan))
    with pytest.raises(RuntimeError, match=r"^ppo, step 0: the loss is .* norm nan"):
        trainer.run(quiet_log(tmp_path))
    assert all(torch.equal(weights(m), x) for m, x in zip(trainer._modules.values(), before, strict=True))


def test_a_loss_that_is_not_finite_stops_too(tmp_path):
    trainer = MAKE["sft"]()
    with pytest.raises(RuntimeError, match="the loss is inf"):
        trainer.update.step(math.inf)
    with pytest.raises(RuntimeError, match="the loss is nan"):
        trainer.update.step(math.nan)


def test_too_little_memory_says_where_and_what_to_lower(tmp_path, monkeypatch):
    trainer = ppo()

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr("instructrl.trainers.ppo.linear_ppo_loss", fail)
    with pytest.raises(
        RuntimeError, match=r"^ppo, step 0: found no more memory in update \(CUDA .* 2.00 GiB\.\); lower"
    ):
        trainer.run(quiet_log(tmp_path))


def test_memory_of_the_cpu_that_is_not_there_is_told_apart(tmp_path, monkeypatch):
    trainer = MAKE["sft"]()
    monkeypatch.setattr(trainer, "train_step", lambda: torch.empty(2**50))
    with pytest.raises(RuntimeError, match=r"^sft, step 0: found no more memory in the update .*microbatch"):
        trainer.run(quiet_log(tmp_path))


def test_other_errors_stay_as_they_are(tmp_path, monkeypatch):
    trainer = MAKE["sft"]()

    def fail():
        raise RuntimeError("something else")

    monkeypatch.setattr(trainer, "train_step", fail)
    with pytest.raises(RuntimeError, match=r"^something else$"):
        trainer.run(quiet_log(tmp_path))


def test_the_innermost_phase_is_the_one_that_failed():
    def work() -> None:
        with profiling.phase("generate"):
            pass
        with profiling.phase("update"), profiling.phase("average"):
            raise ValueError("x")

    with profiling.collect() as profile, pytest.raises(ValueError, match="x"):
        work()
    assert profile.failed_in == "average"


GOOD = {"kl": 3.0, "response_tokens": 20.0, "finished": 0.5, "score_std": 1.0, "advantage_std": 0.5}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"kl": 21.0}, ["more than a nat a token away"]),
        ({"finished": 0.0}, ["no response ended by itself"]),
        ({"score_std": 0.0, "advantage_std": 0.0}, ["the same score", "advantages do not vary"]),
    ],
)
def test_warnings_say_what_to_do(change, expected):
    found = ppo().warnings({**GOOD, **change})
    assert len(found) == len(expected)
    assert all(part in text and ";" in text for part, text in zip(expected, found, strict=True))


def test_a_warning_is_said_once_a_run(tmp_path):
    trainer = ppo(missing_eos_score=None, kl_coef=0.0)
    with torch.no_grad():
        for model in (trainer.reward_model, trainer.value_function):
            model.network.score.weight.zero_()
    text = io.StringIO()
    trainer.run(RunLog(tmp_path, Console(file=text, width=400)))
    assert text.getvalue().count("warning: ppo: all responses have the same score") == 1
    assert text.getvalue().count("warning: ppo: the advantages do not vary") == 1
