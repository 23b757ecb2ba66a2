"""What the commands do, as a person writes it in Python: names from the top, any function as the reward, a folder."""

import json
import math

import pytest
import torch
from tiny import tiny_encoder, tiny_policy, tiny_reward_model

import instructrl
from instructrl import AdamConfig, PPOConfig, PPOTrainer
from instructrl.models.settings import PassConfig
from instructrl.rollout.generate import response_texts
from instructrl.rollout.scoring import rollout_scores

ENCODER = tiny_encoder()
PROMPTS = ["w1 w2", "w3", "w4 w5 w6", "w7"]
CONFIG = PPOConfig(
    num_episodes=24,
    rollout_batch=8,
    minibatch=4,
    microbatch=4,
    warmup_iterations=1,
    policy_adam=AdamConfig(lr=1e-3),
    value_adam=AdamConfig(lr=1e-3),
    passes=PassConfig(),
)


def even(prompts, responses):
    """How many words end in an even digit."""
    return [sum(word[-1] in "02468" for word in text.split()) for text in responses]


def trainer(reward=even, *, reward_model=None, **others):
    return PPOTrainer(tiny_policy(ENCODER), reward_model, PROMPTS, ENCODER, CONFIG, reward=reward, **others)


def weights(module):
    return torch.cat([x.detach().flatten() for x in module.parameters()])


def test_every_name_at_the_top_is_there():
    for name in instructrl._PLACES:
        assert getattr(instructrl, name).__name__ == name
    assert {*instructrl._PLACES} <= set(dir(instructrl))
    with pytest.raises(AttributeError, match="module 'instructrl' has no attribute 'PPOTrianer'"):
        instructrl.PPOTrianer  # noqa: B018


def test_a_function_is_the_reward():
    seen = []

    def reward(prompts, responses):
        seen.append((list(prompts), list(responses)))
        return even(prompts, responses)

    ppo = trainer(reward)
    metrics, _ = ppo.train_step()
    ((prompts, responses),) = seen
    assert prompts == [PROMPTS[i] for i in ppo.prompt_order.rows(0, 8)]
    assert responses == response_texts(ppo._rollout, ENCODER)
    assert metrics["score"] == pytest.approx(sum(even(prompts, responses)) / 8)


def test_beside_a_reward_model_the_two_are_added():
    policy = tiny_policy(ENCODER)
    judge = tiny_reward_model(policy)
    ppo = trainer(reward_model=judge)
    metrics, _ = ppo.train_step()
    scores = rollout_scores(judge, ppo._rollout, ENCODER.end_of_text)
    both = scores.mean() + sum(even([], response_texts(ppo._rollout, ENCODER))) / 8
    assert metrics["score"] == pytest.approx(float(both), rel=1e-5)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([1.0], "reward: found 1 numbers for 8 responses, accepted is one for each"),
        ([0.0, math.nan, *[0.0] * 6], "reward: found nan for response 1, accepted are finite numbers"),
        ([0.0] * 7 + ["good"], "reward: found 'good' for response 7, accepted are finite numbers"),
    ],
)
def test_other_rewards_are_refused(found, message):
    ppo = trainer(lambda prompts, responses: found)
    before = weights(ppo.policy)
    with pytest.raises(ValueError, match=message):
        ppo.run()
    assert torch.equal(weights(ppo.policy), before)


def test_without_any_reward_there_is_no_trainer():
    with pytest.raises(ValueError, match="reward: found None and no reward model, accepted is one of them, or both"):
        trainer(None)


def test_a_folder_is_gone_on_with_to_the_same_bits(tmp_path):
    whole, begun, resumed = trainer(), trainer(), trainer()
    whole.run(tmp_path / "whole")
    begun.run(tmp_path / "parts", until=1)
    resumed.run(str(tmp_path / "parts"))
    assert torch.equal(weights(whole.policy), weights(resumed.policy))
    assert torch.equal(weights(whole.average), weights(resumed.average))
    rows = [(tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8") for name in ("whole", "parts")]
    assert rows[0] == rows[1]
    assert [json.loads(line)["step"] for line in rows[0].splitlines()] == [0, 1, 2]
    again = trainer()
    again.run(tmp_path / "whole")
    assert again.step == 3
    assert torch.equal(weights(whole.policy), weights(again.policy))


def test_of_another_seed_a_folder_is_refused(tmp_path):
    trainer().run(tmp_path, until=1)
    with pytest.raises(ValueError, match="found a checkpoint of other data"):
        trainer(seed=1).run(tmp_path)
