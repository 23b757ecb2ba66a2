"""The arguments of TRL's trainers: each is honoured, has no effect on what is computed, or is refused in one line.

Those of transformers' `TrainingArguments` are all known by name, so that a script's own go through as they are.
"""

import math
import os
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments, get_scheduler

from instructrl import distributed
from instructrl.models.settings import PassConfig
from instructrl.settings import require_not_negative, require_positive
from instructrl.trainers.optimization import Update
from instructrl.trainers.settings import AdamConfig, CheckpointConfig

# Whatever they say: TRL's trainers here do not read them either, or they change no number.
NO_EFFECT = {
    "run_name", "exp_name", "project", "sft_model_path", "reward_model_path", "dataset_num_proc",
    "remove_unused_columns", "ds3_gather_for_generation", "do_train", "do_eval", "do_predict",
    "evaluation_strategy", "eval_strategy", "eval_steps", "eval_delay", "data_seed", "logging_dir",
    "logging_steps", "logging_strategy", "logging_first_step", "logging_nan_inf_filter", "log_level",
    "log_level_replica", "log_on_each_node", "disable_tqdm", "include_num_input_tokens_seen",
    "skip_memory_metrics", "torch_empty_cache_steps", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
    "dataloader_in_order", "dataloader_drop_last", "ddp_find_unused_parameters", "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout", "local_rank",
    "full_determinism", "gradient_checkpointing_kwargs", "pad_to_multiple_of", "hub_token",
    "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision",
    "prediction_loss_only", "eval_accumulation_steps", "save_safetensors", "overwrite_output_dir", "pad_token",
}  # fmt: skip
# Those with another word than the general one on what to do instead.
_INSTEAD = {
    "fp16": "False, with bf16, which needs no scaling of the loss",
    "max_steps": "-1, with total_episodes for how long to train",
    "push_to_hub": "False, with save_model and an upload of that folder",
    "report_to": "'none': there is metrics.jsonl in output_dir, which has a line a step",
    "weight_decay": "0.0, TRL's own: here it would reach biases and norms, which TRL leaves out",
    "optim": "'adamw_torch' and 'adamw_torch_fused', which are the same here",
    "no_cuda": "False, with use_cpu",
    "chat_template_path": "None, with `chat_template` of the tokenizer",
    "model_adapter_name": "None: a policy has one adapter",
    "ref_adapter_name": "None: the reference is ref_model",
    "load_best_model_at_end": "False: nothing is evaluated in between",
    "deepspeed": "None; start with torchrun for several processes",
    "fsdp": "none; start with torchrun for several processes",
}
# Several values of one meaning.
_ALSO: dict[str, tuple[Any, ...]] = {
    "report_to": ("none", "all", None, [], ["none"]),  # "all" was what transformers 4 had where nothing was said
    "optim": ("adamw_torch", "adamw_torch_fused"),
    "fsdp": (None, "", []),
    "include_for_metrics": ([],),
    "debug": ("", []),
}
# Of earlier transformers and of TRL's own, with what they were where nothing was said.
_OTHERS: dict[str, Any] = {
    **dict.fromkeys(("exp_name", "sft_model_path", "reward_model_path", "dataset_num_proc", "logging_dir")),
    **dict.fromkeys(("model_adapter_name", "ref_adapter_name", "pad_to_multiple_of", "ds3_gather_for_generation")),
    **dict.fromkeys(("world_size", "num_total_batches", "micro_batch_size", "local_batch_size", "batch_size")),
    **dict.fromkeys(("local_mini_batch_size", "mini_batch_size", "evaluation_strategy", "model_init_kwargs")),
    **dict.fromkeys(("chat_template_path", "pad_token", "per_gpu_train_batch_size", "per_gpu_eval_batch_size")),
    **dict.fromkeys(("tpu_num_cores", "fsdp_transformer_layer_cls_to_wrap", "torchdynamo", "dispatch_batches")),
    **dict.fromkeys(("split_batches", "push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token")),
    **dict.fromkeys(
        ("no_cuda", "use_mps_device", "jit_mode_eval", "use_ipex", "tpu_metrics_debug", "adafactor"), False
    ),
    **dict.fromkeys(("group_by_length", "use_legacy_prediction_loop", "include_inputs_for_metrics"), False),
    **dict.fromkeys(("include_tokens_per_second", "overwrite_output_dir", "trust_remote_code"), False),
    **dict.fromkeys(("activation_offloading",), False),
    **{"save_safetensors": True, "past_index": -1, "fsdp_min_num_params": 0, "mp_parameters": "", "ray_scope": "last"},
    **{"fp16_opt_level": "O1", "half_precision_backend": "auto", "fp16_backend": "auto"},
}


_TRANSFORMERS = fields(TrainingArguments)


