"""Our PPOTrainer on the task, an iteration a turn.

python -m benchmarks.end_to_end.our_ppo FOLDER [SEED]
"""

import os
import sys
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

from benchmarks.end_to_end import task as given
from instructrl import profiling
from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.trainers.ppo import PPOTrainer
from instructrl.trainers.settings import AdamConfig, PPOConfig


def main() -> None:
    folder, seed = Path(sys.argv[1]), int([*sys.argv, "0"][2])
    task, prompts = given.read(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    limits = Limits(max_prompt_tokens=task.prompt_tokens, max_response_tokens=task.response_tokens)
    adam = AdamConfig(lr=task.learning_rate, beta2=0.999)
    config = PPOConfig(
        num_episodes=10**6,
        rollout_batch=task.batch,
        minibatch=task.minibatch,
        microbatch=task.minibatch,
        num_epochs=task.epochs,
        policy_adam=adam,
        value_adam=adam,
        warmup_iterations=0,
        kl_coef=task.kl_coef,
        missing_eos_score=None,
    )
    trainer = PPOTrainer(
        Policy.load(folder / "policy", tokenizer).to(task.device),
        RewardModel.load(folder / "reward_model").to(task.device),
        prompts,
        Encoder(tokenizer, limits),
        config,
        seed=seed,
    )
    for _ in given.turns():
        start = time.perf_counter()
        low = torch.autocast(task.device, torch.bfloat16, enabled=task.bfloat16)
        with profiling.collect() as profile, low:
            metrics, _ = trainer.train_step()
        seconds = dict(profile.seconds)
        seconds["other"] = time.perf_counter() - start - sum(seconds.values())
        given.say({"seconds": seconds, **{name: metrics[name] for name in ("score", "kl", "response_tokens")}})
    given.say({"peak_bytes": given.peak_bytes()})


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    main()
