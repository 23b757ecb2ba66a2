"""Step 1: which tokens count, what the mix adds, and that a step depends on nothing but seed and number."""

from dataclasses import replace

import pytest
import torch
from probes import (
    EPS,
    SpentGradients,
    assert_continues_exactly,
    assert_same_gradient,
    flat_gradient,
    quiet_log,
    weights,
)
from tiny import BLOCK, blocks, demonstrations, lively_policy, tiny_encoder
from torch import nn

from instructrl.models.policy import Policy
from instructrl.trainers import sft as sft_module
from instructrl.trainers.pretraining import PretrainingTrainer
from instructrl.trainers.settings import AdamConfig, PretrainingConfig, SFTConfig
from instructrl.trainers.sft import SFTTrainer, demonstration_loss
from instructrl.types import Demonstration

CONFIG = SFTConfig(adam=AdamConfig(lr=1e-3), batch_size=8, epochs=2, residual_dropout=0.0)
ENCODER = tiny_encoder()
ROWS = demonstrations(20)


def trainer_of(config: SFTConfig = CONFIG, rows=ROWS, policy: Policy | None = None, **more) -> SFTTrainer:
    policy = lively_policy(ENCODER) if policy is None else policy
    return SFTTrainer(policy, rows, ENCODER, config, seed=5, **more)


@torch.no_grad()
def summed_loss(policy: Policy, rows: list[Demonstration]) -> tuple[float, int]:
    """Sum and count of -log p over response tokens in float64, one demonstration at a time, from plain logits."""
    total, count = 0.0, 0
    for row in rows:
        prompt, response = ENCODER.prompt(row.prompt), ENCODER.response(row.completion)
        logprobs = torch.log_softmax(policy.lm(torch.tensor([prompt + response])).logits[0].double(), dim=-1)
        total -= sum(float(logprobs[len(prompt) - 1 + t, token]) for t, token in enumerate(response))
        count += len(response)
    return total, count


def assert_close(found: float, expected: float) -> None:
    assert abs(found - expected) <= 200 * EPS * abs(expected)


def test_the_loss_is_that_of_the_response_tokens():
    trainer = trainer_of()
    batch = [ROWS[i] for i in trainer.order.batch(0)]
    total, count = summed_loss(trainer.policy, batch)
    metrics, units = trainer.train_step()
    assert_close(metrics["loss"], total / count)
    # A word is a token, and the end of text is learned too.
    assert units == count == sum(len(row.completion.split()) + 1 for row in batch)


def test_prompts_condition_the_loss_and_are_not_in_it(monkeypatch):
    changed = [replace(row, prompt="w3 " + row.prompt) for row in ROWS]
    plain, prefixed = trainer_of().train_step(), trainer_of(rows=changed).train_step()
    assert prefixed[1] == plain[1]
    assert prefixed[0]["loss"] != plain[0]["loss"]
    # Token 3 occurs in no completion of this batch and heads every prompt; untied, its output row gets the gradient
    # of the normaliser alone: the mean probability of token 3 over the counted positions times their states.
    policy = lively_policy(ENCODER)
    head = nn.Linear(32, 32, bias=False)
    head.weight = nn.Parameter(policy.lm.get_output_embeddings().weight.detach().clone())
    policy.lm.set_output_embeddings(head)
    rows = [Demonstration(prompt="w2 w2", completion="w4 w5")] * 4
    trainer = trainer_of(replace(CONFIG, batch_size=4), rows, policy)
    ids = torch.tensor([[3, 3, 5, 6, ENCODER.end_of_text]])
    with torch.no_grad():
        states = policy.lm.base_model(ids).last_hidden_state[0, 1:4].double()
        probabilities = torch.softmax(states @ head.weight.double().T, dim=-1)
    expected = (probabilities[:, 3, None] * states).mean(dim=0)
    found = []
    take = trainer.update.step
    monkeypatch.setattr(trainer.update, "step", lambda loss: found.append(head.weight.grad[3].double()) or take(loss))
    trainer.train_step()
    assert float((found[0] - expected).norm()) <= 200 * EPS * float(states.norm())


