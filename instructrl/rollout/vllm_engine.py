"""Sampling responses with vLLM, which docs/engines.md describes: what was run with which version, and what differs.

The tokens are not those of `sample_rollout`: the random numbers are vLLM's own. They are keyed by (seed, episode), but
vLLM's logits change in their last bits with what else is in the batch, so a run is not reproducible bit for bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from instructrl import distributed
from instructrl.data.encoding import Encoder, pad_left, pad_right
from instructrl.data.settings import Limits
from instructrl.models.adapters import merged
from instructrl.models.base import every_named_weight
from instructrl.models.policy import Policy
from instructrl.models.spread import unsharded
from instructrl.rollout import vllm_package
from instructrl.rollout.generate import Sampling
from instructrl.rollout.randomness import keyed_seed
from instructrl.rollout.settings import VLLMConfig
from instructrl.types import Rollout, Sequences

# vLLM clamps a lower temperature with a warning and refuses a higher one.
_TEMPERATURES = (0.01, 2.0)


class VLLMEngine:
    """A `RolloutEngine`: takes over the policy's weights at each call, then samples.

    model: a transformers folder or name; gives the architecture, and weights until the first call. limits: of prompts
    and responses. precision: of vLLM's weights and cache. options: further arguments of `vllm.LLM`. Raises RuntimeError
    where vLLM is not installed or too old, ValueError for a cache that has no room here or not for one response.

    The engine lies in this process. On a GPU it gives its memory back between the calls. In a job each process samples
    its part of the rows, or each `config.tensor_parallel` of them together. Weights go over by the names of parameters,
    an adapter's share in them; for models with experts these need not be those of their checkpoints: vLLM then raises
    for the unknown name.
    """

    def __init__(
        self,
        model: str | Path,
        limits: Limits,
        config: VLLMConfig = VLLMConfig(),
        *,
        precision: str = "float32",
        **options: Any,
    ) -> None:
        self._vllm = vllm_package.load()
        self._context, self._dtype, self._together = limits.total, getattr(torch, precision), config.tensor_parallel
        settings = {
            "dtype": precision,
            "max_model_len": limits.total,
            "enforce_eager": config.enforce_eager,
            "kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30),
            # Of all memory. The cache has a size of its own; a GPU is still looked at, whether this much of it is free.
            "gpu_memory_utilization": 0.01,
            # prompts and responses are ids: a second tokenizer could only disagree
            "skip_tokenizer_init": True,
            # no sampling settings out of the model's generation_config.json
            "generation_config": "vllm",
            **vllm_package.platform_options(),
            **_job_options(config),
            **options,
        }
        with vllm_package.process_kept():
            try:
                self._llm = self._vllm.LLM(str(model), **settings)
                self._try_out()
            except ValueError as error:
                # It may speak of its own settings for memory, which are not those of this one.
                said = " ".join(str(error).split())
                raise ValueError(
                    f"engine: found what vLLM does not take, with vllm.kv_cache_gib {config.kv_cache_gib}: {said}"
                ) from error
            if distributed.size_of_job() > 1:
                vllm_package.leave_process_group(self._llm)
            self._modules = self._llm.apply_model(_module_names)[0]
            self._sleeps = bool(settings.get("enable_sleep_mode"))
            if self._sleeps:
                self._llm.sleep(level=2)

    def _try_out(self) -> None:
        """One token. A network whose sizes vLLM's kernels do not take, as heads of 16 on a CPU, is refused by this."""
        token = self._vllm.SamplingParams(temperature=0, max_tokens=1, detokenize=False)
        self._llm.generate([{"prompt_token_ids": [0]}], [token], use_tqdm=False)

    @torch.no_grad()
    def __call__(
        self, policy: Policy, encoder: Encoder, prompts: Sequence[str], sampling: Sampling, *, first_episode: int = 0
    ) -> Rollout:
        """As `sample_rollout`; `sampling.batch_size` is not used, since vLLM makes its own batches.

        Raises ValueError for a temperature that vLLM does not take and for limits above those of the engine.
        """
        self._check(encoder, sampling)
        device = policy.device
        ends = policy.ends(*encoder.ends)
        encoded = [encoder.prompt(prompt) for prompt in prompts]
        rows = _rows_of_group(len(prompts), self._together)
        # A trainer's autocast is not meant for the engine, which has the precision that it was opened with.
        with torch.autocast(device.type, enabled=False), vllm_package.process_kept(), self._with_weights_of(policy):
            # None for all: a list of every id is a mask that changes nothing and is built for each response.
            allowed = list(range(policy.num_ids)) if policy.has_unused_rows else None
            outputs = self._llm.generate(
                [{"prompt_token_ids": encoded[row]} for row in rows],
                [self._parameters(sampling, ends, allowed, first_episode + row) for row in rows],
                use_tqdm=False,
            )
        sampled = {row: _response(output) for row, output in zip(rows, outputs, strict=True)}
        own = [sampled[row] for row in distributed.own_rows(range(len(prompts)))]
        prompt, prompt_mask = pad_left(encoded, encoder.end_of_text)
        response, response_mask = (x.to(device) for x in pad_right(own or [[]], encoder.end_of_text))
        response, response_mask = (distributed.gather(x[: len(own)], len(prompts)) for x in (response, response_mask))
        response = response.masked_fill(~response_mask, encoder.end_of_text)
        last = response.gather(1, response_mask.sum(dim=1, keepdim=True) - 1)
        sequences = Sequences(
            prompt=prompt.to(device),
            prompt_mask=prompt_mask.to(device),
            response=response,
            response_mask=response_mask,
        )
        return Rollout(sequences=sequences, finished=(last == torch.tensor(ends, device=device)).any(dim=1))

    def _check(self, encoder: Encoder, sampling: Sampling) -> None:
        if sampling.truncation.stop:
            raise ValueError(f"stop: found {sampling.truncation.stop}, accepted by this engine are token ids alone")
        low, high = _TEMPERATURES
        if sampling.temperature and not low <= sampling.temperature <= high:
            raise ValueError(f"temperature: found {sampling.temperature}, accepted by vLLM is 0 and {low} to {high}")
        needed = encoder.limits.max_prompt_tokens + sampling.max_response_tokens
        if needed > self._context:
            raise ValueError(f"limits: found {needed} tokens, the engine was opened for up to {self._context}")

    @contextmanager
    def _with_weights_of(self, policy: Policy) -> Iterator[None]:
        """Inside, vLLM's model has the policy's weights, and what was computed with the old ones is forgotten.

        An engine that sleeps is awake inside: first the memory of its weights, and the cache once they are there, so
        that the copies of the policy's that hand them over are gone by then.
        """
        if self._sleeps:
            self._llm.wake_up(["weights"])
        with unsharded(policy) as everywhere, merged(everywhere) as found:
            weights = self._handed_over(found)
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if self._sleeps:
            self._llm.wake_up(["kv_cache"])
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM: found its prefix cache in use after a weight update, accepted is an idle engine")
        yield
        if self._sleeps:
            self._llm.sleep(level=2)

    def _handed_over(self, policy: Policy) -> Iterator[tuple[str, Tensor]]:
        """The weights of a policy by name, in vLLM's precision.

        Tied ones go by their second name, too, where vLLM's model has a module of that name. It may keep a copy of its
        own there, as it does of output heads on a CPU; where it has none, it refuses the name.
        """
        seen: set[int] = set()
        for name, weight in every_named_weight(policy.lm):
            if id(weight) not in seen or name.split(".")[-2] in self._modules:
                seen.add(id(weight))
                yield name, weight.detach().to(self._dtype if weight.is_floating_point() else None)

    def _parameters(self, sampling: Sampling, ends: list[int], allowed: list[int] | None, episode: int) -> Any:
        """vLLM's `SamplingParams` of one response: the whole distribution of the allowed tokens, and what ends it."""
        return self._vllm.SamplingParams(
            seed=keyed_seed(sampling.seed, episode),
            temperature=sampling.temperature,
            max_tokens=sampling.max_response_tokens,
            top_p=sampling.truncation.top_p,
            top_k=sampling.truncation.top_k,
            min_p=sampling.truncation.min_p,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            repetition_penalty=1.0,
            # Without `ignore_eos` every token that the engine's folder names as an end would end a response, too.
            stop_token_ids=ends,
            ignore_eos=True,
            detokenize=False,
            allowed_token_ids=allowed,
        )


