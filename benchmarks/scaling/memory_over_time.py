"""Resident memory and open files over many PPO iterations of a tiny run.

    python -m benchmarks.scaling.memory_over_time [--iterations 300] [--out FILE.json]

The slope is that of a straight line through the second half of the iterations, in bytes an iteration; what is allocated
once, in the first of them, is not growth.
"""

import io
import json
import os
import statistics
from pathlib import Path

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


def trainer(iterations: int) -> PPOTrainer:
    tokenizer = word_tokenizer([f"w{i}" for i in range(30)])
    encoder = Encoder(tokenizer, Limits(max_prompt_tokens=12, max_response_tokens=12))
    sizes = {"context": 32, "layers": 2, "width": 32, "heads": 2}
    policy = gpt2_policy(vocabulary=len(tokenizer), end_of_text=encoder.end_of_text, **sizes)
    config = PPOConfig(num_episodes=16 * iterations, rollout_batch=16, minibatch=8)
    prompts = [f"w{i} w{i + 1}" for i in range(29)]
    return PPOTrainer(policy, RewardModel.from_policy(policy, keyed_generator(0)), prompts, encoder, config, seed=0)


def main() -> None:
    arguments = command(__doc__, iterations=300, out=Path)
    ppo, log = trainer(arguments.iterations), RunLog(None, Console(file=io.StringIO()))
    resident, files = [], []
    while ppo.step < arguments.iterations:
        ppo.run(log, until=ppo.step + 1)
        resident.append(resident_bytes())
        files.append(len(os.listdir("/proc/self/fd")))
    half = resident[len(resident) // 2 :]
    found = {
        "iterations": arguments.iterations,
        "resident_bytes": {"first": resident[0], "middle": half[0], "last": half[-1]},
        "slope_bytes_per_iteration": round(statistics.linear_regression(range(len(half)), half).slope, 1),
        "open_files": {"first": files[0], "last": files[-1]},
    }
    print(json.dumps(found, indent=1))
    if arguments.out:
        write_json(arguments.out, found, indent=1)


if __name__ == "__main__":
    main()