@pytest.mark.parametrize("fraction", [0.0, 0.25])
@pytest.mark.parametrize("microbatch", [1, 3])
def test_micro_batches_add_up_to_the_batch(monkeypatch, microbatch, fraction):
    found = []
    for size in (microbatch, 100):
        trainer = trainer_of(replace(CONFIG, microbatch=size, pretraining_fraction=fraction), blocks=blocks(9))
        gradients = SpentGradients(trainer.update, monkeypatch)
        metrics, units = trainer.train_step()
        found.append((gradients.rows[0], metrics["loss"], units))
    (split, split_loss, split_units), (whole, whole_loss, whole_units) = found
    assert_same_gradient(split, whole)
    assert_close(split_loss, whole_loss)
    assert split_units == whole_units


def test_the_rate_is_a_cosine_over_all_epochs():
    trainer = trainer_of()
    assert trainer.num_steps == 2 * 3  # 20 rows in batches of 8, two epochs
    rates = []
    while trainer.step < trainer.num_steps:
        rates.append(trainer.train_step()[0]["lr"])
    assert rates[0] == 1e-3
    assert rates == sorted(rates, reverse=True)
    assert abs(rates[3] - 0.55e-3) <= 1e-15  # half way between the peak and its tenth
    assert abs(trainer.update.lr - 1e-4) <= 1e-15


def test_dropout_is_on_in_the_step_and_off_after():
    trainer = trainer_of(replace(CONFIG, residual_dropout=0.2))
    seen = set()

    def record(module, inputs, output) -> None:
        seen.add((module.training, module.p, bool((output == 0).any())))

    mlp = trainer.policy.lm.transformer.h[0].mlp.dropout
    mlp.register_forward_hook(record)
    trainer.train_step()
    assert seen == {(True, 0.2, True)}
    assert not any(module.training for module in trainer.policy.modules())
    seen.clear()
    losses = {demonstration_loss(trainer.policy, ROWS, ENCODER) for _ in range(2)}
    assert len(losses) == 1
    assert {training for training, _, _ in seen} == {False}


def test_a_second_call_takes_the_second_step():
    by_calls, by_run = trainer_of(), trainer_of()
    for number in range(2):
        assert by_calls.step == number
        by_calls.train_step()
    by_run.run(quiet_log(), until=2)
    assert by_calls.step == by_run.step == 2
    assert torch.equal(weights(by_calls.policy), weights(by_run.policy))


def test_dropout_changes_with_the_step():
    losses = []
    for step in (0, 1):
        trainer = trainer_of(replace(CONFIG, residual_dropout=0.5), ROWS[:1])
        trainer.step = step  # the batch is the one row either way
        losses.append(trainer.train_step()[0]["loss"])
    assert abs(losses[0] - losses[1]) > 1000 * EPS * losses[0]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_step_depends_on_seed_and_number_only(dropout):
    results = []
    for junk in (1, 2):
        trainer = trainer_of(replace(CONFIG, residual_dropout=dropout))
        torch.manual_seed(junk)
        before = torch.random.get_rng_state()
        results.append((trainer.train_step(), weights(trainer.policy)))
        assert torch.equal(torch.random.get_rng_state(), before), "torch's global generator was moved"
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_the_mix_fills_its_share_of_every_batch(monkeypatch):
    given, data = [], blocks(9)
    monkeypatch.setattr(
        sft_module,
        "blocks_as_sequences",
        lambda part, make=sft_module.blocks_as_sequences: given.append(part) or make(part),
    )
    trainer = trainer_of(replace(CONFIG, pretraining_fraction=0.25), blocks=data)
    # Two of eight: six demonstrations remain, so that 20 take four steps.
    assert (trainer.config.num_pretraining, trainer.steps_per_epoch) == (2, 4)
    start = lively_policy(ENCODER)
    metrics, units = trainer.train_step()
    batch = [ROWS[i] for i in trainer.order.batch(0)]
    assert len(batch) == 6
    total, count = summed_loss(start, batch)
    with torch.no_grad():
        plain = float(start.lm(input_ids=given[0], labels=given[0]).loss.double())
    assert units == count + 2 * (BLOCK - 1)
    # Each kind a mean over its own tokens: blocks are longer than demonstrations, and weigh their share all the same.
    assert_close(metrics["demonstration_loss"], total / count)
    assert_close(metrics["pretraining_loss"], plain)
    assert_close(metrics["loss"], 0.75 * total / count + 0.25 * plain)
    for step in range(1, 8):
        trainer.step = step
        trainer.train_step()
    rows = [data.tolist().index(row) for part in given for row in part.tolist()]
    assert len(rows) == 16
    assert sorted(rows[:9]) == list(range(9))  # every block once before any comes again


