"""Step 2: one forward pass a completion, equal weight of the prompts, and the bias that follows."""

import math
from dataclasses import replace

import pytest
import torch
from probes import EPS, SpentGradients, assert_continues_exactly, assert_same_gradient
from tiny import comparisons, demonstrations, lively_policy, tiny_encoder, tiny_policy, tiny_reward_model

from instructrl import profiling
from instructrl.models.scoring import RewardModel
from instructrl.rollout.scoring import comparison_scores, score_texts
from instructrl.trainers.reward_model import RewardModelTrainer, normalize_on_demonstrations, separate_pairs
from instructrl.trainers.settings import AdamConfig, RewardModelConfig
from instructrl.types import Comparison

CONFIG = RewardModelConfig(adam=AdamConfig(lr=3e-3), batch_size=8)
ENCODER = tiny_encoder()
ROWS = comparisons(24)


def trainer_of(config: RewardModelConfig = CONFIG, rows=ROWS, bias: float = 0.0) -> RewardModelTrainer:
    reward_model = tiny_reward_model(lively_policy(ENCODER), seed=1)
    reward_model.bias.fill_(bias)
    return RewardModelTrainer(reward_model, rows, ENCODER, config, seed=5)


@torch.no_grad()
def loss_of(reward_model: RewardModel, rows: list[Comparison]) -> float:
    """Equation 1 in float64, from scores made one completion at a time."""
    means = []
    for row in rows:
        scores = [float(reward_model(ENCODER.pairs([row.prompt], [text]))) for text in row.completions]
        if row.preferred:
            terms = [math.log1p(math.exp(scores[j] - scores[i])) for i, j in row.preferred]
            means.append(sum(terms) / len(terms))
    return sum(means) / len(means)


def test_the_loss_is_the_mean_over_prompts_of_the_mean_over_pairs():
    trainer = trainer_of(replace(CONFIG, batch_size=24))
    expected = loss_of(trainer.reward_model, ROWS)
    metrics, units = trainer.train_step()
    assert any(not row.preferred for row in ROWS)
    assert any(len(row.completions) != len(ROWS[0].completions) for row in ROWS)
    assert abs(metrics["loss"] - expected) <= 200 * EPS * expected
    assert units == sum(len(row.preferred) for row in ROWS)


@pytest.mark.parametrize("microbatch", [3, 16])
def test_every_prompt_and_every_completion_is_read_once(microbatch):
    trainer = trainer_of(replace(CONFIG, microbatch=microbatch))
    visible = set()

    def record(module, args, kwargs) -> None:
        for ids, mask in zip(kwargs["input_ids"], kwargs["attention_mask"], strict=True):
            visible.update(tuple(ids[columns].tolist()) for columns in mask[0] == 0)

    trainer.reward_model.network.base_model.register_forward_pre_hook(record, with_kwargs=True)
    with profiling.collect() as profile:
        trainer.train_step()
    batch = [ROWS[i] for i in trainer.order.batch(0)]
    prompts = [(ENCODER.prompt(row.prompt), [ENCODER.response(text) for text in row.completions]) for row in batch]
    assert visible >= {tuple(prompt + response) for prompt, responses in prompts for response in responses}
    assert profile.tokens == sum(len(prompt) + sum(map(len, responses)) for prompt, responses in prompts)


@pytest.mark.parametrize("microbatch", [1, 3])
def test_micro_batches_add_up_to_the_batch(monkeypatch, microbatch):
    found = []
    for size in (microbatch, 100):
        trainer = trainer_of(replace(CONFIG, microbatch=size))
        gradients = SpentGradients(trainer.update, monkeypatch)
        metrics, units = trainer.train_step()
        found.append((gradients.rows[0], metrics["loss"], metrics["accuracy"], units))
    assert_same_gradient(found[0][0], found[1][0])
    assert abs(found[0][1] - found[1][1]) <= 200 * EPS * found[1][1]
    assert found[0][2:] == found[1][2:]


def test_the_gradient_is_that_of_all_pairs_read_separately(monkeypatch):
    """K forward passes share what K-choose-2 pairs would read twice; the gradient is the same."""
    rows = ROWS[:6]
    trainer = trainer_of(replace(CONFIG, batch_size=6), rows)
    gradients = SpentGradients(trainer.update, monkeypatch)
    reward_model = tiny_reward_model(lively_policy(ENCODER), seed=1)
    total, counted = torch.zeros(()), [row for row in rows if row.preferred]
    for row in counted:
        for i, j in row.preferred:
            texts = [row.completions[i], row.completions[j]]
            winner, loser = reward_model(ENCODER.pairs([row.prompt] * 2, texts))
            total = total - torch.nn.functional.logsigmoid(winner - loser) / len(row.preferred) / len(counted)
    total.backward()
    expected = torch.cat([p.grad.flatten().double() for p in reward_model.parameters() if p.grad is not None])
    trainer.train_step()
    assert_same_gradient(gradients.rows[0], expected)


def test_a_constant_added_to_every_score_changes_nothing(monkeypatch):
    found = []
    for bias in (0.0, 3.5):
        trainer = trainer_of(bias=bias)
        gradients = SpentGradients(trainer.update, monkeypatch)
        loss = trainer.train_step()[0]["loss"]
        found.append((loss, gradients.rows[0]))
    # Scores of this size lose a few roundings more with the constant on top of them.
    assert abs(found[0][0] - found[1][0]) <= 200 * EPS * (found[0][0] + 3.5)
    assert_same_gradient(found[1][1], found[0][1], scale=float(found[0][1].norm()) * 4.5)