def _inherited() -> Any:
    """A record of every argument by its name; an honoured one is declared again where it is honoured."""
    known = {**_OTHERS, **{each.name: None if each.default is MISSING else each.default for each in _TRANSFORMERS}}
    # The types are for parsers of command lines, which take what argparse takes.
    rows = [(name, str if value is None else type(value), field(default=value)) for name, value in known.items()]
    return make_dataclass("_Inherited", rows, frozen=True, kw_only=True, slots=True)


_Inherited = _inherited()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Arguments(_Inherited):
    """What both trainers honour."""

    # folder of metrics, checkpoints and samples
    output_dir: str = "trainer_output"
    # rows of one forward pass
    per_device_train_batch_size: int = 8
    # how many of these are one batch
    gradient_accumulation_steps: int = 1
    # in one forward pass without a gradient
    per_device_eval_batch_size: int = 8
    # passes over the data
    num_train_epochs: float = 3.0
    # of Adam, as the next five
    learning_rate: float = 5e-5
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    # clips the gradient's norm; None and 0 do not
    max_grad_norm: float | None = 1.0
    # how the rate goes on: any name that transformers' `get_scheduler` knows
    lr_scheduler_type: str = "linear"
    # more of it
    lr_scheduler_kwargs: dict | None = None
    # steps over which the rate rises; below 1 a share of all
    warmup_steps: float = 0
    # a share of all
    warmup_ratio: float | None = None
    # of everything random
    seed: int = 42
    # matrix products in bfloat16; None: on a GPU
    bf16: bool | None = None
    # less memory, more time
    gradient_checkpointing: bool = True
    # "steps" or "no"
    save_strategy: str = "steps"
    # checkpoints every so many steps, and at the end; below 1 a share of all
    save_steps: float = 500
    # how many are kept; None: all
    save_total_limit: int | None = None
    # networks stay where they are
    use_cpu: bool = False
    # as `train` takes it
    resume_from_checkpoint: str | None = None

    def __post_init__(self) -> None:
        self._refuse()
        require_positive(self, "per_device_train_batch_size", "gradient_accumulation_steps")
        require_positive(self, "per_device_eval_batch_size", "num_train_epochs", "learning_rate", "adam_epsilon")
        require_positive(self, "save_steps", "save_total_limit")
        require_not_negative(self, "warmup_steps")
        if (strategy := getattr(self.save_strategy, "value", self.save_strategy)) not in ("steps", "no"):
            raise ValueError(f"save_strategy: found {strategy!r}, accepted are 'steps' with save_steps, and 'no'")

    def _refuse(self) -> None:
        """Raise ValueError for an argument that would be ignored."""
        honoured = _honoured(type(self))
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in honoured or each.name in NO_EFFECT or value in _ALSO.get(each.name, ()):
                continue
            if value != each.default:
                instead = _INSTEAD.get(each.name, f"{each.default!r}: this trainer has no such thing")
                raise ValueError(f"{each.name}: found {value!r}, accepted is {instead}")

    @property
    def rows_of_a_batch(self) -> int:
        """Over all processes of a job."""
        rows = self.per_device_train_batch_size * self.gradient_accumulation_steps
        return rows * distributed.size_of_job()

    def device(self, network: torch.nn.Module) -> torch.device:
        """Where the networks run. Raises ValueError in a job whose processes have not met: each would train alone."""
        if (count := os.environ.get("WORLD_SIZE", "1")) != "1" and distributed.size_of_job() == 1:
            raise ValueError(
                f"WORLD_SIZE: found {count} processes that have not met, accepted is a script that trains inside of "
                "`with instructrl.distributed.joined():`"
            )
        if self.use_cpu or not torch.cuda.is_available():
            return next(network.parameters()).device
        return distributed.device() or torch.device("cuda")

    def passes(self, device: torch.device) -> PassConfig:
        """Precision and memory on this device."""
        half = device.type == "cuda" if self.bf16 is None else self.bf16
        return PassConfig(
            weights="float32",
            precision="bfloat16" if half else "float32",
            checkpoint_activations=bool(self.gradient_checkpointing),
        )

    def adam(self) -> AdamConfig:
        return AdamConfig(
            lr=self.learning_rate,
            beta1=self.adam_beta1,
            beta2=self.adam_beta2,
            eps=self.adam_epsilon,
            max_grad_norm=self.max_grad_norm or None,
        )

    def schedule(self, update: Update, num_steps: int) -> None:
        """Give an optimiser its schedule."""
        wanted = self.warmup_steps or self.warmup_ratio or 0
        first = math.ceil(wanted * num_steps) if wanted < 1 else int(wanted)
        kind = getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)
        update.schedule = get_scheduler(kind, update.optimizer, first, num_steps, self.lr_scheduler_kwargs)

    def save_every(self, num_steps: int) -> int:
        """Steps between two checkpoints."""
        if getattr(self.save_strategy, "value", self.save_strategy) == "no":
            return num_steps
        return max(math.ceil(self.save_steps * num_steps) if self.save_steps < 1 else int(self.save_steps), 1)

    @property
    def checkpoints(self) -> CheckpointConfig:
        # None of them by the clock.
        return CheckpointConfig(every_seconds=math.inf, keep=self.save_total_limit or 10**6)

    @property
    def folder(self) -> Path:
        return Path(self.output_dir or "trainer_output")


