"""TRL's PPOTrainer on the task, an iteration a turn. Runs in an environment with trl 1.12, the last that has one.

python -m benchmarks.end_to_end.trl_ppo FOLDER
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
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # noqa: E402

from benchmarks.end_to_end import task as given  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


class Turns(TrainerCallback):
    """Reports an iteration and waits for the next turn."""

    def __init__(self, clock: given.Clock) -> None:
        self.clock, self.turns, self.scores = clock, given.turns(), {}

    def wait(self) -> None:
        if next(self.turns, "over") == "over":
            given.say({"peak_bytes": given.peak_bytes()})
            os._exit(0)
        self.clock.start("generate")

    def on_log(self, args, state, control, logs, **kwargs):
        self.scores = logs

    def on_step_end(self, args, state, control, **kwargs):
        seconds = self.clock.take()
        given.say({"seconds": seconds, "score": self.scores["objective/scores"], "kl": self.scores["objective/kl"]})
        self.wait()


def main() -> None:
    folder, seed = Path(sys.argv[1]), int([*sys.argv, "0"][2])
    task, prompts = given.read(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    reward, value = (GPT2ForSequenceClassification.from_pretrained(folder / "reward_model") for _ in range(2))
    policy, reference = (GPT2LMHeadModel.from_pretrained(folder / "policy") for _ in range(2))
    config = PPOConfig(
        output_dir=str(folder / "trl"),
        seed=seed,
        report_to=[],
        use_cpu=task.device == "cpu",
        bf16=task.bfloat16,
        gradient_checkpointing=False,
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
        learning_rate=task.learning_rate,
        lr_scheduler_type="constant",
        kl_coef=task.kl_coef,
        temperature=1.0,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    rows = Dataset.from_dict({"input_ids": [tokenizer(text)["input_ids"] for text in prompts]})
    clock = given.Clock()
    turns = Turns(clock)
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=rows,
        eval_dataset=rows.select(range(task.batch)),
        callbacks=[turns],
    )
    generate, accumulate = ppo_trainer.batch_generation, trainer.accelerator.accumulate

    def timed_generation(*args, **kwargs):
        result = generate(*args, **kwargs)
        clock.start("score")
        return result

    def timed_accumulation(*args, **kwargs):
        clock.start("update")
        return accumulate(*args, **kwargs)

    ppo_trainer.batch_generation, trainer.accelerator.accumulate = timed_generation, timed_accumulation
    turns.wait()
    trainer.train()


main()
