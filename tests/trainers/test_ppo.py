"""Step 3: the relations that hold before the first update, the pretraining mix, the average, and exact continuation."""

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch
from probes import EPS, SpentGradients, assert_continues_exactly, assert_same_gradient, metrics_of, quiet_log, weights
from tiny import BLOCK, blocks, lively_policy, tiny_encoder, tiny_reward_model, words
from torch import nn

from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.trainers import ppo as ppo_module
from instructrl.trainers.ppo import PPOTrainer
from instructrl.trainers.settings import AdamConfig, PPOConfig

ENCODER = tiny_encoder()
PROMPTS = [words(random.Random(i)) for i in range(20)]
CONFIG = PPOConfig(
    num_episodes=16 * 6,
    rollout_batch=16,
    minibatch=4,
    policy_adam=AdamConfig(lr=1e-3),
    value_adam=AdamConfig(lr=2e-3),
    warmup_iterations=3,
    max_response_tokens=6,
    ema_decay=0.75,
)
WITH_MIX = replace(CONFIG, ptx_coef=2.5, ptx_examples_per_episode=0.5)


def start() -> Policy:
    return lively_policy(ENCODER)


def scorer(policy: Policy) -> RewardModel:
    reward_model = tiny_reward_model(policy, seed=3)
    reward_model.bias.fill_(0.25)
    return reward_model


def trainer_of(config: PPOConfig = CONFIG, **more) -> PPOTrainer:
    policy = start()
    more.setdefault("blocks", blocks(9) if config.ptx_coef else None)
    return PPOTrainer(policy, scorer(policy), PROMPTS, ENCODER, config, seed=2, **more)


def trained(trainer: PPOTrainer, steps: int | None = None) -> list[dict[str, float]]:
    rows = []
    while trainer.step < (trainer.num_steps if steps is None else steps):
        rows.append(trainer.train_step()[0])
    return rows


def test_before_the_first_update_the_ratio_is_one():
    metrics = trained(trainer_of(replace(CONFIG, minibatch=16)), 1)[0]
    assert abs(metrics["ratio_max"] - 1) <= 1e-5
    assert abs(metrics["ratio"] - 1) <= 1e-5
    assert metrics["clip_fraction"] == metrics["value_clip_fraction"] == 0
    assert metrics["approx_kl"] <= 0.5e-10  # half the square of a log ratio of 1e-5


def test_before_the_first_update_the_policy_is_its_reference():
    metrics = trained(trainer_of(replace(CONFIG, missing_eos_score=None)), 1)[0]
    assert metrics["kl"] == 0
    assert metrics["reward"] == metrics["score"]


def test_later_minibatches_see_a_moved_policy():
    metrics = trained(trainer_of(replace(CONFIG, warmup_iterations=0)), 2)
    assert metrics[0]["ratio_max"] > 1 + 1e-3
    assert metrics[1]["kl"] != 0
    assert metrics[1]["reward"] != metrics[1]["score"]


def test_the_policy_loss_starts_at_zero():
    """With ratio 1 it is minus the mean of the whitened advantages, which is 0."""
    metrics = trained(trainer_of(replace(CONFIG, minibatch=16)), 1)[0]
    assert abs(metrics["policy_loss"]) <= 200 * EPS


def test_both_rates_warm_up_from_a_tenth():
    trainer = trainer_of()
    policy_rates, value_rates = [], []
    for _ in range(6):
        policy_rates.append(trainer.policy_update.lr)
        value_rates.append(trainer.value_update.lr)
        assert trainer.train_step()[0]["lr"] == policy_rates[-1]
    factors = [0.1, 0.4, 0.7, 1.0, 1.0, 1.0]
    assert all(math.isclose(rate, 1e-3 * f, rel_tol=1e-12) for rate, f in zip(policy_rates, factors, strict=True))
    assert all(math.isclose(rate, 2e-3 * f, rel_tol=1e-12) for rate, f in zip(value_rates, factors, strict=True))


def test_without_its_coefficient_the_mix_changes_no_bit():
    results = []
    for given in (None, blocks(9)):
        trainer = trainer_of(blocks=given)
        results.append((trained(trainer, 3), weights(trainer.policy), weights(trainer.average)))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][2], results[1][2])


