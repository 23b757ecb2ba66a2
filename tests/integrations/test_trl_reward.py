"""The reward model by TRL's names, held to what TRL's own trainer computed of the same pairs."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.end_to_end.host_runs import trl_ppo
from instructrl.integrations.trl import RewardConfig, RewardTrainer

RECORDS = json.loads((Path(__file__).parent / "trl_records.json").read_text(encoding="utf-8"))
ROUNDING = 64 * torch.finfo(torch.float32).eps
PAIRS = [dict(zip(trl_ppo.PAIRS, values, strict=True)) for values in zip(*trl_ppo.PAIRS.values(), strict=True)]


def trainer(folder, rows=PAIRS, kind="llama", **given):
    config = RewardConfig(
        output_dir=str(folder), bf16=False, use_cpu=True,
        **{"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.05, "adam_epsilon": 0.1, **given},
    )  # fmt: skip
    return RewardTrainer(
        trl_ppo.network(kind, "reward"), config, train_dataset=rows, processing_class=trl_ppo.tokenizer()
    )


@pytest.mark.parametrize("case", trl_ppo.REWARD_CASES)
def test_steps_are_trls(case, tmp_path):
    expected, steps = RECORDS["reward"][case], []
    ours = trainer(tmp_path, **trl_ppo.REWARD_CASES[case])
    ours.update.optimizer.register_step_pre_hook(
        lambda *_: steps.append(trl_ppo.projected(trl_ppo.gradients(ours.reward_model.network)))
    )
    losses = [ours.train_step()[0]["loss"] for _ in range(2)]
    assert losses == pytest.approx(expected["losses"], rel=ROUNDING)
    for found, wanted in zip(steps, expected["steps"], strict=True):
        assert found == pytest.approx(wanted, rel=0, abs=ROUNDING * wanted[0])
