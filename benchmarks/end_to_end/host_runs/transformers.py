"""transformers' own Trainer on a tiny model and tokens at random."""

import random
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from benchmarks.end_to_end.host_runs.record import Record, main

VOCABULARY, BATCH, LENGTH = 2000, 4, 32


def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=64, n_layer=2, n_head=4))


def rows() -> list[dict[str, Any]]:
    """Of different numbers of tokens that count, so that a mean of means is another one."""
    rng, found = random.Random(0), []
    for _ in range(64):
        tokens, length = [rng.randrange(VOCABULARY) for _ in range(LENGTH)], rng.randint(2, LENGTH)
        found.append({"input_ids": tokens, "labels": tokens[:length] + [-100] * (LENGTH - length)})
    return found


class _Steps(TrainerCallback):
    def __init__(self, record: Record) -> None:
        self.record = record

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.record.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.record.step(logs["loss"], logs["grad_norm"])


def _train(record: Record, steps: int, **others: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            use_cpu=True,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            seed=0,
        )
        trainer = Trainer(model(), settings, train_dataset=rows(), callbacks=[_Steps(record)], **others)  # pyright: ignore
        trainer.train()
        record.end(trainer.model.parameters())  # pyright: ignore[reportOptionalMemberAccess]


def table(record: Record, steps: int) -> None:
    """The loss that the model looks up."""
    _train(record, steps)


def function(record: Record, steps: int) -> None:
    """The loss that is handed to the trainer."""
    from instructrl.integrations.transformers import causal_lm_loss

    _train(record, steps, compute_loss_func=causal_lm_loss if record.replaced else None)


TRAINERS: dict[str, Callable[[Record, int], None]] = {"table": table, "function": function}

if __name__ == "__main__":
    main("transformers", TRAINERS)
