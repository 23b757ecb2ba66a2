"""TRL's SFT, DPO, KTO, GRPO, RLOO and reward trainers on a tiny model and words at random."""

import os
import random
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainerCallback  # noqa: E402

from benchmarks.end_to_end.host_runs.record import Record, main  # noqa: E402

VOCABULARY, WORDS, ROWS, BATCH = 2000, 12, 64, 8


def tokenizer() -> PreTrainedTokenizerFast:
    ids = {f"w{i}": i for i in range(VOCABULARY - 2)} | {"<eos>": VOCABULARY - 2, "<pad>": VOCABULARY - 1}
    fast = Tokenizer(models.WordLevel(ids, unk_token="<eos>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<eos>", pad_token="<pad>", padding_side="left")


def model() -> GPT2LMHeadModel:
    """Random weights of its own seed. A generation config that ends at the end of text."""
    torch.manual_seed(0)
    ends: dict[str, Any] = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 2}
    shape = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**shape, pad_token_id=VOCABULARY - 1, **ends)).eval()


def sentences(seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(f"w{rng.randrange(VOCABULARY - 2)}" for _ in range(rng.randint(4, WORDS))) for _ in range(ROWS)]


class _Steps(TrainerCallback):
    def __init__(self, record: Record) -> None:
        self.record = record

    def on_train_begin(self, args, state, control, **kwargs):
        self.record.start()

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            self.record.step(logs["loss"], logs["grad_norm"])


def settings(folder: str, steps: int) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        # Adam divides by the size of a gradient, so that the rounding of one that is nearly 0 becomes a whole step.
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "seed": 0,
    }


def sft(given: dict[str, Any], common: dict[str, Any]) -> Any:
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_dict({"prompt": sentences(1), "completion": [f" {x}" for x in sentences(2)]})
    return SFTTrainer(args=SFTConfig(**given, completion_only_loss=True), train_dataset=rows, **common)


def dpo(given: dict[str, Any], common: dict[str, Any]) -> Any:
    from trl import DPOConfig, DPOTrainer

    columns = {"prompt": sentences(1), "chosen": sentences(2), "rejected": sentences(3)}
    return DPOTrainer(args=DPOConfig(**given), train_dataset=Dataset.from_dict(columns), **common)


def kto(given: dict[str, Any], common: dict[str, Any]) -> Any:
    from trl import KTOConfig, KTOTrainer

    columns = {"prompt": sentences(1), "completion": sentences(2), "label": [i % 3 > 0 for i in range(ROWS)]}
    return KTOTrainer(args=KTOConfig(**given), train_dataset=Dataset.from_dict(columns), **common)


def _reward(completions: list[str], **others: Any) -> list[float]:
    """The share of words of an even number."""
    return [sum(w[-1] in "02468" for w in text.split()) / (len(text.split()) + 1) for text in completions]


def _online(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "num_generations": 4, "max_completion_length": WORDS, "beta": 0.04, "temperature": 0.9}


def grpo(given: dict[str, Any], common: dict[str, Any]) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    rows = Dataset.from_dict({"prompt": sentences(1)})
    config = GRPOConfig(**_online(given), num_iterations=2)
    return GRPOTrainer(args=config, reward_funcs=_reward, train_dataset=rows, **common)


def rloo(given: dict[str, Any], common: dict[str, Any]) -> Any:
    from trl import RLOOConfig, RLOOTrainer

    rows = Dataset.from_dict({"prompt": sentences(1)})
    return RLOOTrainer(args=RLOOConfig(**_online(given)), reward_funcs=_reward, train_dataset=rows, **common)


def _run(make: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Callable[[Record, int], None]:
    def train(record: Record, steps: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            # From a folder, because a reference model is loaded from where the policy came from.
            model().save_pretrained(f"{folder}/model")
            policy = GPT2LMHeadModel.from_pretrained(f"{folder}/model")
            common = {"model": policy, "processing_class": tokenizer(), "callbacks": [_Steps(record)]}
            trainer = make(settings(folder, steps), common)
            trainer.train()
            record.end(trainer.model.parameters())

    return train


TRAINERS = {each.__name__: _run(each) for each in (sft, dpo, kto, grpo, rloo)}

if __name__ == "__main__":
    main("trl", TRAINERS)
