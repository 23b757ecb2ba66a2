"""Training with adapters: what is fixed keeps its bits, what is kept of a run is small, and a run goes on to the same
bits."""

from dataclasses import replace

import pytest
import torch
from tiny import blocks, comparisons, demonstrations, lively_policy, tiny_encoder, tiny_reward_model

from instructrl.models.adapters import has_adapter
from instructrl.models.base import another, named_weights
from instructrl.models.policy import Policy
from instructrl.models.roles import learner, on_shared_base
from instructrl.models.scoring import RewardModel
from instructrl.models.settings import AdapterConfig, PassConfig
from instructrl.trainers.checkpoints import Checkpoints, fingerprint
from instructrl.trainers.log import RunLog
from instructrl.trainers.loop import Trainer
from instructrl.trainers.ppo import PPOTrainer
from instructrl.trainers.reward_model import RewardModelTrainer
from instructrl.trainers.settings import AdamConfig, CheckpointConfig, PPOConfig, RewardModelConfig, SFTConfig
from instructrl.trainers.sft import SFTTrainer

ENCODER = tiny_encoder()
PROMPTS = [row.prompt for row in demonstrations(8)]
FULL, RANK, HALF = AdapterConfig(), AdapterConfig(rank=2), AdapterConfig(rank=2, base_dtype="bfloat16")
PPO = PPOConfig(
    num_episodes=16, rollout_batch=8, minibatch=4, policy_adam=AdamConfig(lr=1e-2), value_adam=AdamConfig(lr=1e-2)
)
PTX = replace(PPO, ptx_coef=1.0, ptx_examples_per_episode=0.5)


def policy_on(adapter: AdapterConfig, seed: int = 0) -> Policy:
    policy = lively_policy(ENCODER, seed)
    on_shared_base(policy, adapter)
    return learner(policy, adapter, 0)


def sft(adapter: AdapterConfig, seed: int = 0) -> SFTTrainer:
    config = SFTConfig(adam=AdamConfig(lr=1e-2), batch_size=4, epochs=1)
    return SFTTrainer(policy_on(adapter, seed), demonstrations(16), ENCODER, config)


def reward(adapter: AdapterConfig, seed: int = 0) -> RewardModelTrainer:
    model = tiny_reward_model(policy_on(adapter, seed))
    return RewardModelTrainer(
        model, comparisons(16), ENCODER, RewardModelConfig(adam=AdamConfig(lr=1e-2), batch_size=4)
    )


def ppo(adapter: AdapterConfig, seed: int = 0, config: PPOConfig = PPO) -> PPOTrainer:
    policy = policy_on(adapter, seed)
    mix = blocks(8) if config.ptx_coef else None
    return PPOTrainer(policy, tiny_reward_model(policy), PROMPTS, ENCODER, config, blocks=mix)


def content(module: torch.nn.Module) -> list[torch.Tensor]:
    return [x.detach().clone() for _, x in named_weights(module)]


def same(module: torch.nn.Module, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for (_, x), y in zip(named_weights(module), before, strict=True))


@pytest.mark.parametrize(("adapter", "config"), [(RANK, PPO), (HALF, PTX)], ids=["ppo", "ptx in bfloat16"])
def test_ppo_changes_policy_value_function_and_average_alone(adapter, config):
    trainer = ppo(adapter, config=config)
    fixed = [trainer.reward_model, trainer.reference]
    learned = [trainer.policy, trainer.value_function, trainer.average.module]
    before = {role: content(role) for role in (*fixed, *learned)}
    base = [x.clone() for x in trainer.policy.base.tensors]
    metrics, _ = trainer.train_step()
    assert metrics["kl"] == 0.0
    assert metrics["ratio"] == pytest.approx(1.0, abs=0.2)
    trainer.train_step()
    assert {role for role in before if not same(role, before[role])} == set(learned)
    assert all(torch.equal(x, y) for x, y in zip(trainer.policy.base.tensors, base, strict=True))
    assert {role.base for role in before} == {trainer.policy.base}


def test_the_reference_of_a_new_adapter_is_the_base_alone():
    trainer = ppo(RANK)
    assert not has_adapter(trainer.reference)
    assert not list(trainer.reference.parameters())


def test_the_first_ratio_is_one_in_both_kinds_of_passes():
    for passes in (PassConfig(), PassConfig(checkpoint_activations=True)):
        trainer = ppo(RANK, config=replace(PPO, passes=passes, minibatch=8))
        metrics, _ = trainer.train_step()
        assert metrics["ratio_max"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("make", [sft, ppo], ids=lambda make: make.__name__)
def test_training_lowers_the_loss_of_adapters(make):
    trainer = make(RANK)
    first, _ = trainer.train_step()
    last = first
    for _ in range(trainer.num_steps - 1):
        last, _ = trainer.train_step()
    assert last["value_loss" if make is ppo else "loss"] < first["value_loss" if make is ppo else "loss"]


@pytest.mark.parametrize("make", [sft, reward, ppo], ids=lambda make: make.__name__)
def test_a_run_that_was_left_goes_on_to_the_same_bits(tmp_path, make):
    whole, left = make(RANK), make(RANK)
    whole.run()
    left.run(tmp_path, until=1)
    again = make(RANK)
    again.run(tmp_path)
    assert again.digest() == whole.digest()


def checkpointed(trainer: Trainer, folder) -> Checkpoints:
    log = RunLog(folder)
    checkpoints = Checkpoints(folder / "checkpoints", CheckpointConfig(), log.warn)
    trainer.save(checkpoints, log)
    return checkpoints


def test_a_checkpoint_holds_what_trains_alone(tmp_path):
    trainer = ppo(RANK)
    trainer.train_step()
    checkpointed(trainer, tmp_path)
    size = sum(path.stat().st_size for path in (tmp_path / "checkpoints").rglob("*.safetensors"))
    learned = sum(x.nbytes for x in [*trainer.policy.parameters(), *trainer.value_function.parameters()])
    assert size < 4 * learned + 20_000


@pytest.mark.parametrize(
    ("make", "there", "wanted", "message"),
    [
        (sft, (FULL, 0), (RANK, 0), "found a checkpoint of full weights, accepted is one of adapters"),
        (reward, (RANK, 0), (FULL, 0), "found a checkpoint of adapters, accepted is one of full weights"),
        (ppo, (RANK, 0), (RANK, 1), "found a checkpoint of adapters on another base, accepted is one on the same base"),
        (sft, (RANK, 0), (AdapterConfig(rank=3), 0), "found a checkpoint of another model"),
    ],
)
def test_a_checkpoint_of_other_weights_is_refused(tmp_path, make, there, wanted, message):
    checkpoints = checkpointed(make(*there), tmp_path)
    found = checkpoints.newest()
    assert found is not None
    with pytest.raises(ValueError, match=message):
        make(*wanted).resume(found)


def test_a_fingerprint_knows_the_base():
    roles = [policy_on(RANK), policy_on(RANK, seed=1), policy_on(HALF), lively_policy(ENCODER)]
    assert len({fingerprint(role) for role in roles}) == len(roles)
    assert fingerprint(policy_on(RANK)) == fingerprint(roles[0]) == fingerprint(another(roles[0]))
    assert fingerprint(RewardModel.from_policy(roles[0], torch.Generator().manual_seed(0))) != fingerprint(roles[0])