def test_the_rate_is_a_cosine_and_the_phase_is_named():
    trainer = RewardModelTrainer(
        tiny_reward_model(tiny_policy(ENCODER)), ROWS, ENCODER, replace(CONFIG, epochs=2), seed=5, phase="judge"
    )
    assert (trainer.phase, trainer.num_steps) == ("judge", 6)
    rates = []
    while trainer.step < 6:
        rates.append(trainer.train_step()[0]["lr"])
    assert rates[0] == 3e-3
    assert abs(rates[3] - 0.55 * 3e-3) <= 1e-15
    assert abs(trainer.update.lr - 3e-4) <= 1e-15


def test_it_learns_the_preference_of_the_tiny_task():
    """Completions with more "w1" win. Under chance the accuracies of P prompts have a mean of 1/2 and a variance of at
    most 1/4 each, so that their mean exceeds four standard errors once in 30,000 times."""
    trainer = trainer_of(replace(CONFIG, epochs=2), comparisons(160, seed=1))
    losses = []
    while trainer.step < trainer.num_steps:
        losses.append(trainer.train_step()[0]["loss"])
    assert sum(losses[-5:]) < sum(losses[:5])
    held_out = [row for row in comparisons(100, seed=2) if row.preferred]
    accuracies = []
    for row, scores in zip(held_out, comparison_scores(trainer.reward_model, ENCODER, held_out), strict=True):
        accuracies.append(sum(scores[i] > scores[j] for i, j in row.preferred) / len(row.preferred))
    assert sum(accuracies) / len(held_out) > 0.5 + 4 * math.sqrt(0.25 / len(held_out))


def test_a_batch_of_ties_moves_nothing():
    ties = [replace(row, preferred=frozenset()) for row in ROWS[:4]]
    metrics, units = trainer_of(rows=ties).train_step()
    assert (metrics["loss"], metrics["gradient_norm"], units) == (0.0, 0.0, 0)


def test_demonstrations_score_zero_on_average_after_the_bias():
    reward_model, rows = tiny_reward_model(lively_policy(ENCODER), seed=1), demonstrations(40)
    reward_model.bias.fill_(2.5)
    prompts, texts = [row.prompt for row in rows], [row.completion for row in rows]
    before = score_texts(reward_model, ENCODER, prompts, texts)
    bias = normalize_on_demonstrations(reward_model, ENCODER, rows)
    after = score_texts(reward_model, ENCODER, prompts, texts)
    # One rounding of each score, and those of the mean.
    bound = 45 * EPS * float(before.abs().max())
    assert abs(float(after.double().mean())) <= bound
    assert float((before - after - before.double().mean()).abs().max()) <= bound
    assert bias == float(reward_model.bias)
    assert abs(bias - (2.5 - float(before.double().mean()))) <= bound


def test_the_bias_is_not_trained():
    trainer = trainer_of(bias=0.5)
    trainer.train_step()
    assert float(trainer.reward_model.bias) == 0.5
    assert "bias" not in dict(trainer.reward_model.named_parameters(recurse=False))


def test_an_interrupted_run_continues_bit_for_bit(tmp_path):
    trainer, _ = assert_continues_exactly(lambda: trainer_of(replace(CONFIG, epochs=2)), 6, 2, tmp_path)
    assert trainer.num_steps == 6


def test_pairs_as_rows_are_equation_1_taken_apart():
    """In one batch of everything the loss is that of prompts as rows: no prompt gains weight by having more pairs."""
    num_pairs = sum(len(row.preferred) for row in ROWS)
    trainer = trainer_of(replace(CONFIG, pairs_as_rows=True, batch_size=num_pairs))
    expected = loss_of(trainer.reward_model, ROWS)
    metrics, units = trainer.train_step()
    assert trainer.num_steps == 1
    assert units == num_pairs
    assert abs(metrics["loss"] - expected) <= 200 * EPS * expected


def test_pairs_as_rows_are_shuffled_among_those_of_other_prompts():
    trainer = trainer_of(replace(CONFIG, pairs_as_rows=True, batch_size=8))
    num_pairs = sum(len(row.preferred) for row in ROWS)
    assert trainer.num_steps == -(-num_pairs // 8)
    seen = [trainer.comparisons[i] for step in range(trainer.num_steps) for i in trainer.order.batch(step)]
    told = {(row.prompt, *row.completions) for row in seen}
    assert told == {(row.prompt, row.completions[i], row.completions[j]) for row in ROWS for i, j in row.preferred}
    first = [trainer.comparisons[i].prompt for i in trainer.order.batch(0)]
    assert len(set(first)) > len(ROWS[0].preferred)


def test_the_weights_of_separate_pairs_by_hand():
    rows = [
        Comparison(prompt="a", completions=("x", "y"), preferred=frozenset({(1, 0)}), finished=(True, False)),
        Comparison(prompt="b", completions=("x", "y", "z"), preferred=Comparison.pairs_from_ranks([0, 1, 2])),
        Comparison(prompt="c", completions=("x", "y"), preferred=frozenset()),
    ]
    # One pair and three, two on average: weights 2 / 1 and 2 / 3.
    found = [(pair.prompt, pair.completions, pair.finished, weight) for pair, weight in separate_pairs(rows)]
    assert found == [
        ("a", ("y", "x"), (False, True), 2.0),
        ("b", ("x", "y"), (), 2 / 3),
        ("b", ("x", "z"), (), 2 / 3),
        ("b", ("y", "z"), (), 2 / 3),
    ]
