"""PPO by the names of TRL up to 0.11, held to what its own trainer computed of the same batch."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.end_to_end.host_runs import trl_ppo
from instructrl.integrations.trl_legacy import (
    AutoModelForCausalLMWithValueHead,
    PPOConfig,
    PPOTrainer,
)

RECORDS = json.loads((Path(__file__).parent / "trl_records.json").read_text(encoding="utf-8"))
ROUNDING = 64 * torch.finfo(torch.float32).eps


def model(kind="gpt2", role="policy"):
    found = AutoModelForCausalLMWithValueHead.from_pretrained(trl_ppo.network(kind, role))
    trl_ppo.filled(found.v_head, "head")
    return found


def batch(whitened=False):
    rows = (trl_ppo.QUERIES, trl_ppo.RESPONSES[whitened], trl_ppo.SCORES)
    return [[torch.tensor(x) for x in each] for each in rows]


def trainer(kind="gpt2", *, optimizer=None, **given):
    config = PPOConfig(**{**trl_ppo.STEP_COMMON, "mini_batch_size": 4, **given})
    own = model(kind)
    made = None if optimizer is None else optimizer(own)
    return PPOTrainer(config, own, model(kind, "reference"), trl_ppo.tokenizer(), optimizer=made)


def weights(module):
    return torch.cat([x.detach().flatten() for x in module.parameters()])


@pytest.mark.parametrize("case", trl_ppo.STEP_CASES)
def test_steps_are_trls(case, monkeypatch):
    kind, given = trl_ppo.STEP_CASES[case]
    expected, steps = RECORDS["step"][case], []
    ours = trainer(kind, optimizer=lambda own: torch.optim.Adam(own.parameters(), lr=0.02, eps=0.1), **given)
    ours.learner.update.optimizer.register_step_pre_hook(
        lambda *_: steps.append(trl_ppo.projected(trl_ppo.of_both(ours.model)))
    )
    monkeypatch.setattr(torch, "randperm", lambda count, generator=None: torch.arange(count))
    stats = [ours.step(*batch("whiten_rewards" in given)) for _ in range(2)]
    assert len(steps) == len(expected["steps"])
    for found, wanted in zip(steps, expected["steps"], strict=True):
        assert found == pytest.approx(wanted, rel=0, abs=ROUNDING * wanted[0])
    for found, wanted in zip(stats, expected["stats"], strict=True):
        assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=ROUNDING, abs=ROUNDING)
