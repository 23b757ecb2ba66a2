"""verl's own updates of an actor and a critic on a tiny model, on a CPU.

Its trainer starts vLLM and asks Ray for GPUs, so responses are random words here. All else is verl's: the FSDP2 engines
on a process group of one, advantages with the KL in the rewards or in the loss, micro-batches of unpadded sequences,
`ppo_loss` and `value_loss`, optimisers and clipping.
"""

import contextlib
import os
import tempfile
from functools import partial
from typing import Any

os.environ.setdefault("VERL_LOGGING_LEVEL", "ERROR")

import numpy as np
import torch
import verl  # noqa: F401 - its plugins need all of it
from verl.plugin.platform import PlatformBase, set_platform

from benchmarks.end_to_end.host_runs.record import Record, main

VOCABULARY, PROMPT, RESPONSE, BATCH, GROUP = 2000, 8, 12, 16, 4


def _nothing(self: Any, *args: Any) -> None:
    pass


# What verl asks of a device. It has a CPU for its tests alone, and its plugins may bring other devices.
_NAMES = ("set_device", "synchronize", "manual_seed", "manual_seed_all", "set_allocator_settings", "empty_cache")
_CPU = type(
    "CPU",
    (PlatformBase,),
    {
        **dict.fromkeys((*_NAMES, "profiler_start", "profiler_stop", "cudart"), _nothing),
        "device_name": "cpu",
        "vendor_name": "cpu",
        "device_module": torch.cpu,
        "is_available": lambda self: True,
        "current_device": lambda self: "cpu",
        "device_count": lambda self: 1,
        "get_device_capability": lambda self, index=0: (None, None),
        "communication_backend_name": lambda self: "gloo",
        "visible_devices_envvar": lambda self: "NO_DEVICES",
        "nvtx_range": lambda self, message: contextlib.nullcontext(),
        "ray_resource_name": lambda self: "CPU",
        "ray_noset_envvars": lambda self: [],
        "is_ipc_supported": lambda self: False,
    },
)
set_platform(_CPU())

from tensordict import TensorDict  # noqa: E402
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForTokenClassification  # noqa: E402
from verl import DataProto  # noqa: E402
from verl.trainer.config import AlgoConfig, CheckpointConfig  # noqa: E402
from verl.trainer.ppo import core_algos, ray_trainer  # noqa: E402
from verl.utils import model as value_networks  # noqa: E402
from verl.utils import tensordict_utils  # noqa: E402
from verl.workers.config import (  # noqa: E402
    ActorConfig,
    CriticConfig,
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
)
from verl.workers.engine.fsdp.transformer_impl import (  # noqa: E402
    FSDPEngineWithLMHead,
    FSDPEngineWithValueHead,
)
from verl.workers.utils import losses  # noqa: E402
from verl.workers.utils.padding import left_right_2_no_padding, no_padding_2_padding  # noqa: E402


def _value_network(local_path: str, torch_dtype: torch.dtype, model_config: Any, trust_remote_code: bool) -> Any:
    return Qwen2ForTokenClassification.from_pretrained(local_path, dtype=torch_dtype, config=model_config)


# verl's own asks for flash attention.
value_networks.load_valuehead_model = _value_network


def _shape(tied: bool) -> Qwen2Config:
    """tied: one matrix of embeddings. FSDP2 shards a head of its own, which verl's fused head then cannot read."""
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        max_position_embeddings=64,
        num_labels=1,
        tie_word_embeddings=tied,
        **heads,
    )


def _engine(kind: Any, network: Any, folder: str, *, fused: bool) -> Any:
    """An engine of verl over random weights of their own seed."""
    torch.manual_seed(0)
    network(_shape(fused)).save_pretrained(folder)
    model = HFModelConfig(
        path=folder,
        load_tokenizer=False,
        model_type="value_model" if kind is FSDPEngineWithValueHead else "language_model",
        override_config={"attn_implementation": "sdpa"},
        enable_gradient_checkpointing=False,
        use_remove_padding=False,
        use_fused_kernels=fused,
        fused_kernel_options={"impl_backend": "torch"},
    )
    precision = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    # Adam divides by the size of a gradient, so that the rounding of one that is nearly 0 becomes a whole step.
    optimizer = FSDPOptimizerConfig(optimizer="SGD", lr=0.1, weight_decay=0.0, clip_grad=1.0, total_training_steps=100)
    engine = FSDPEngineConfig(strategy="fsdp2", mixed_precision=precision, use_torch_compile=False, forward_only=False)
    found = kind(model, engine, optimizer, CheckpointConfig())
    found.initialize()
    return found