def test_the_mix_adds_its_coefficient_times_the_likelihoods_gradient(monkeypatch):
    given = []
    make = ppo_module.blocks_as_sequences
    monkeypatch.setattr(ppo_module, "blocks_as_sequences", lambda part: given.append(part) or make(part))
    policy_rows, value_rows, losses = [], [], []
    for config in (CONFIG, WITH_MIX):
        trainer = trainer_of(config)
        policy_gradients = SpentGradients(trainer.policy_update, monkeypatch)
        value_gradients = SpentGradients(trainer.value_update, monkeypatch)
        losses.append(trained(trainer, 1)[0].get("ptx_loss"))
        policy_rows.append(policy_gradients.rows[0])
        value_rows.append(value_gradients.rows[0])
    # transformers' own loss over the same blocks is the mean over all tokens but the first.
    plain = start()
    loss = plain.lm(input_ids=given[0], labels=given[0]).loss
    loss.backward()
    expected = torch.cat([p.grad.flatten().double() for p in plain.parameters() if p.grad is not None])
    difference = policy_rows[1] - policy_rows[0]
    scale = sum(float(row.norm()) for row in policy_rows)
    assert_same_gradient(difference, 2.5 * expected, scale=scale)
    assert torch.equal(value_rows[0], value_rows[1])
    assert losses[0] is None
    assert losses[1] is not None
    assert {tuple(part.shape) for part in given} == {(2, BLOCK)}
    assert len(given) == 4


def test_the_logged_mix_is_the_likelihood_without_the_coefficient(monkeypatch):
    given = []
    make = ppo_module.blocks_as_sequences
    monkeypatch.setattr(ppo_module, "blocks_as_sequences", lambda part: given.append(part) or make(part))
    metrics = trained(trainer_of(replace(WITH_MIX, minibatch=16)), 1)[0]
    with torch.no_grad():
        expected = float(start().lm(input_ids=given[0], labels=given[0]).loss.double())
    assert abs(metrics["ptx_loss"] - expected) <= 200 * EPS * expected


def test_the_mix_takes_every_block_once_before_any_again(monkeypatch):
    data, given = blocks(9), []
    make = ppo_module.blocks_as_sequences
    monkeypatch.setattr(ppo_module, "blocks_as_sequences", lambda part: given.append(part) or make(part))
    trained(trainer_of(replace(WITH_MIX, num_epochs=2), blocks=data), 2)
    rows = [data.tolist().index(row) for part in given for row in part.tolist()]
    # 2 iterations x 2 epochs x 4 minibatches x 2 blocks
    assert len(rows) == 32
    assert all(sorted(rows[i : i + 9]) == list(range(9)) for i in (0, 9, 18))


@pytest.mark.parametrize("microbatch", [1, 3])
def test_micro_batches_add_up_to_the_minibatch(monkeypatch, microbatch):
    found = []
    for size in (microbatch, 64):
        trainer = trainer_of(replace(WITH_MIX, minibatch=16, microbatch=size))
        probes = [SpentGradients(u, monkeypatch) for u in (trainer.policy_update, trainer.value_update)]
        found.append(([probe.rows for probe in probes], trained(trainer, 1)[0]))
    for split, whole in zip(found[0][0], found[1][0], strict=True):
        assert_same_gradient(split[0], whole[0])
    split, whole = found[0][1], found[1][1]
    assert split.keys() == whole.keys()
    # Before the update the policy loss is 0 but for the rounding of advantages of size 1.
    assert all(abs(split[name] - whole[name]) <= 200 * EPS * max(1, abs(whole[name])) for name in whole)


def test_every_episode_is_in_one_minibatch_an_epoch(monkeypatch):
    trainer = trainer_of(replace(CONFIG, num_epochs=2))
    seen = []
    optimize = trainer._optimize
    monkeypatch.setattr(trainer, "_optimize", lambda part, offset: seen.append(part) or optimize(part, offset))
    trainer.train_step()
    assert [part.sequences.num_rows for part in seen] == [4] * 8
    epochs = [torch.cat([part.scores for part in seen[i : i + 4]]) for i in (0, 4)]
    assert torch.equal(epochs[0].sort().values, epochs[1].sort().values)
    assert not torch.equal(epochs[0], epochs[1])