def _job_options(config: VLLMConfig) -> Mapping[str, Any]:
    """Arguments of `vllm.LLM` in a job of several processes: each has an engine, `tensor_parallel` of them work as one.

    Raises ValueError for a number of them that does not divide the job.
    """
    count = distributed.size_of_job()
    if count % config.tensor_parallel:
        raise ValueError(
            f"vllm.tensor_parallel: found {config.tensor_parallel} in a job of {count} processes, accepted are the "
            "divisors of that"
        )
    if count == 1:
        return {}
    return {"distributed_executor_backend": "external_launcher", "tensor_parallel_size": config.tensor_parallel}


def _rows_of_group(count: int, together: int) -> list[int]:
    """Those that the processes sample that work as one with this one: what each of them counts as its own."""
    size, group = distributed.size_of_job(), distributed.rank() // together
    return [row for row in range(count) if row % size // together == group]


def _module_names(model: nn.Module) -> set[str]:
    """The last parts of the paths of vLLM's modules.

    Raises ValueError for a network of transformers': vLLM gives its classes another `__init__` and `__call__`, in all
    of the process, and a policy of such a class does not run any more.
    """
    if type(model).__module__.startswith("vllm.model_executor.models.transformers"):
        raise ValueError(
            f"engine: found {type(model).__name__}, since vLLM has no network of its own for this model; accepted is "
            "builtin"
        )
    return {path.rpartition(".")[2] for path, _ in model.named_modules()}


def _response(output: Any) -> list[int]:
    """Token ids of vLLM's `RequestOutput`, the one that ended it included."""
    (completion,) = output.outputs
    if completion.finish_reason not in ("stop", "length"):
        raise RuntimeError(
            f"vLLM: found a response that ended by {completion.finish_reason!r}, accepted are stop, length"
        )
    return list(completion.token_ids)
