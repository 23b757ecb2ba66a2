"""Weights in bfloat16: every trainer learns as in float32, averages and saves in it, and goes on to the same bits."""

import copy
import statistics
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from probes import assert_continues_exactly, metrics_of, quiet_log, weights
from tiny import blocks, comparisons, demonstrations, lively_policy, tiny_encoder, tiny_policy, tiny_reward_model

from instructrl import distributed
from instructrl.commands.settings import RewardModelCommand
from instructrl.models.masters import in_float32, learned
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel, ValueFunction
from instructrl.models.settings import PassConfig, Precision
from instructrl.runs.folder import check_folder, open_folder, settled_config
from instructrl.runs.settings import MiniatureConfig
from instructrl.trainers.checkpoints import Checkpoints
from instructrl.trainers.loop import Trainer
from instructrl.trainers.ppo import PPOTrainer
from instructrl.trainers.pretraining import PretrainingTrainer
from instructrl.trainers.reward_model import RewardModelTrainer, normalize_on_demonstrations
from instructrl.trainers.settings import (
    AdamConfig,
    CheckpointConfig,
    PPOConfig,
    PretrainingConfig,
    RewardModelConfig,
    SFTConfig,
)
from instructrl.trainers.sft import SFTTrainer, demonstration_loss

ENCODER = tiny_encoder()
WHOLE, HALVES = PassConfig(weights="float32"), PassConfig(weights="bfloat16")
ADAM = AdamConfig(lr=1e-3)
ROWS = demonstrations(12)


def pretraining(passes: PassConfig) -> PretrainingTrainer:
    config = PretrainingConfig(adam=ADAM, batch_size=3, microbatch=2, passes=passes)
    return PretrainingTrainer(lively_policy(ENCODER), blocks(12), config, seed=1)


def sft(passes: PassConfig, **more) -> SFTTrainer:
    settings = {"adam": ADAM, "batch_size": 4, "microbatch": 2, "epochs": 1, "pretraining_fraction": 0.25, **more}
    config = SFTConfig(residual_dropout=0.0, passes=passes, **settings)
    return SFTTrainer(tiny_policy(ENCODER), ROWS, ENCODER, config, seed=1, blocks=blocks(9))


def reward_model(passes: PassConfig) -> RewardModelTrainer:
    config = RewardModelConfig(adam=ADAM, batch_size=3, microbatch=2, passes=passes)
    return RewardModelTrainer(tiny_reward_model(tiny_policy(ENCODER)), comparisons(12), ENCODER, config, seed=1)


def ppo(passes: PassConfig, **more) -> PPOTrainer:
    settings = {"num_episodes": 16, "rollout_batch": 8, "minibatch": 4, "microbatch": 2, "ptx_coef": 0.5, **more}
    config = PPOConfig(
        policy_adam=ADAM, value_adam=ADAM, warmup_iterations=0, ptx_examples_per_episode=0.5, passes=passes, **settings
    )
    policy = lively_policy(ENCODER)
    prompts = [row.prompt for row in ROWS]
    return PPOTrainer(policy, tiny_reward_model(policy), prompts, ENCODER, config, seed=3, blocks=blocks(9))


TRAINERS: dict[str, Callable[[PassConfig], Trainer]] = {
    "pretraining": pretraining,
    "sft": sft,
    "reward model": reward_model,
    "ppo": ppo,
}


@pytest.mark.parametrize("name", TRAINERS)
def test_a_continued_run_has_the_same_bits_with_checkpointed_activations(name, tmp_path):
    passes = replace(HALVES, checkpoint_activations=True)
    assert_continues_exactly(lambda: TRAINERS[name](passes), 2, 1, tmp_path)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_checkpoint_on_the_disk_is_continued_and_one_of_other_weights_refused_in_one_line(name, tmp_path):
    first = TRAINERS[name](HALVES)
    first.run(quiet_log(), until=1)
    checkpoints = Checkpoints(tmp_path / "state", CheckpointConfig(), print)
    first.save(checkpoints, quiet_log(tmp_path))
    first.run(quiet_log())
    found = checkpoints.newest()
    assert found is not None
    second = TRAINERS[name](HALVES)
    second.resume(found)
    second.run(quiet_log())
    assert second.digest() == first.digest()
    with pytest.raises(ValueError, match=r"^\S+: found a checkpoint of bfloat16 weights, accepted is one of float32 "):
        TRAINERS[name](WHOLE).resume(found)
    other = TRAINERS[name](WHOLE)
    other.save(checkpoints, quiet_log(tmp_path))
    found = checkpoints.newest()
    assert found is not None
    with pytest.raises(ValueError, match=r"^\S+: found a checkpoint of float32 weights, accepted is one of bfloat16 "):
        TRAINERS[name](HALVES).resume(found)


