"""TRL's trainers on the task: a PPO iteration or `SFT_STEPS` optimiser steps a turn. Imports nothing that needs us.

python -m benchmarks.end_to_end.trl_worker ppo|sft FOLDER [SEED]

PPO runs in an environment with trl 1.12, the last that has one, SFT in one with a current trl.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
warnings.filterwarnings("ignore")

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
    quiet = {"report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
    rate = {"learning_rate": task.learning_rate, "lr_scheduler_type": "constant", "gradient_checkpointing": False}
    return {"output_dir": str(folder / "trl"), "use_cpu": task.device == "cpu", "bf16": task.bfloat16, **quiet, **rate}


def ppo(task: given.Task, prompts: list[str], folder: Path, seed: int) -> Callable[[], object]:
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    reward, value = (GPT2ForSequenceClassification.from_pretrained(folder / "reward_model") for _ in range(2))
    policy, reference = (GPT2LMHeadModel.from_pretrained(folder / "policy") for _ in range(2))
    config = PPOConfig(
        # A minibatch is one micro-batch and one optimiser step.
        per_device_train_batch_size=task.batch, num_mini_batches=task.batch // task.minibatch,
        gradient_accumulation_steps=1, num_ppo_epochs=task.epochs, local_rollout_forward_batch_size=task.batch,
        total_episodes=10**6, num_sample_generations=0, response_length=task.response_tokens, stop_token="eos",
        missing_eos_penalty=None, kl_coef=task.kl_coef, temperature=1.0, seed=seed, **shared_settings(task, folder),
    )  # fmt: skip
    rows = Dataset.from_dict({"input_ids": [tokenizer(text)["input_ids"] for text in prompts]})
    waiting, few = Iterations("generate"), rows.select(range(task.batch))
    networks = {"model": policy, "ref_model": reference, "reward_model": reward, "value_model": value}
    data = {"processing_class": tokenizer, "train_dataset": rows, "eval_dataset": few}
    trainer = PPOTrainer(args=config, callbacks=[waiting], **networks, **data)

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
    return trainer.train


def sft(task: given.Task, prompts: list[str], folder: Path, seed: int) -> Callable[[], object]:
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        per_device_train_batch_size=task.minibatch, max_length=task.prompt_tokens + task.response_tokens,
        completion_only_loss=True, max_grad_norm=0.0, num_train_epochs=1000, **shared_settings(task, folder),
    )  # fmt: skip
    completions = [" " + text for text in given.completions(task)]
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    rows = Dataset.from_dict({"prompt": prompts, "completion": completions})
    model = GPT2LMHeadModel.from_pretrained(folder / "policy")
    data = {"processing_class": tokenizer, "train_dataset": rows}
    return SFTTrainer(model=model, args=config, callbacks=[Steps("step")], **data).train


if __name__ == "__main__":
    given.asked({"ppo": ppo, "sft": sft})()
