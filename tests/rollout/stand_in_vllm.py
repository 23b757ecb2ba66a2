"""A stand-in for the package vllm: what the engine calls, with vLLM's names, orders and defaults, over a `Policy`.

It behaves as vLLM 0.32.0 does, in what is handy for the engine and in what is not: on a CPU it has a copy of tied
output heads, cuts prompts where a step is full, which seeded requests do not survive, and replaces
`torch.set_num_threads`; it plans for most of the memory there is, and seeds the generators of the whole process.
`test_vllm.py` compares the signatures with those of the package.
"""

import os
import random
import sys
import weakref
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig

from instructrl.models.policy import Policy

# Those of vLLM's `EngineArgs` that go through `LLM(**kwargs)` here.
ENGINE_ARGUMENTS = {
    "max_model_len",
    "generation_config",
    "enable_chunked_prefill",
    "enable_sleep_mode",
    "distributed_executor_backend",
}


@dataclass
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    detokenize: bool = True
    allowed_token_ids: list[int] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature must be in [0, 2], got {self.temperature}.")


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


class Platform:
    """That of `vllm.platforms`."""

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type

    def is_cpu(self) -> bool:
        return self.device_type == "cpu"

    def is_sleep_mode_available(self) -> bool:
        return self.device_type == "cuda"


class Worker:
    """With a copy of the output head on a CPU, tied or not: vLLM packs it once, for the products there."""

    def __init__(self, policy: Policy, dtype: torch.dtype, platform: Platform, has_head: bool) -> None:
        self.policy, self.dtype, self.platform = policy, dtype, platform
        policy.lm.to(dtype)
        if platform.is_cpu() and has_head:
            policy.lm.lm_head.weight = nn.Parameter(policy.lm.lm_head.weight.detach().clone())
        self.num_reloads, self.has_head = 0, has_head
        self.asleep: set[str] = set()

    def reload_weights(self, weights_iterator=None, weights_path=None, is_checkpoint_format=True) -> None:
        assert weights_iterator is not None
        assert weights_path is None
        assert is_checkpoint_format
        assert "weights" not in self.asleep
        own = dict(self.policy.lm.named_parameters(remove_duplicate=False))
        for name, tensor in weights_iterator:
            assert tensor.dtype == self.dtype, f"{name}: vLLM converts it with a warning"
            if name not in own or (name == "lm_head.weight" and not self.has_head):
                raise ValueError(f"There is no module or parameter named '{name}' in {type(self.policy.lm).__name__}")
            own.pop(name).data.copy_(tensor)
        assert set(own) <= {"lm_head.weight"}, f"not loaded: {list(own)}"  # vLLM leaves that as it was
        self.num_reloads += 1

    def sleep(self, level: int = 1) -> None:
        assert level == 2
        self.asleep = {"weights", "kv_cache"}
        for parameter in self.policy.lm.parameters():
            parameter.data.fill_(float("nan"))

    def wake_up(self, tags=None) -> None:
        self.asleep -= set(tags or self.asleep)


