"""Every trainer takes its steps with less memory and with less precision."""

import random
from collections.abc import Iterator

import pytest
import torch
from probes import quiet_log
from tiny import comparisons, demonstrations, lively_policy, tiny_encoder, tiny_reward_model, words
from torch.utils._python_dispatch import TorchDispatchMode

from instructrl.models.passes import applied
from instructrl.models.settings import PassConfig
from instructrl.rollout.generate import Sampling, sample_rollout
from instructrl.trainers.loop import Trainer
from instructrl.trainers.ppo import PPOTrainer
from instructrl.trainers.reward_model import RewardModelTrainer
from instructrl.trainers.settings import AdamConfig, PPOConfig, RewardModelConfig, SFTConfig
from instructrl.trainers.sft import SFTTrainer

ENCODER = tiny_encoder()
PLAIN, SAVING = PassConfig(), PassConfig(checkpoint_activations=True)
LOW = PassConfig(precision="bfloat16")
BOTH = PassConfig(precision="bfloat16", checkpoint_activations=True)


def trainers(passes: PassConfig) -> Iterator[Trainer]:
    adam = AdamConfig(lr=1e-3)
    policy = lively_policy(ENCODER)
    yield SFTTrainer(
        policy, demonstrations(8), ENCODER, SFTConfig(adam=adam, batch_size=8, epochs=1, passes=passes), seed=0
    )
    policy = lively_policy(ENCODER)
    config = RewardModelConfig(adam=adam, batch_size=8, passes=passes)
    yield RewardModelTrainer(tiny_reward_model(policy), comparisons(8), ENCODER, config, seed=0)
    rng = random.Random(0)
    config = PPOConfig(
        num_episodes=8,
        rollout_batch=8,
        minibatch=8,
        policy_adam=adam,
        value_adam=adam,
        warmup_iterations=0,
        passes=passes,
    )
    prompts = [words(rng) for _ in range(8)]
    yield PPOTrainer(policy, tiny_reward_model(policy), prompts, ENCODER, config, seed=0)


@pytest.mark.parametrize("passes", [SAVING, LOW, BOTH])
def test_trainers_take_their_steps_with_either(passes):
    for plain, other in zip(trainers(PLAIN), trainers(passes), strict=True):
        for trainer in (plain, other):
            trainer.run(quiet_log())
        pairs = list(zip(plain.state_dict()["modules"].items(), other.state_dict()["modules"].items(), strict=True))
        for (_, first), (_, second) in pairs:
            assert all(x.dtype == first[name].dtype for name, x in second.items())
            same = all(torch.equal(first[name], x) for name, x in second.items())
            assert same == (passes.precision == "float32")


def test_in_bfloat16_the_weights_are_those_of_the_last_optimiser_step():
    policy = lively_policy(ENCODER)
    rows = ENCODER.demonstrations(demonstrations(4))
    with applied(LOW, [policy]):
        before = policy(rows)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(1.5)
        after = policy(rows)
    with applied(LOW, [policy]):
        fresh = policy(rows)
    assert torch.equal(after, fresh)
    assert not torch.equal(after, before)


class _Conversions(TorchDispatchMode):
    """How often each weight is converted."""

    def __init__(self, weights) -> None:
        super().__init__()
        self.counts = dict.fromkeys((x.data_ptr() for x in weights), 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.counts:
            self.counts[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


def test_sampling_in_bfloat16_converts_weights_once_and_leaves_the_gradient_alone():
    policy = lively_policy(ENCODER)
    matrices = [
        x for name, x in policy.named_parameters() if name.endswith("weight") and ".h." in name and x.dim() == 2
    ]
    rows = ENCODER.demonstrations(demonstrations(4))
    with applied(LOW, [policy]):
        with _Conversions(matrices) as conversions:
            rollout = sample_rollout(policy, ENCODER, ["w1", "w2 w3"], Sampling(seed=0, max_response_tokens=8))
        policy(rows).sum().backward()
    assert rollout.sequences.response.shape[1] > 1
    assert set(conversions.counts.values()) == {1}
    assert all(x.grad is not None and bool(x.grad.any()) for x in matrices)