def test_the_average_has_its_closed_form(monkeypatch):
    trainer = trainer_of()
    history = []
    update = trainer.average.update_parameters
    monkeypatch.setattr(
        trainer.average, "update_parameters", lambda policy: history.append(weights(policy).double()) or update(policy)
    )
    trained(trainer, 2)
    assert len(history) == 8  # per optimiser step
    decay = 0.75
    factors = [decay**7] + [(1 - decay) * decay ** (7 - k) for k in range(1, 8)]
    assert abs(sum(factors) - 1) <= 1e-12
    expected = sum(f * row for f, row in zip(factors, history, strict=True))
    found = weights(trainer.averaged_policy()).double()
    assert float((found - expected).abs().max()) <= 8 * 3 * EPS * float(expected.abs().max())
    assert float((found - history[-1]).abs().max()) > 1e-4
    assert torch.equal(weights(trainer.policy).double(), history[-1])


def test_the_averaged_policy_is_a_copy():
    trainer = trainer_of()
    trained(trainer, 1)
    policy = trainer.averaged_policy()
    assert isinstance(policy, Policy)
    with torch.no_grad():
        policy.lm.get_output_embeddings().weight.zero_()
    assert float(trainer.average.module.lm.get_output_embeddings().weight.detach().abs().sum()) > 0


def test_the_value_function_starts_as_the_reward_model():
    trainer = trainer_of()
    found, expected = trainer.value_function.state_dict(), trainer.reward_model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert float(trainer.value_function.bias) == 0.25


def test_reward_model_and_reference_stay_as_they_are():
    trainer = trainer_of()
    fixed = (trainer.reward_model, trainer.reference)
    before = [weights(module) for module in fixed]
    moving = [weights(module) for module in (trainer.policy, trainer.value_function)]
    trained(trainer, 1)
    assert all(torch.equal(weights(module), old) for module, old in zip(fixed, before, strict=True))
    after = [weights(module) for module in (trainer.policy, trainer.value_function)]
    assert not any(torch.equal(new, old) for new, old in zip(after, moving, strict=True))


@pytest.mark.parametrize(
    "config",
    [CONFIG, replace(WITH_MIX, kl_target=0.05, kl_horizon=100, num_epochs=2)],
    ids=["ppo", "ppo_ptx, adaptive"],
)
def test_an_interrupted_run_continues_bit_for_bit(tmp_path, config):
    trainer, continued = assert_continues_exactly(lambda: trainer_of(config), 5, 2, tmp_path)
    for name in ("policy", "value_function", "average", "reference", "reward_model"):
        assert torch.equal(weights(getattr(trainer, name)), weights(getattr(continued, name))), name
    assert torch.equal(weights(trainer.averaged_policy()), weights(continued.averaged_policy()))
    assert trainer.kl_coef == continued.kl_coef
    assert (trainer.kl_coef != config.kl_coef) == (config.kl_target is not None)


def test_the_coefficient_follows_the_measured_kl():
    trainer = trainer_of(replace(CONFIG, kl_target=0.05, kl_horizon=100, kl_coef=0.4))
    rows = trained(trainer, 4)
    assert rows[0]["kl_coef"] == 0.4
    for before, after in itertools.pairwise(rows):
        error = min(max(before["kl"] / 0.05 - 1, -0.2), 0.2)
        assert math.isclose(after["kl_coef"], before["kl_coef"] * (1 + error * 16 / 100), rel_tol=1e-12)
    # No KL at all is as far below its target as counts.
    assert math.isclose(rows[1]["kl_coef"], 0.4 * (1 - 0.2 * 0.16), rel_tol=1e-12)


def test_a_fixed_coefficient_stays():
    assert {row["kl_coef"] for row in trained(trainer_of(), 3)} == {0.02}


