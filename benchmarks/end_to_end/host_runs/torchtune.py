"""torchtune's own PPO and SFT recipes, as its wheel has them, on a tiny model and tokens at random."""

import random
import runpy
import tempfile
import warnings
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch

warnings.filterwarnings("ignore")

from omegaconf import DictConfig  # noqa: E402
from torchtune.models.llama2 import llama2, llama2_classifier  # noqa: E402

from benchmarks.end_to_end.host_runs.record import Record, main  # noqa: E402

HERE = "benchmarks.end_to_end.host_runs.torchtune"
VOCABULARY, BATCH = 500, 8
SHAPE = {
    "vocab_size": VOCABULARY,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 64,
    "max_seq_len": 64,
}


class Tokenizer:
    """What recipes ask of one whose texts are ids already."""

    pad_id, eos_id = 0, 1
    # About every fifteenth token at random, so that answers are of different lengths.
    stop_tokens = [*range(1, VOCABULARY, 15)]  # noqa: RUF012 - nobody writes to it


def rows(tokenizer: Tokenizer, steps: int, length: int) -> list[dict[str, list[int]]]:
    """An epoch of so many steps. Labels are the tokens of the second half."""
    rng = random.Random(0)
    found = []
    for _ in range(steps * BATCH):
        tokens = [rng.randrange(2, VOCABULARY) for _ in range(rng.randint(length // 2, length))]
        half = len(tokens) // 2
        found.append({"tokens": tokens, "labels": [-100] * half + tokens[half:]})
    return found


class Steps:
    """A logger of metrics: that of the record which is put into it."""

    record: Record
    norms: list[float]

    def log_config(self, config: Any) -> None:
        self.norms = []

    def watch(self, recipe: Any, record: Record) -> None:
        """Gradient norms are asked for before each step of the optimiser: they are of all its steps together."""
        self.record = record
        recipe._optimizer.register_step_pre_hook(self._before)
        record.start()

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        gradients = [x.grad for group in optimizer.param_groups for x in group["params"] if x.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    def log_dict(self, payload: dict[str, Any], step: int) -> None:
        self.record.step(payload["loss"], sum(norm**2 for norm in self.norms) ** 0.5)
        self.norms.clear()

    def close(self) -> None:
        pass


def _recipe(file: str, name: str) -> Any:
    """torchtune has its recipes beside it as files, not as modules."""
    return runpy.run_path(str(distribution("torchtune").locate_file(f"recipes/{file}.py")))[name]


def _checkpointer(folder: str, name: str) -> dict[str, Any]:
    return {
        "_component_": "torchtune.training.FullModelTorchTuneCheckpointer",
        "checkpoint_dir": f"{folder}/{name}",
        "checkpoint_files": ["model.pt"],
        "model_type": "LLAMA2",
        "output_dir": f"{folder}/out/{name}",
    }


def _save(folder: str, name: str, model: torch.nn.Module) -> dict[str, Any]:
    Path(folder, name).mkdir()
    torch.save(model.state_dict(), f"{folder}/{name}/model.pt")
    return _checkpointer(folder, name)


def _settings(folder: str) -> dict[str, Any]:
    return {
        "output_dir": f"{folder}/out",
        "device": "cpu",
        "dtype": "fp32",
        "seed": 0,
        "shuffle": True,
        "batch_size": BATCH,
        "compile": False,
        "optimizer_in_bwd": False,
        "enable_activation_checkpointing": False,
        "resume_from_checkpoint": False,
        "tokenizer": {"_component_": f"{HERE}.Tokenizer"},
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-3},
        "metric_logger": {"_component_": f"{HERE}.Steps"},
        "log_every_n_steps": 1,
    }


def _ppo_settings(folder: str, steps: int, loss: str) -> dict[str, Any]:
    torch.manual_seed(1)
    critic = {"_component_": "torchtune.models.llama2.llama2_classifier", "num_classes": 1, **SHAPE}
    policy_files, critic_files = (
        _save(folder, "policy", llama2(**SHAPE)),
        _save(folder, "critic", llama2_classifier(num_classes=1, **SHAPE)),
    )
    return {
        **_settings(folder),
        "checkpointer": policy_files,
        "ref_policy_checkpointer": policy_files,
        "value_checkpointer": critic_files,
        "reward_checkpointer": critic_files,
        "policy_model": {"_component_": "torchtune.models.llama2.llama2", **SHAPE},
        "reward_and_value_model": critic,
        "dataset": {"_component_": f"{HERE}.rows", "steps": steps, "length": 12},
        "loss": {"_component_": loss, "epsilon": 0.2, "value_coeff": 0.1, "value_clip_range": 0.2},
        "num_steps": steps * BATCH,
        "ppo_epochs": 2,
        "ppo_batch_size": BATCH // 2,
        "forward_batch_size": BATCH,
        "gradient_accumulation_steps": 2,
        "enable_kv_cache": True,
        "max_generated_tokens": 24,
        "temperature": 0.7,
        "top_k": None,
        "min_response_length": 3,
        "penalise_no_eos": True,
        "reward_penalty": -3,
        "stop_token_ids": Tokenizer.stop_tokens,
        "whiten_rewards": False,
        "gamma": 1.0,
        "lmbda": 0.95,
        "kl_coeff": 0.01,
    }


def ppo(record: Record, steps: int) -> None:
    package = "instructrl.integrations.torchtune" if record.replaced else "torchtune.rlhf.loss"
    with tempfile.TemporaryDirectory() as folder:
        config = DictConfig(_ppo_settings(folder, steps, f"{package}.PPOLoss"))
        recipe = _recipe("ppo_full_finetune_single_device", "PPOFullFinetuneRecipeSingleDevice")(config)
        recipe.setup(config)
        recipe._metric_logger.watch(recipe, record)
        recipe.train()
        record.end([*recipe._policy_model.parameters(), *recipe._value_model.parameters()])


def sft(record: Record, steps: int) -> None:
    package = "instructrl.integrations.torchtune" if record.replaced else "torchtune.modules.loss"
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(1)
        config = DictConfig(
            {
                **_settings(folder),
                "checkpointer": _save(folder, "policy", llama2(**SHAPE)),
                "model": {"_component_": "torchtune.models.llama2.llama2", **SHAPE},
                "dataset": {"_component_": f"{HERE}.rows", "steps": steps, "length": 32},
                "loss": {"_component_": f"{package}.CEWithChunkedOutputLoss"},
                "epochs": 1,
                "max_steps_per_epoch": None,
                "gradient_accumulation_steps": 1,
            }
        )
        recipe = _recipe("full_finetune_single_device", "FullFinetuneRecipeSingleDevice")(config)
        recipe.setup(config)
        recipe._metric_logger.watch(recipe, record)
        recipe.train()
        record.end(recipe._model.parameters())


TRAINERS = {"ppo": ppo, "sft": sft}

if __name__ == "__main__":
    main("torchtune", TRAINERS)