@pytest.mark.parametrize("fraction", [0.1, 0.25])
def test_the_gradient_of_the_mix_in_float64(monkeypatch, fraction):
    """Derived anew from logits: (1 - f) times the mean over response tokens plus f times that over plain text."""
    config = replace(CONFIG, pretraining_fraction=fraction, microbatch=3)
    trainer = trainer_of(config, policy=lively_policy(ENCODER).double(), blocks=blocks(9))
    given = []
    monkeypatch.setattr(
        sft_module,
        "blocks_as_sequences",
        lambda part, make=sft_module.blocks_as_sequences: given.append(part) or make(part),
    )
    gradients = SpentGradients(trainer.update, monkeypatch)
    policy = lively_policy(ENCODER).double()
    trainer.train_step()
    nlls = []
    for row in [ROWS[i] for i in trainer.order.batch(0)]:
        prompt, response = ENCODER.prompt(row.prompt), ENCODER.response(row.completion)
        logits = policy.lm(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        nlls.append(nn.functional.cross_entropy(logits, torch.tensor(response), reduction="none"))
    logits = policy.lm(given[0]).logits[:, :-1]
    plain = nn.functional.cross_entropy(logits.flatten(0, 1), given[0][:, 1:].flatten())
    ((1 - fraction) * torch.cat(nlls).mean() + fraction * plain).backward()
    expected = flat_gradient(policy.parameters())
    assert float((gradients.rows[0] - expected).norm()) <= 1e-12 * float(expected.norm())


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_an_interrupted_run_continues_bit_for_bit(tmp_path, dropout):
    config = replace(CONFIG, residual_dropout=dropout, pretraining_fraction=0.25)
    assert_continues_exactly(lambda: trainer_of(config, blocks=blocks(9)), 6, 4, tmp_path)


def test_training_lowers_the_loss_of_what_it_is_trained_on():
    trainer = trainer_of(replace(CONFIG, adam=AdamConfig(lr=3e-3), epochs=8))
    before = demonstration_loss(trainer.policy, ROWS, ENCODER)
    while trainer.step < trainer.num_steps:
        trainer.train_step()
    assert demonstration_loss(trainer.policy, ROWS, ENCODER) < before - 0.5


def test_validation_loss_is_per_token_over_all_demonstrations():
    policy, rows = lively_policy(ENCODER), demonstrations(70)  # more than the 64 of one chunk
    total, count = summed_loss(policy, rows)
    assert_close(demonstration_loss(policy, rows, ENCODER), total / count)


@pytest.mark.parametrize(("field", "value"), [("pretraining_fraction", 1.0), ("residual_dropout", -0.1)])
def test_settings_are_checked(field, value):
    with pytest.raises(ValueError, match=rf"{field}: found {value}, accepted "):
        SFTConfig(**{field: value})


def test_a_mix_needs_plain_text():
    with pytest.raises(ValueError, match=r"blocks: found None, pretraining_fraction 0\.25 needs plain text"):
        trainer_of(replace(CONFIG, pretraining_fraction=0.25))


def pretraining_of(microbatch: int = 4) -> PretrainingTrainer:
    config = PretrainingConfig(adam=AdamConfig(lr=3e-3), batch_size=4, epochs=2, microbatch=microbatch)
    return PretrainingTrainer(lively_policy(ENCODER), blocks(10), config, seed=1)


def test_pretraining_predicts_every_token_but_the_first():
    trainer = pretraining_of()
    data = trainer.blocks[trainer.order.batch(0)]
    with torch.no_grad():
        expected = float(trainer.policy.lm(input_ids=data, labels=data).loss.double())
    metrics, units = trainer.train_step()
    assert_close(metrics["loss"], expected)
    assert units == 4 * (BLOCK - 1)
    assert trainer.num_steps == 6


def test_pretraining_micro_batches_add_up(monkeypatch):
    rows = []
    for microbatch in (1, 4):
        trainer = pretraining_of(microbatch)
        gradients = SpentGradients(trainer.update, monkeypatch)
        trainer.train_step()
        rows += gradients.rows
    assert_same_gradient(*rows)


def test_interrupted_pretraining_continues_bit_for_bit(tmp_path):
    assert_continues_exactly(pretraining_of, 6, 2, tmp_path)
