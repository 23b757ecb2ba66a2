"""TRL's SFTTrainer on the task, `STEPS` optimiser steps a turn. Runs in an environment with a current trl.

python -m benchmarks.end_to_end.trl_sft FOLDER
"""

import os
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoTokenizer, GPT2LMHeadModel, TrainerCallback  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

from benchmarks.end_to_end import task as given  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
STEPS = 4


class Turns(TrainerCallback):
    """Reports a few steps and waits for the next turn."""

    def __init__(self) -> None:
        self.clock, self.turns, self.losses = given.Clock(), given.turns(), []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step % STEPS:
            return
        if state.global_step:
            given.say({"seconds": self.clock.take(), "loss": self.losses[-1]})
        if next(self.turns, "over") == "over":
            given.say({"peak_bytes": given.peak_bytes()})
            os._exit(0)
        self.clock.start("step")

    def on_log(self, args, state, control, logs, **kwargs):
        self.losses.append(logs.get("loss"))


def main() -> None:
    folder = Path(sys.argv[1])
    task, prompts = given.read(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    completions = given.completions(task)
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=task.minibatch,
        max_length=task.prompt_tokens + task.response_tokens,
        completion_only_loss=True,
        learning_rate=task.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        num_train_epochs=1000,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=GPT2LMHeadModel.from_pretrained(folder / "policy"),
        args=config,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": prompts, "completion": [" " + text for text in completions]}),
        callbacks=[Turns()],
    )
    trainer.train()


main()