def test_the_observer_sees_every_rollout_and_is_logged(tmp_path):
    seen = []

    def observe(prompts, rollout) -> dict[str, float]:
        seen.append((list(prompts), rollout))
        return {"gold": float(len(seen))}

    trainer = trainer_of(observer=observe)
    trainer.run(quiet_log(tmp_path), until=3)
    rows = metrics_of(tmp_path)
    assert [row["gold"] for row in rows] == [1, 2, 3]
    assert {row["phase"] for row in rows} == {"ppo"}
    asked = [prompt for prompts, _ in seen for prompt in prompts]
    assert sorted(asked[:20]) == sorted(PROMPTS)  # every prompt once before any again
    for prompts, rollout in seen:
        sequences = rollout.sequences
        tokens = [row[mask].tolist() for row, mask in zip(sequences.prompt, sequences.prompt_mask, strict=True)]
        assert tokens == [ENCODER.prompt(prompt) for prompt in prompts]
    unobserved = trainer_of()
    trainer_rows = [{k: v for k, v in row.items() if k not in ("phase", "step", "gold")} for row in rows]
    assert trained(unobserved, 3) == trainer_rows
    assert torch.equal(weights(unobserved.policy), weights(trainer.policy))


def test_every_iteration_draws_anew():
    """A policy that does not move answers the same prompt otherwise every time it is asked."""
    still = replace(CONFIG, policy_adam=AdamConfig(lr=1e-30))
    policy, seen = start(), []

    def observe(prompts, rollout) -> dict[str, float]:
        seen.append(rollout.sequences)
        return {}

    trained(PPOTrainer(policy, scorer(policy), ["w5"], ENCODER, still, seed=2, observer=observe), 2)
    # Two iterations of four steps, each of which moves a weight by about the rate.
    assert float((weights(policy) - weights(start())).abs().max()) <= 16e-30
    texts = [set(ENCODER.decode(part.response, part.response_mask)) for part in seen]
    assert all(len(part) > 8 for part in texts)
    assert texts[0] != texts[1]


def test_torchs_global_generator_is_left_alone():
    trainer = trainer_of(WITH_MIX)
    before = torch.random.get_rng_state()
    trainer.train_step()
    assert torch.equal(torch.random.get_rng_state(), before)


class CountingReward(RewardModel):
    """Scores the share of "w1" among the response's tokens."""

    def forward(self, sequences) -> torch.Tensor:
        token = ENCODER.prompt("w1")[0]
        mask = sequences.response_mask
        return ((sequences.response == token) & mask).sum(dim=1) / mask.sum(dim=1)


def test_the_score_goes_up():
    """At least five standard errors of the difference between the first and the last iteration's mean."""
    policy = start()
    config = replace(
        CONFIG, num_episodes=64 * 12, rollout_batch=64, minibatch=32, warmup_iterations=0, missing_eos_score=None
    )
    config = replace(config, policy_adam=AdamConfig(lr=3e-3), kl_coef=0.0)
    spread = []

    def observe(prompts, rollout) -> dict[str, float]:
        spread.append(float(reward_model(rollout.sequences).var()))
        return {}

    reward_model = CountingReward.from_policy(policy, torch.Generator().manual_seed(0))
    nn.init.zeros_(reward_model.network.score.weight)
    rows = trained(PPOTrainer(policy, reward_model, PROMPTS, ENCODER, config, seed=0, observer=observe))
    error = math.sqrt((spread[0] + spread[-1]) / 64)
    assert rows[-1]["score"] - rows[0]["score"] > 5 * error > 0
    assert rows[-1]["kl"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minibatch": 60}, r"minibatch: found 60, accepted are divisors of rollout_batch 512"),
        ({"num_episodes": 511}, r"num_episodes: found 511, accepted are multiples of rollout_batch 512"),
        ({"kl_coef": -0.1}, r"kl_coef: found -0\.1, accepted"),
        ({"ptx_coef": -1.0}, r"ptx_coef: found -1\.0, accepted"),
        ({"vf_coef": -1.0}, r"vf_coef: found -1\.0, accepted"),
        ({"ptx_examples_per_episode": -8.0}, r"ptx_examples_per_episode: found -8\.0, accepted"),
        ({"ema_decay": 1.0}, r"ema_decay: found 1\.0, accepted"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**changes)


def test_a_mix_needs_plain_text():
    with pytest.raises(ValueError, match=r"blocks: found None, ptx_coef 2\.5 needs plain text"):
        trainer_of(WITH_MIX, blocks=None)


def test_counts_follow_from_the_sizes():
    config = PPOConfig(num_episodes=960, rollout_batch=96, minibatch=32, num_epochs=2, ptx_coef=1.0)
    assert (config.num_iterations, config.num_optimizer_steps, config.num_ptx_examples) == (10, 60, 256)
    assert replace(config, ptx_coef=0.0).num_ptx_examples == 0