class LLM:
    total_memory, free_memory = 16 * 2**30, 12 * 2**30
    bytes_a_token = 2**10
    step_tokens = 4096
    platform = Platform("cpu")
    has_head = True  # some networks of vLLM use the embedding where it is tied, and have no module for the output

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        enforce_eager: bool = False,
        kv_cache_memory_bytes: int | None = None,
        **kwargs,
    ) -> None:
        assert set(kwargs) <= ENGINE_ARGUMENTS, set(kwargs)
        self.arguments = {"model": model, "skip_tokenizer_init": skip_tokenizer_init, "dtype": dtype, **kwargs}
        self.arguments |= {"enforce_eager": enforce_eager, "kv_cache_memory_bytes": kv_cache_memory_bytes}
        self.arguments |= {"tensor_parallel_size": tensor_parallel_size}
        self.in_process = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") == "0"
        if kwargs.get("enable_sleep_mode") and not self.platform.is_sleep_mode_available():
            raise ValueError("Sleep mode is not supported on current platform.")
        self._plan_memory(gpu_memory_utilization, kv_cache_memory_bytes)
        self._seed_everything(seed)
        self.worker = Worker(Policy.load(model), getattr(torch, dtype), self.platform, self.has_head)
        ends = GenerationConfig.from_pretrained(model).eos_token_id if isinstance(model, str) else None
        self.folder_ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        self.cached_with = self.num_resets = 0  # the reload that the prefix cache belongs to
        self.can_reset = True
        core = SimpleNamespace(_finalizer=weakref.finalize(self, self._end, self.platform))
        self.llm_engine = SimpleNamespace(engine_core=core)
        self.calls: list[SimpleNamespace] = []
        self.log: list[str] = []

    @staticmethod
    def _end(platform: Platform) -> None:
        """vLLM ends the process group, whoever made it."""

    def _plan_memory(self, utilization: float, cache: int | None) -> None:
        wanted = utilization * self.total_memory
        if self.free_memory < wanted and (cache is None or not self.platform.is_cpu()):
            raise ValueError(f"Free memory is less than desired memory utilization ({utilization}).")
        if cache is not None and cache > self.free_memory:
            raise ValueError(f"Available memory is less than requested memory for kv ({cache}).")
        needed = self.arguments["max_model_len"] * self.bytes_a_token
        if (wanted if cache is None else cache) < needed:
            raise ValueError(f"To serve at least one request, {needed} bytes KV cache are needed.")

    def _seed_everything(self, seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        if self.platform.is_cpu():
            torch.set_num_threads = lambda x: None

    def apply_model(self, func) -> list:
        assert self.in_process, "a function cannot be sent to another process"
        return [func(self.worker.policy.lm if self.has_head else self.worker.policy.lm.base_model)]

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None) -> list:
        assert self.in_process, "a generator cannot be sent to another process"
        self.log.append(method)
        return [getattr(self.worker, method)(*args, **(kwargs or {}))]

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        self.log.append(f"sleep {level}")
        self.worker.sleep(level)

    def wake_up(self, tags: list[str] | None = None) -> bool:
        self.log.append(f"wake_up {tags}")
        self.worker.wake_up(tags)
        return not self.worker.asleep

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        if self.can_reset:
            self.cached_with = self.worker.num_reloads
            self.num_resets += 1
        return self.can_reset

    def generate(
        self,
        prompts,
        sampling_params=None,
        *,
        use_tqdm=True,
        lora_request=None,
        priority=None,
        tokenization_kwargs=None,
        mm_processor_kwargs=None,
    ) -> list[RequestOutput]:
        assert self.cached_with == self.worker.num_reloads, "the prefix cache is that of other weights"
        assert not torch.is_autocast_enabled("cpu")
        assert len(prompts) == len(sampling_params)
        assert not self.worker.asleep
        self.log.append("generate")
        self._read_prompts([prompt["prompt_token_ids"] for prompt in prompts], sampling_params)
        torch.rand(3), np.random.rand(3), random.random()
        weights = flat(self.worker.policy)
        outputs = [
            RequestOutput(str(i), prompt["prompt_token_ids"], [self._sample(prompt["prompt_token_ids"], params)])
            for i, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True))
        ]
        if self.worker.num_reloads:
            self.calls.append(
                SimpleNamespace(prompts=prompts, params=sampling_params, outputs=outputs, weights=weights)
            )
        return outputs

    def _read_prompts(self, prompts, params) -> None:
        """A step reads so many tokens; what does not fit whole goes on in the next one, if prompts may be cut."""
        if not (self.platform.is_cpu() and self.arguments.get("enable_chunked_prefill", True)):
            return
        filled = 0
        for prompt, of_it in zip(prompts, params, strict=True):
            if filled % self.step_tokens + len(prompt) > self.step_tokens and of_it.seed is not None:
                raise RuntimeError("CPU Generator does not use offset")
            filled += len(prompt)

    def _sample(self, prompt: list[int], params: SamplingParams) -> CompletionOutput:
        generator = torch.Generator().manual_seed(params.seed or 0)
        stops = set(params.stop_token_ids or ()) | (set() if params.ignore_eos else set(self.folder_ends))
        tokens: list[int] = []
        while True:
            logits = self.worker.policy.lm(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].float()
            if params.allowed_token_ids is not None:
                barred = torch.ones_like(logits, dtype=torch.bool)
                barred[params.allowed_token_ids] = False
                logits = logits.masked_fill(barred, float("-inf"))
            if params.temperature:
                weights = (logits / params.temperature).softmax(dim=0)
                tokens.append(int(torch.multinomial(weights, 1, generator=generator)))
            else:
                tokens.append(int(logits.argmax()))
            if tokens[-1] in stops:
                return CompletionOutput(0, "", tokens, "stop")
            if len(tokens) == params.max_tokens or len(prompt) + len(tokens) >= self.arguments["max_model_len"]:
                return CompletionOutput(0, "", tokens, "length")


def flat(policy: Policy) -> torch.Tensor:
    """All weights, tied ones by each of their names."""
    return torch.cat([p.detach().flatten() for _, p in policy.lm.named_parameters(remove_duplicate=False)])


def install(monkeypatch, device_type: str = "cpu", version: str = "0.32.0") -> ModuleType:
    """As the package vllm. What it and the engine leave changed in the process is as it was after the test."""
    found = modules(device_type, version)
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setattr(torch, "set_num_threads", torch.set_num_threads)
    return found["vllm"]


def modules(device_type: str = "cpu", version: str = "0.32.0") -> dict[str, ModuleType]:
    """To be put into `sys.modules`. `made` of the module vllm lists the `LLM`s."""
    vllm, platforms = ModuleType("vllm"), ModuleType("vllm.platforms")
    vllm.made, vllm.__version__ = [], version
    platforms.current_platform = Platform(device_type)

    class Here(LLM):
        platform = platforms.current_platform

        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            vllm.made.append(self)

    vllm.LLM, vllm.SamplingParams = Here, SamplingParams
    return {"vllm": vllm, "vllm.platforms": platforms}
