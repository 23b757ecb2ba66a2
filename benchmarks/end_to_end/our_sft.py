"""Our SFTTrainer on the task, `STEPS` optimiser steps a turn.

python -m benchmarks.end_to_end.our_sft FOLDER
"""

import os
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

from benchmarks.end_to_end import task as given
from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.models.policy import Policy
from instructrl.trainers.settings import AdamConfig, SFTConfig
from instructrl.trainers.sft import SFTTrainer
from instructrl.types import Demonstration

STEPS = 4


def main() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    folder = Path(sys.argv[1])
    task, prompts = given.read(folder)
    limits = Limits(max_prompt_tokens=task.prompt_tokens, max_response_tokens=task.response_tokens)
    encoder = Encoder(AutoTokenizer.from_pretrained(folder / "policy"), limits)
    rows = [Demonstration(prompt=a, completion=b) for a, b in zip(prompts, given.completions(task), strict=True)]
    config = SFTConfig(
        adam=AdamConfig(lr=task.learning_rate, beta2=0.999),
        batch_size=task.minibatch,
        microbatch=task.minibatch,
        epochs=1000,
        residual_dropout=0.0,
    )
    trainer = SFTTrainer(Policy.load(folder / "policy", encoder.tokenizer), rows, encoder, config, seed=0)
    clock = given.Clock()
    for _ in given.turns():
        clock.start("step")
        for _ in range(STEPS):
            metrics, _ = trainer.train_step()
        given.say({"seconds": clock.take(), "loss": metrics["loss"]})
    given.say({"peak_bytes": given.peak_bytes()})


if __name__ == "__main__":
    main()
