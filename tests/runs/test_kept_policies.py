"""What studies ask of the steps: policies on the way, another reference of the KL, and a run that is only read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import lively_policy, tiny_encoder, tiny_policy, tiny_reward_model

from instructrl.models.policy import Policy
from instructrl.runs import steps
from instructrl.runs.journal import FinishedSteps, Journal
from instructrl.runs.recipe import Recipe
from instructrl.trainers.log import RunLog
from instructrl.trainers.settings import AdamConfig, CheckpointConfig, PPOConfig

ENCODER = tiny_encoder()
PPO = PPOConfig(
    num_episodes=24,
    rollout_batch=8,
    minibatch=4,
    policy_adam=AdamConfig(lr=1e-2),
    warmup_iterations=1,
    ema_decay=0.5,
    kl_coef=0.5,
)


def work_in(folder: Path, ppo: PPOConfig = PPO) -> steps.Workspace:
    log = RunLog(folder, continued=True)
    return steps.Workspace(
        folder=folder,
        log=log,
        encoder=ENCODER,
        recipe=Recipe(limits=ENCODER.limits, ppo=ppo),
        seed=1,
        config={},
        journal=Journal(folder, log, CheckpointConfig()),
    )


def optimised(work: steps.Workspace, **more) -> Policy:
    start = lively_policy(ENCODER)
    prompts = [f"w{i}" for i in range(10)]
    return steps.optimize_policy(work, start, tiny_reward_model(start), prompts, phase="ppo", **more)


def weights(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def test_a_policy_kept_on_the_way_is_that_of_a_shorter_run(tmp_path):
    whole = optimised(work_in(tmp_path / "kept"), keep=(1, 2))
    assert torch.equal(weights(whole), weights(optimised(work_in(tmp_path / "plain"))))
    short = optimised(work_in(tmp_path / "short", replace(PPO, num_episodes=16)))
    kept = work_in(tmp_path / "kept").load(steps.kept_policy("ppo", 2))
    assert torch.equal(weights(kept), weights(short))
    assert not torch.equal(weights(kept), weights(whole))


def test_the_reference_is_what_the_kl_is_measured_from(tmp_path):
    """At the first step a policy is at no distance from its start, and at one from another model."""
    kls = {}
    for name, reference in {"start": None, "other": tiny_policy(ENCODER, seed=5)}.items():
        work = work_in(tmp_path / name)
        optimised(work, reference=reference)
        kls[name] = work.log.read_metrics()[0]["kl"]
    assert kls["start"] == 0.0
    assert abs(kls["other"]) > 0.01


def test_a_run_that_is_read_gives_its_models_and_is_not_written_to(tmp_path):
    done = optimised(work_in(tmp_path))
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")}
    read = replace(work_in(tmp_path / "elsewhere"), folder=tmp_path, journal=FinishedSteps(tmp_path))
    assert torch.equal(weights(optimised(read)), weights(done))
    after = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*") if path in before}
    changed = [path for path in before if before[path] != after[path] and path != tmp_path]
    assert not changed


def test_a_run_that_is_read_is_refused_with_other_input_or_without_the_step(tmp_path):
    optimised(work_in(tmp_path))
    read = replace(work_in(tmp_path), journal=FinishedSteps(tmp_path))
    other = tiny_policy(ENCODER, seed=5)
    with pytest.raises(ValueError, match=r"found other content of the model than its step ppo was carried out with"):
        steps.optimize_policy(
            read, other, tiny_reward_model(lively_policy(ENCODER)), [f"w{i}" for i in range(10)], phase="ppo"
        )
    with pytest.raises(ValueError, match=r"has not done the step selection, accepted is one that has"):
        read.journal.once("selection", lambda *_: None)
    assert FinishedSteps(tmp_path).names == ["ppo"]
    path = tmp_path / "state" / "steps.json"
    content = json.loads(path.read_text())
    content["steps"][0]["result"]["steps"] = 7
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"steps.json: found it damaged"):
        FinishedSteps(tmp_path)