def _honoured(kind: type) -> set[str]:
    """Names that the classes below `_Inherited` declare themselves."""
    return {name for each in kind.__mro__ if each is not _Inherited for name in vars(each).get("__annotations__", ())}


@dataclass(frozen=True, kw_only=True, slots=True)
class PPOConfig(_Arguments):
    """Arguments of `PPOTrainer`, with TRL's own values where nothing is said, but for these: `max_grad_norm`, which its
    PPO trainer does not read, is None."""

    learning_rate: float = 3e-6
    # TRL's PPO trainer clips at no norm, whatever is said
    max_grad_norm: float | None = None
    # minibatches of a batch, each an optimiser step
    num_mini_batches: int = 1
    # responses in all, rounded up to whole batches; None: num_train_epochs passes over the prompts
    total_episodes: int | None = None
    # rows of a forward pass without a gradient
    local_rollout_forward_batch_size: int = 64
    # how often responses to eval_dataset are written
    num_sample_generations: int = 10
    # tokens after which a response is cut
    response_length: int = 53
    # "eos": a response ends with the tokenizer's end of text; None with stop_token_id None: at response_length alone
    stop_token: Literal["eos"] | None = None
    # a response ends with this token
    stop_token_id: int | None = None
    # of sampling
    temperature: float = 0.7
    # taken from the score of a response without the end of text
    missing_eos_penalty: float | None = None
    # passes over a batch
    num_ppo_epochs: int = 4
    # to a variance of 1, the mean as it was
    whiten_rewards: bool = False
    # of the per-token KL penalty
    kl_coef: float = 0.05
    # "k1" or "k3" of http://joschu.net/blog/kl-approx.html
    kl_estimator: Literal["k1", "k3"] = "k1"
    # of the ratio
    cliprange: float = 0.2
    # of the value loss beside the policy loss
    vf_coef: float = 0.1
    # of the value function's change
    cliprange_value: float = 0.2
    # of later rewards
    gamma: float = 1.0
    # of generalised advantage estimation
    lam: float = 0.95

    def __post_init__(self) -> None:
        _Arguments.__post_init__(self)
        require_positive(self, "num_mini_batches", "total_episodes", "local_rollout_forward_batch_size")
        require_positive(self, "response_length", "temperature", "num_ppo_epochs", "missing_eos_penalty")
        require_not_negative(self, "num_sample_generations")
        if self.stop_token not in (None, "eos"):
            raise ValueError(f"stop_token: found {self.stop_token!r}, accepted are 'eos' and None, or stop_token_id")
        if self.stop_token is not None and self.stop_token_id is not None:
            raise ValueError(f"stop_token_id: found {self.stop_token_id} beside stop_token, accepted is one of the two")
        if self.kl_estimator not in ("k1", "k3"):
            raise ValueError(f"kl_estimator: found {self.kl_estimator!r}, accepted are 'k1' and 'k3'")
        if self.rows_of_a_batch % self.num_mini_batches:
            raise ValueError(
                f"num_mini_batches: found {self.num_mini_batches}, accepted are divisors of a batch of "
                f"{self.rows_of_a_batch}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig(_Arguments):
    """Arguments of `RewardTrainer`, with TRL's own values where nothing is said."""

    learning_rate: float = 1e-4
    # optimiser steps, where it is not num_train_epochs
    max_steps: int = -1
    # tokens; a comparison with a longer sequence is left out. None: none is
    max_length: int | None = 1024
    # at the end of a text; None: the tokenizer's
    eos_token: str | None = None
    # TRL's own word; there is no dropout here either way
    disable_dropout: bool = True
    # of the square of a pair's two scores added up (arXiv 2312.09244, equation 2)
    center_rewards_coefficient: float | None = None

    def __post_init__(self) -> None:
        _Arguments.__post_init__(self)
        require_positive(self, "max_length", "center_rewards_coefficient")
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(f"max_steps: found {self.max_steps}, accepted are positive numbers, and -1")
        if not self.disable_dropout:
            raise ValueError("disable_dropout: found False, accepted is True: a reward model learns without dropout")

    def num_steps(self, num_rows: int) -> int:
        """Optimiser steps over so many comparisons."""
        if self.max_steps > 0:
            return self.max_steps
        return math.ceil(self.num_train_epochs * math.ceil(num_rows / self.rows_of_a_batch))