def test_networks_of_ppo_hold_half_and_what_is_averaged_and_stepped_is_float32():
    trainer, whole = ppo(HALVES), ppo(WHOLE)
    names = ("policy", "reference", "reward_model", "value_function")
    for name in names:
        sizes = [sum(x.nbytes for x in getattr(found, name).parameters()) for found in (trainer, whole)]
        head = 2 * 32 if name in ("reward_model", "value_function") else 0
        assert sizes[0] == sizes[1] // 2 + head, name
    assert {x.dtype for x in trainer.average.parameters()} == {torch.float32}
    trainer.run(quiet_log())
    for update in (trainer.policy_update, trainer.value_update):
        moments = [x for state in update.optimizer.state.values() for x in state.values()]
        assert {x.dtype for x in (*update.parameters, *moments)} == {torch.float32}


def test_before_the_first_update_the_ratio_is_one(tmp_path):
    ppo(HALVES, minibatch=8, microbatch=8).run(quiet_log(tmp_path), until=1)
    (metrics,) = metrics_of(tmp_path)
    assert metrics["ratio"] == metrics["ratio_max"] == 1.0
    assert metrics["kl"] == 0.0


def test_masters_move_where_weights_in_bfloat16_would_stand_still():
    """The rate is so small that no single step changes a weight of ordinary size; many do what they do in float32."""
    moved = {}
    for passes in (WHOLE, HALVES):
        trainer = sft(passes, adam=AdamConfig(lr=2e-6), pretraining_fraction=0.0, microbatch=4, epochs=8)
        start = weights(in_float32(trainer.policy))
        low = start.bfloat16()
        trainer.run(quiet_log(), until=1)
        step = weights(in_float32(trainer.policy)) - start
        trainer.run(quiet_log())
        moved[passes.weights] = weights(in_float32(trainer.policy)) - start
        large = start.abs() > 1e-3
        assert bool(large.any())
        assert torch.equal((low + step.bfloat16())[large], low[large])
    expected, found = moved["float32"], moved["bfloat16"]
    assert float((found - expected).norm()) < 0.5 * float(expected.norm())


def test_both_learn_the_same_task_within_the_noise_of_seeds():
    losses: dict[Precision, list[float]] = {"float32": [], "bfloat16": []}
    config = SFTConfig(adam=AdamConfig(lr=5e-3), batch_size=6, epochs=6, residual_dropout=0.0)
    for kind, found in losses.items():
        for seed in range(3):
            passes = PassConfig(weights=kind)
            policy = tiny_policy(ENCODER, seed)
            trainer = SFTTrainer(policy, ROWS, ENCODER, replace(config, passes=passes), seed=seed)
            before = demonstration_loss(trainer.policy, ROWS, ENCODER)
            trainer.run(quiet_log())
            found.append(demonstration_loss(trainer.policy, ROWS, ENCODER))
            assert found[-1] < before - 0.5
    one, other = losses.values()
    assert abs(statistics.mean(one) - statistics.mean(other)) < max(map(statistics.stdev, (one, other)))


def test_the_average_is_of_masters_and_in_float32():
    trainer = ppo(HALVES, ema_decay=0.992)
    steps: list[torch.Tensor] = []
    update = trainer.average.update_parameters

    def watched(model):
        steps.append(torch.cat([x.detach().flatten().double() for x in learned(trainer.policy)]))
        update(model)

    trainer.average.update_parameters = watched
    trainer.run(quiet_log())
    average = steps[0]
    low = steps[0].bfloat16()
    for step in steps[1:]:
        average = 0.992 * average + 0.008 * step
        low = (0.992 * low.float() + 0.008 * step.float()).bfloat16()
    found = weights(trainer.averaged_policy())
    assert found.dtype == torch.float32
    error = float((found.double() - average).norm())
    assert error <= len(steps) * torch.finfo(torch.float32).eps * float(average.norm())
    assert error < 0.01 * float((low.double() - average).norm())


