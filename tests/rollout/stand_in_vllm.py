"""A stand-in for the package vllm: what the engine calls, with vLLM's names, orders and defaults, over a `Policy`.

Signatures and rules were read in the sources of vLLM 0.28.0 and 0.33.0: `LLM.__init__`, `generate`, `collective_rpc`
and `reset_prefix_cache`, `EngineArgs`, `SamplingParams` (its range of temperatures too), `reload_weights` of the
worker, `check_stop` with `update_from_generation_config`, and `CompletionOutput`.
"""

import os
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import torch
from transformers import GenerationConfig

from instructrl.models.policy import Policy

# Those of vLLM's `EngineArgs` that go through `LLM(**kwargs)` here.
ENGINE_ARGUMENTS = {"max_model_len", "generation_config"}


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
    outputs: list[CompletionOutput] = field(default_factory=list)


class Worker:
    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.num_reloads = 0

    def reload_weights(self, weights_iterator=None, weights_path=None, is_checkpoint_format=True) -> None:
        assert weights_iterator is not None
        assert weights_path is None
        assert is_checkpoint_format
        own = dict(self.policy.lm.named_parameters())
        for name, tensor in weights_iterator:
            own.pop(name).data.copy_(tensor)  # KeyError: vLLM raises for a name that its model does not have
        assert not own, f"not loaded: {list(own)}"
        self.num_reloads += 1


class LLM:
    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        dtype: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        **kwargs,
    ) -> None:
        assert set(kwargs) <= ENGINE_ARGUMENTS, set(kwargs)
        self.arguments = {"model": model, "skip_tokenizer_init": skip_tokenizer_init, "dtype": dtype, **kwargs}
        self.in_process = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") == "0"
        self.worker = Worker(Policy.load(model))
        ends = GenerationConfig.from_pretrained(model).eos_token_id if isinstance(model, str) else None
        self.folder_ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        self.cached_with = self.num_resets = 0  # the reload that the prefix cache belongs to
        self.can_reset = True
        self.calls: list[SimpleNamespace] = []

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None) -> list:
        assert self.in_process, "a generator cannot be sent to another process"
        return [getattr(self.worker, method)(*args, **(kwargs or {}))]

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
        weights = torch.cat([p.detach().flatten() for p in self.worker.policy.parameters()])
        outputs = [
            RequestOutput(str(i), prompt["prompt_token_ids"], [self._sample(prompt["prompt_token_ids"], params)])
            for i, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True))
        ]
        self.calls.append(SimpleNamespace(prompts=prompts, params=sampling_params, outputs=outputs, weights=weights))
        return outputs

    def _sample(self, prompt: list[int], params: SamplingParams) -> CompletionOutput:
        generator = torch.Generator().manual_seed(params.seed)
        stops = set(params.stop_token_ids or ()) | (set() if params.ignore_eos else set(self.folder_ends))
        tokens: list[int] = []
        while True:
            logits = self.worker.policy.lm(input_ids=torch.tensor([prompt + tokens])).logits[0, -1]
            if params.allowed_token_ids is not None:
                barred = torch.ones_like(logits, dtype=torch.bool)
                barred[params.allowed_token_ids] = False
                logits = logits.masked_fill(barred, float("-inf"))
            weights = (logits / params.temperature).softmax(dim=0)
            tokens.append(int(torch.multinomial(weights, 1, generator=generator)))
            if tokens[-1] in stops:
                return CompletionOutput(0, "", tokens, "stop")
            if len(tokens) == params.max_tokens or len(prompt) + len(tokens) >= self.arguments["max_model_len"]:
                return CompletionOutput(0, "", tokens, "length")


def module() -> ModuleType:
    """To be put into `sys.modules`. `made` lists the `LLM`s."""
    vllm = ModuleType("vllm")
    vllm.made = []

    def make(*args, **kwargs):
        vllm.made.append(LLM(*args, **kwargs))
        return vllm.made[-1]

    vllm.LLM, vllm.SamplingParams = make, SamplingParams
    return vllm
