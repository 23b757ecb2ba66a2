"""The order of the data, schedules, optimiser settings, and what a run writes."""

import io
import json
import math

import pytest
import torch
from probes import EPS, metrics_of, quiet_log
from rich.console import Console
from tiny import blocks, tiny_encoder, tiny_policy, tiny_reward_model
from torch import nn

from instructrl import cli
from instructrl.runs.named import RUNS
from instructrl.trainers.log import RunLog
from instructrl.trainers.loop import DataOrder
from instructrl.trainers.optimization import Update
from instructrl.trainers.ppo import PPOTrainer
from instructrl.trainers.pretraining import PretrainingTrainer
from instructrl.trainers.settings import AdamConfig, PPOConfig, PretrainingConfig


def linear(config: AdamConfig) -> tuple[nn.Linear, Update]:
    module = nn.Linear(3, 1, bias=False)
    nn.init.ones_(module.weight)
    return module, Update(module, config)


@pytest.mark.parametrize(("rows", "batch"), [(10, 3), (12, 4), (5, 8), (1, 1)])
def test_every_row_comes_once_an_epoch(rows, batch):
    order = DataOrder(rows, batch, seed=3)
    assert order.steps_per_epoch == math.ceil(rows / min(rows, batch))
    for epoch in range(3):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        batches = [order.batch(step) for step in steps]
        assert sorted(row for taken in batches for row in taken) == list(range(rows))
        assert all(len(taken) == min(rows, batch) for taken in batches[:-1])


def test_the_order_is_a_function_of_seed_and_epoch():
    forwards = [DataOrder(50, 7, seed=1).batch(step) for step in range(20)]
    order = DataOrder(50, 7, seed=1)
    assert [order.batch(step) for step in reversed(range(20))] == forwards[::-1]
    assert forwards[:8] != forwards[8:16]
    assert [DataOrder(50, 7, seed=2).batch(step) for step in range(20)] != forwards


def test_rows_run_on_across_epochs():
    order = DataOrder(7, 3, seed=0)
    endless = order.rows(0, 35)
    assert all(sorted(endless[i : i + 7]) == list(range(7)) for i in range(0, 35, 7))
    assert [order.rows(first, 10) for first in (0, 5, 20)] == [endless[first : first + 10] for first in (0, 5, 20)]


@pytest.mark.parametrize(("rows", "batch"), [(0, 4), (4, 0)])
def test_an_empty_order_is_refused(rows, batch):
    with pytest.raises(ValueError, match=rf"found {rows} rows in batches of {batch}, accepted"):
        DataOrder(rows, batch, seed=0)


def test_cosine_starts_at_the_peak_and_ends_at_a_tenth():
    peak, steps = 3e-3, 8
    _, update = linear(AdamConfig(lr=peak))
    update.cosine(steps)
    rates = []
    for _ in range(steps + 1):
        rates.append(update.lr)
        update.step(0.0)
        update.advance_schedule()
    expected = [peak * (0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2) for step in range(steps + 1)]
    assert all(math.isclose(rate, value, rel_tol=1e-12) for rate, value in zip(rates, expected, strict=True))
    assert rates[0] == peak
    assert math.isclose(rates[-1], peak / 10, rel_tol=1e-12)


@pytest.mark.parametrize("iterations", [1, 10])
def test_warmup_rises_from_a_tenth_and_stays_at_the_peak(iterations):
    peak = 2e-4
    _, update = linear(AdamConfig(lr=peak))
    update.warmup(iterations)
    rates = []
    for _ in range(iterations + 5):
        rates.append(update.lr)
        update.step(0.0)
        update.advance_schedule()
    expected = [peak * min(1.0, 0.1 + 0.9 * i / iterations) for i in range(iterations + 5)]
    assert all(math.isclose(rate, value, rel_tol=1e-12) for rate, value in zip(rates, expected, strict=True))


def test_no_warmup_starts_at_the_peak():
    _, update = linear(AdamConfig(lr=2e-4))
    update.warmup(0).advance_schedule()
    assert update.lr == 2e-4


def test_a_step_is_adams_and_spends_the_gradient():
    """The first step of Adam moves every weight by the rate, against the sign of its gradient."""
    module, update = linear(AdamConfig(lr=0.25))
    module.weight.grad = torch.tensor([[3.0, -4.0, 0.0]])
    assert update.step(0.0) == 5.0
    expected = torch.tensor([[0.75, 1.25, 1.0]])
    assert float((module.weight.detach() - expected).abs().max()) <= 0.25 * 1e-8 + EPS
    assert module.weight.grad is None


def test_the_second_moment_decays_by_beta2():
    """Gradients 1 and then 0: m = 0.9 * 0.1, v = 0.95 * 0.05, each divided by its bias correction."""
    module, update = linear(AdamConfig(lr=0.25))
    for gradient in (1.0, 0.0):
        module.weight.grad = torch.full((1, 3), gradient)
        update.step(0.0)
    m, v = 0.09 / (1 - 0.81), 0.0475 / (1 - 0.9025)
    assert abs(float(module.weight[0, 0].detach()) - (1 - 0.25 - 0.25 * m / math.sqrt(v))) <= 4 * EPS


