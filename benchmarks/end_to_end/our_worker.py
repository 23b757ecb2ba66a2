"""Our trainers on the task: a PPO iteration or `SFT_STEPS` optimiser steps a turn.

python -m benchmarks.end_to_end.our_worker ppo|sft FOLDER [SEED]
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.core.memory import peak_bytes
from benchmarks.core.turns import say, turns
from benchmarks.end_to_end import task as given
from instructrl import profiling
from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.trainers.ppo import PPOTrainer
from instructrl.trainers.settings import AdamConfig, PPOConfig, SFTConfig
from instructrl.trainers.sft import SFTTrainer
from instructrl.types import Demonstration

Turn = Callable[[], dict[str, Any]]


def encoder_of(task: given.Task, folder: Path) -> Encoder:
    limits = Limits(max_prompt_tokens=task.prompt_tokens, max_response_tokens=task.response_tokens)
    return Encoder(AutoTokenizer.from_pretrained(folder / "policy"), limits)


def ppo(task: given.Task, prompts: list[str], folder: Path, seed: int) -> Turn:
    adam, encoder = AdamConfig(lr=task.learning_rate, beta2=0.999), encoder_of(task, folder)
    sizes = {"rollout_batch": task.batch, "minibatch": task.minibatch, "microbatch": task.minibatch}
    config = PPOConfig(
        num_episodes=10**6, num_epochs=task.epochs, policy_adam=adam, value_adam=adam, warmup_iterations=0,
        kl_coef=task.kl_coef, missing_eos_score=None, **sizes,
    )  # fmt: skip
    policy = Policy.load(folder / "policy", encoder.tokenizer).to(task.device)
    reward_model = RewardModel.load(folder / "reward_model").to(task.device)
    trainer = PPOTrainer(policy, reward_model, prompts, encoder, config, seed=seed)

    def turn() -> dict[str, Any]:
        start = time.perf_counter()
        low = torch.autocast(task.device, torch.bfloat16, enabled=task.bfloat16)
        with profiling.collect() as profile, low:
            metrics, _ = trainer.train_step()
        seconds = dict(profile.seconds)
        seconds["other"] = time.perf_counter() - start - sum(seconds.values())
        return {"seconds": seconds, **{name: metrics[name] for name in ("score", "kl", "response_tokens")}}

    return turn


def sft(task: given.Task, prompts: list[str], folder: Path, seed: int) -> Turn:
    encoder, clock = encoder_of(task, folder), given.Clock()
    rows = [Demonstration(prompt=a, completion=b) for a, b in zip(prompts, given.completions(task), strict=True)]
    adam, sizes = (
        AdamConfig(lr=task.learning_rate, beta2=0.999),
        {"batch_size": task.minibatch, "microbatch": task.minibatch},
    )
    config = SFTConfig(adam=adam, epochs=1000, residual_dropout=0.0, **sizes)
    trainer = SFTTrainer(Policy.load(folder / "policy", encoder.tokenizer), rows, encoder, config, seed=seed)

    def turn() -> dict[str, Any]:
        clock.start("step")
        losses = [trainer.train_step()[0]["loss"] for _ in range(given.SFT_STEPS)]
        return {"seconds": clock.take(), "loss": losses[-1]}

    return turn


if __name__ == "__main__":
    turn = given.asked({"ppo": ppo, "sft": sft})
    for _ in turns():
        say(turn())
    say({"peak_bytes": peak_bytes()})
