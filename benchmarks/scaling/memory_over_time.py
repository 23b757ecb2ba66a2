"""Resident memory and open files over many PPO iterations of a tiny run.

    python -m benchmarks.scaling.memory_over_time [--iterations 300] [--out FILE.json]

The slope is that of a straight line through the second half of the iterations, in bytes an iteration; what is allocated
once, in the first of them, is not growth.
"""

import io
import json
import os
from pathlib import Path

import numpy
from rich.console import Console

from benchmarks.core.memory import resident_bytes
from benchmarks.core.tables import command, write_json
from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import word_tokenizer
from instructrl.models.policy import gpt2_policy
from instructrl.models.scoring import RewardModel
from instructrl.rollout.randomness import keyed_generator
from instructrl.trainers.log import RunLog
from instructrl.trainers.ppo import PPOTrainer
from instructrl.trainers.settings import PPOConfig


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def trainer(iterations: int) -> PPOTrainer:
    tokenizer = word_tokenizer([f"w{i}" for i in range(30)])
    encoder = Encoder(tokenizer, Limits(max_prompt_tokens=12, max_response_tokens=12))
    policy = gpt2_policy(
        vocabulary=len(tokenizer), context=32, layers=2, width=32, heads=2, end_of_text=encoder.end_of_text
    )
    config = PPOConfig(num_episodes=16 * iterations, rollout_batch=16, minibatch=8)
    prompts = [f"w{i} w{i + 1}" for i in range(29)]
    reward_model = RewardModel.from_policy(policy, keyed_generator(0))
    return PPOTrainer(policy, reward_model, prompts, encoder, config, seed=0)


def main() -> None:
    arguments = command(__doc__, iterations=300, out=Path)
    ppo, log = trainer(arguments.iterations), RunLog(None, Console(file=io.StringIO()))
    resident, files = [], []
    while ppo.step < arguments.iterations:
        ppo.run(log, until=ppo.step + 1)
        resident.append(resident_bytes())
        files.append(open_files())
    half = resident[len(resident) // 2 :]
    slope = float(numpy.polyfit(range(len(half)), half, 1)[0])
    found = {
        "iterations": arguments.iterations,
        "resident_bytes": {"first": resident[0], "middle": half[0], "last": half[-1]},
        "slope_bytes_per_iteration": round(slope, 1),
        "open_files": {"first": files[0], "last": files[-1]},
    }
    print(json.dumps(found, indent=1))
    if arguments.out is not None:
        write_json(arguments.out, found, indent=1)


if __name__ == "__main__":
    main()