def test_clipping_bounds_the_norm_and_reports_the_norm_before():
    """Two steps with gradients g and 3g: clipped to the same norm, Adam sees the same gradient twice."""
    clipped, update = linear(AdamConfig(lr=0.25, max_grad_norm=1.0))
    norms = []
    for factor in (2.0, 6.0):
        clipped.weight.grad = torch.tensor([[3.0, -4.0, 0.0]]) * factor
        norms.append(update.step(0.0))
    assert norms == [10.0, 30.0]
    expected = torch.tensor([[0.5, 1.5, 1.0]])
    # clip_grad_norm_ adds 1e-6 to the norm, and eps 1e-8 stands beside gradients of 0.6.
    assert float((clipped.weight.detach() - expected).abs().max()) <= 0.25 * (2e-6 + 4 * EPS)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.0), ("lr", -1e-4), ("lr", math.nan), ("beta1", 1.0), ("beta2", -0.1), ("max_grad_norm", 0.0)],
)
def test_adam_settings_are_checked(field, value):
    with pytest.raises(ValueError, match=rf"{field}: found {value}, accepted are"):
        AdamConfig(**{"lr": 1e-3, field: value})


def test_metrics_are_one_row_a_step(tmp_path):
    log = quiet_log(tmp_path)
    log.metrics("sft", 0, {"loss": 2.0})
    log.metrics("sft", 1, {"loss": 1.0, "lr": 0.5})
    expected = [{"phase": "sft", "step": 0, "loss": 2.0}, {"phase": "sft", "step": 1, "loss": 1.0, "lr": 0.5}]
    assert metrics_of(tmp_path) == log.read_metrics() == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_names_phase_and_metric(tmp_path, value):
    log = quiet_log(tmp_path)
    with pytest.raises(RuntimeError, match=rf"ppo, step 7: policy_loss is {value}"):
        log.metrics("ppo", 7, {"score": 1.0, "policy_loss": value})
    assert metrics_of(tmp_path) == []


def test_times_go_to_the_profile_only(tmp_path):
    log = quiet_log(tmp_path)
    with log.phase("sft", 2, "tokens") as progress:
        progress.advance(units=30)
        progress.advance(units=12, note="loss 1")
    row = json.loads((tmp_path / "profile.jsonl").read_text())
    assert (row["phase"], row["tokens"]) == ("sft", 42)
    assert row["seconds"] >= 0
    assert row["peak_memory_bytes"] > 2**20
    assert metrics_of(tmp_path) == []


def test_a_log_replaces_an_earlier_runs(tmp_path):
    quiet_log(tmp_path).metrics("sft", 0, {"loss": 2.0})
    quiet_log(tmp_path)
    assert metrics_of(tmp_path) == []


def test_a_log_without_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = quiet_log()
    with log.phase("sft", 1):
        log.metrics("sft", 0, {"loss": 2.0})
    assert log.read_metrics() == []
    assert list(tmp_path.iterdir()) == []


def told(trainer) -> list[str]:
    """What a trainer warns of in two parts of its run."""
    console = Console(file=io.StringIO(), width=400)
    log = RunLog(None, console)
    trainer.run(log, until=1)
    trainer.run(log, until=2)
    return [line for line in console.file.getvalue().splitlines() if "warning" in line]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"warmup_iterations": 4}, ["warm-up of 4 iterations is as long as the whole of 4"]),
        ({"warmup_iterations": 5}, ["warm-up of 5 iterations is as long as the whole of 4"]),
        # 0.92^8 = 0.513 and 0.91^8 = 0.470.
        ({"ema_decay": 0.92}, ["51% those of the start after 8 optimiser steps"]),
        ({"ema_decay": 0.91}, []),
        ({"ema_decay": 0.92, "warmup_iterations": 10}, ["warm-up of 10 iterations", "51% those of the start"]),
    ],
)
def test_settings_under_which_ppo_learns_little_are_told_once(changes, expected):
    encoder = tiny_encoder()
    settings = {"num_episodes": 16, "rollout_batch": 4, "minibatch": 2, "warmup_iterations": 1, "ema_decay": 0.5}
    policy = tiny_policy(encoder)
    config = PPOConfig(**{**settings, **changes})
    trainer = PPOTrainer(policy, tiny_reward_model(policy), ["w1", "w2 w3"], encoder, config, seed=0)
    found = [line for line in told(trainer) if "warm-up" in line or "those of the start" in line]
    assert len(found) == len(expected)
    assert all(part in line for part, line in zip(expected, found, strict=True)), found


@pytest.mark.parametrize(("warmup", "told_of"), [(0, 0), (1, 0), (2, 1), (9, 1)])
def test_a_warm_up_as_long_as_the_pretraining_is_told(warmup, told_of):
    config = PretrainingConfig(warmup_steps=warmup, batch_size=8)
    found = told(PretrainingTrainer(tiny_policy(tiny_encoder()), blocks(16), config, seed=0))
    assert len(found) == told_of
    assert all(f"pretraining: the warm-up of {warmup} steps is as long as the whole of 2" in line for line in found)


def test_no_named_run_has_such_settings():
    assert {name: run.concerns(run.config) for name, run in RUNS.items()} == {name: [] for name in RUNS}


def test_a_plan_tells_of_them(capsys):
    words = "run files --dry-run --recipe.ppo.num-episodes 1024 --recipe.ppo-ptx.ema-decay 0.9999"
    assert cli.main(words.split()) == 0
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert [line.split(":")[1].strip() for line in found] == ["ppo", "ppo", "ppo_ptx"]
    assert "the warm-up of 10 iterations is as long as the whole of 2" in found[0]
    assert "88% those of the start after 16 optimiser steps" in found[1]  # 0.992^16 = 0.879
    assert "67% those of the start after 4000 optimiser steps" in found[2]  # 0.9999^4000 = 0.670