def _responses(generator: torch.Generator) -> DataProto:
    """Prompts padded on the left and words at random padded on the right, `GROUP` a prompt, with gaps of tools."""

    def lengths(longest: int) -> torch.Tensor:
        return torch.randint(longest // 2, longest + 1, (BATCH, 1), generator=generator)

    places = torch.arange(RESPONSE)
    counted = places < lengths(RESPONSE)
    attention = torch.cat([torch.arange(PROMPT) >= PROMPT - lengths(PROMPT), counted], 1).long()
    ids = torch.randint(VOCABULARY, attention.shape, generator=generator) * attention
    tensors = {
        "input_ids": ids,
        "attention_mask": attention,
        "position_ids": (attention.cumsum(1) - 1).clamp(min=0),
        "prompts": ids[:, :PROMPT],
        "responses": ids[:, PROMPT:],
        "response_mask": (counted & (places != RESPONSE // 3)).long(),
    }
    groups = np.array([f"prompt-{i // GROUP}" for i in range(BATCH)], dtype=object)
    return DataProto.from_single_dict({**tensors, "uid": groups})


def _scores(batch: DataProto) -> torch.Tensor:
    """The share of even ids, at the last token."""
    mask = batch.batch["response_mask"]
    share = ((batch.batch["responses"] % 2 == 0) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    last = mask * (mask.cumsum(1) == mask.sum(1, keepdim=True))
    return share * last


def _inputs(batch: DataProto, **others: Any) -> TensorDict:
    found = left_right_2_no_padding(DataProto.from_dict(dict(batch.batch)).to_tensordict())
    size = {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": BATCH // 2, "global_batch_size": BATCH}
    padding = {"use_remove_padding": False, "temperature": 1.0}
    tensordict_utils.assign_non_tensor(found, **size, **padding, **others)
    return found


def _infer(engine: Any, name: str, batch: DataProto, **others: Any) -> torch.Tensor:
    inputs = _inputs(batch, **others)
    with engine.eval_mode():
        found = engine.infer_batch(inputs)["model_output"][name]
    return no_padding_2_padding(found, inputs).float()


def _update(engine: Any, batch: DataProto, loss: Any, **others: Any) -> tuple[float, float]:
    """The loss and the norm of its gradient."""
    with engine.train_mode():
        found = engine.train_batch(_inputs(batch, **others), loss)
    return sum(found["loss"]), found["metrics"]["grad_norm"]


def _actor_config(mode: str, fast: str, **others: Any) -> ActorConfig:
    config = ActorConfig(strategy="fsdp2", rollout_n=GROUP, ppo_micro_batch_size_per_gpu=BATCH // 2, **others)
    # As people ask for ours, where it is.
    name = fast if fast in core_algos.POLICY_LOSS_REGISTRY else mode
    object.__setattr__(config.policy_loss, "loss_mode", name)
    return config


def _train(record: Record, steps: int, *, estimator: str, actor_config: ActorConfig, fused: bool) -> None:
    """Two updates a batch, so that the second has ratios other than 1. A step is an update of the actor."""
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        actor = _engine(FSDPEngineWithLMHead, Qwen2ForCausalLM, f"{folder}/actor", fused=fused)
        critic = None
        if estimator == "gae":
            critic = _engine(FSDPEngineWithValueHead, Qwen2ForTokenClassification, f"{folder}/critic", fused=False)
    config = AlgoConfig(adv_estimator=estimator, gamma=0.99, lam=0.95)
    critic_config = CriticConfig(strategy="fsdp2", ppo_micro_batch_size_per_gpu=BATCH // 2)
    how = {"use_fused_kernels": fused, "calculate_entropy": True}
    reference = None
    record.start()
    for step in range(steps):
        if step % 2 == 0:
            batch = _responses(generator)
            batch.batch["old_log_probs"] = _infer(actor, "log_probs", batch, **how)
            # The first policy's of the same words would need another engine; a constant is as good a reference.
            reference = batch.batch["old_log_probs"].mean() - 0.1
            batch.batch["ref_log_prob"] = reference.expand_as(batch.batch["old_log_probs"]).clone()
            batch.batch["token_level_scores"] = batch.batch["token_level_rewards"] = _scores(batch)
            if critic is not None:
                batch.batch["values"] = _infer(critic, "values", batch)
                controller = core_algos.FixedKLController(0.05)
                batch, _ = ray_trainer.apply_kl_penalty(batch, controller, "low_var_kl")
            batch = ray_trainer.compute_advantage(batch, estimator, config.gamma, config.lam, config=config)
        if critic is not None:
            record.step(*_update(critic, batch, partial(losses.value_loss, critic_config)))
        record.step(*_update(actor, batch, partial(losses.ppo_loss, actor_config), **how))
    networks = [engine.module for engine in (actor, critic) if engine is not None]
    record.end(x.full_tensor() for network in networks for x in network.parameters())


def ppo(record: Record, steps: int) -> None:
    """GAE, a critic, and the KL in the rewards."""
    _train(record, steps, estimator="gae", actor_config=_actor_config("vanilla", "instructrl"), fused=False)


def grpo(record: Record, steps: int) -> None:
    """Groups, the KL and the entropy in the loss, the fused head."""
    config = _actor_config("vanilla", "instructrl", use_kl_loss=True, kl_loss_coef=0.04, entropy_coeff=0.01)
    _train(record, steps, estimator="grpo", actor_config=config, fused=True)


def gspo(record: Record, steps: int) -> None:
    """RLOO's advantages and GSPO's ratios of sequences."""
    config = _actor_config("gspo", "instructrl_gspo", loss_agg_mode="seq-mean-token-mean")
    _train(record, steps, estimator="rloo", actor_config=config, fused=False)


def _alone(train: Any) -> Any:
    """In a process group of one."""

    def run(record: Record, steps: int) -> None:
        with tempfile.NamedTemporaryFile() as file:
            torch.distributed.init_process_group("gloo", init_method=f"file://{file.name}", rank=0, world_size=1)
            try:
                train(record, steps)
            finally:
                torch.distributed.destroy_process_group()

    return run


TRAINERS = {each.__name__: _alone(each) for each in (ppo, grpo, gspo)}

if __name__ == "__main__":
    main("verl", TRAINERS)