def test_what_is_saved_and_measured_is_the_master(tmp_path):
    trainer = sft(HALVES)
    trainer.run(quiet_log())
    trainer.policy.save(tmp_path / "sft", ENCODER.tokenizer)
    loaded = Policy.load(tmp_path / "sft", ENCODER.tokenizer)
    assert torch.equal(weights(loaded), weights(in_float32(trainer.policy)))
    assert demonstration_loss(loaded, ROWS, ENCODER) == demonstration_loss(trainer.policy, ROWS, ENCODER)
    judge = reward_model(HALVES)
    judge.run(quiet_log())
    bias = normalize_on_demonstrations(judge.reward_model, ENCODER, ROWS)
    judge.reward_model.save(tmp_path / "rm", ENCODER.tokenizer)
    found = RewardModel.load(tmp_path / "rm")
    assert torch.equal(weights(found), weights(in_float32(judge.reward_model)))
    assert float(found.bias) == bias != 0
    assert abs(normalize_on_demonstrations(found, ENCODER, ROWS) - bias) < 1e-6  # it scores 0 there already


def test_what_goes_on_from_a_trained_network_starts_at_its_masters():
    before = sft(HALVES)
    before.run(quiet_log())
    judge = reward_model(HALVES)
    judge.run(quiet_log())
    masters = [weights(in_float32(x)).clone() for x in (before.policy, judge.reward_model)]
    assert torch.equal(weights(ValueFunction.from_reward_model(judge.reward_model)), masters[1])
    config = PPOConfig(num_episodes=8, rollout_batch=8, minibatch=4, policy_adam=ADAM, value_adam=ADAM, passes=HALVES)
    trainer = PPOTrainer(before.policy, judge.reward_model, [row.prompt for row in ROWS], ENCODER, config)
    for network in (in_float32(trainer.policy), trainer.average.module):
        assert torch.equal(weights(network), masters[0])
    assert torch.equal(weights(in_float32(trainer.value_function)), masters[1])
    again = PPOTrainer(
        before.policy, judge.reward_model, [row.prompt for row in ROWS], ENCODER, replace(config, passes=WHOLE)
    )
    assert torch.equal(weights(again.policy), masters[0])


@pytest.mark.parametrize("config", [RewardModelCommand(model="m", data="d", out="o"), MiniatureConfig()])
def test_a_run_keeps_the_weights_that_it_began_with(config, tmp_path, monkeypatch):
    """Begun on a GPU it goes on in bfloat16 on a CPU; what a command line says is what counts."""
    folder = tmp_path / "run"
    monkeypatch.setattr(distributed, "device", lambda: torch.device("cuda"))
    begun = settled_config(config, folder)
    open_folder(folder, begun)
    monkeypatch.setattr(distributed, "device", lambda: torch.device("cpu"))
    assert settled_config(config, folder) == begun != settled_config(config, folder, fresh=True)
    assert set(_weights_in(begun)) == {"bfloat16"}
    assert set(_weights_in(settled_config(config, tmp_path / "other"))) == {"float32"}
    check_folder(folder, settled_config(config, folder))
    with pytest.raises(ValueError, match=r"passes.weights was bfloat16, is float32"):
        check_folder(folder, settled_config(config, tmp_path / "other"))


def _weights_in(config) -> list[Precision | None]:
    if isinstance(config, PassConfig):
        return [config.weights]
    parts = [getattr(config, field.name) for field in fields(config)]
    return [found for part in parts if is_dataclass(part) for found in _weights_in(part)]


def test_float32_networks_are_what_they_were():
    policy = lively_policy(ENCODER)
    other = copy.deepcopy(policy)
    assert in_float32(policy) is policy
    assert learned(policy) == list(policy.parameters())
    assert torch.equal(weights(policy), weights(other))
