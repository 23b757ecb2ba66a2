"""TRL's trainers on the task: a PPO iteration or `SFT_STEPS` optimiser steps a turn. Imports nothing that needs us.

python -m benchmarks.end_to_end.trl_worker ppo|sft FOLDER [SEED]

PPO runs in an environment with trl 1.12, the last that has one, SFT in one with a current trl.
"""

import os
import sys
import warnings
from pathlib import Path

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoTokenizer, GPT2ForSequenceClassification, GPT2LMHeadModel, TrainerCallback  # noqa: E402

from benchmarks.core.memory import peak_bytes  # noqa: E402
from benchmarks.core.turns import say, turns  # noqa: E402
from benchmarks.end_to_end import task as given  # noqa: E402


class Turns(TrainerCallback):
    """Reports a turn's work and waits for the next turn, whose first phase is `first`."""

    def __init__(self, first: str) -> None:
        self.clock, self.turns, self.first, self.logs = given.Clock(), turns(), first, {}

    def wait(self) -> None:
        if next(self.turns, "over") == "over":
            say({"peak_bytes": peak_bytes()})
            os._exit(0)
        self.clock.start(self.first)

    def on_log(self, args, state, control, logs, **kwargs):
        self.logs = logs


class Iterations(Turns):
    def on_step_end(self, args, state, control, **kwargs):
        say({"seconds": self.clock.take(), "score": self.logs["objective/scores"], "kl": self.logs["objective/kl"]})
        self.wait()


class Steps(Turns):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step % given.SFT_STEPS:
            return
        if state.global_step:
            say({"seconds": self.clock.take(), "loss": self.logs.get("loss")})
        self.wait()


def shared_settings(task: given.Task, folder: Path) -> dict:
    """Of both configurations."""
    return {
        "output_dir": str(folder / "trl"),
        "report_to": [],
        "gradient_checkpointing": False,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }


def ppo(task: given.Task, prompts: list[str], folder: Path, seed: int) -> None:
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    reward, value = (GPT2ForSequenceClassification.from_pretrained(folder / "reward_model") for _ in range(2))
    policy, reference = (GPT2LMHeadModel.from_pretrained(folder / "policy") for _ in range(2))
    config = PPOConfig(
        **shared_settings(task, folder),
        seed=seed,
        use_cpu=task.device == "cpu",
        bf16=task.bfloat16,
        # A minibatch is one micro-batch and one optimiser step.
        per_device_train_batch_size=task.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=task.batch // task.minibatch,
        num_ppo_epochs=task.epochs,
        local_rollout_forward_batch_size=task.batch,
        total_episodes=10**6,
        response_length=task.response_tokens,
        stop_token="eos",
        missing_eos_penalty=None,
        num_sample_generations=0,
        kl_coef=task.kl_coef,
        temperature=1.0,
    )
    rows = Dataset.from_dict({"input_ids": [tokenizer(text)["input_ids"] for text in prompts]})
    waiting = Iterations("generate")
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=rows,
        eval_dataset=rows.select(range(task.batch)),
        callbacks=[waiting],
    )
    generate, accumulate = ppo_trainer.batch_generation, trainer.accelerator.accumulate

    def timed_generation(*args, **kwargs):
        result = generate(*args, **kwargs)
        waiting.clock.start("score")
        return result

    def timed_accumulation(*args, **kwargs):
        waiting.clock.start("update")
        return accumulate(*args, **kwargs)

    ppo_trainer.batch_generation, trainer.accelerator.accumulate = timed_generation, timed_accumulation
    waiting.wait()
    trainer.train()


def sft(task: given.Task, prompts: list[str], folder: Path, seed: int) -> None:
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        **shared_settings(task, folder),
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        per_device_train_batch_size=task.minibatch,
        max_length=task.prompt_tokens + task.response_tokens,
        completion_only_loss=True,
        max_grad_norm=0.0,
        num_train_epochs=1000,
    )
    completions = [" " + text for text in given.completions(task)]
    SFTTrainer(
        model=GPT2LMHeadModel.from_pretrained(folder / "policy"),
        args=config,
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
        train_dataset=Dataset.from_dict({"prompt": prompts, "completion": completions}),
        callbacks=[Steps("step")],
    ).train()


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    step, place, number = [*sys.argv[1:], "0"][:3]
    {"ppo": ppo, "sft": sft}[step](*given.read(Path(place)), Path(place), int(number))
