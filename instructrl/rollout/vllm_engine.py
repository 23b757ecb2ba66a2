"""Sampling responses with vLLM.

Written against the sources of vLLM 0.28.0 and 0.33.0 and tested with a stand-in for the package that has their
signatures; it has not been run with vLLM itself, which needs a GPU.

The tokens are not those of `sample_rollout`: the random numbers are vLLM's own. They are keyed by (seed, episode), but
vLLM's logits change in their last bits with what else is in the batch, so a run is not reproducible bit for bit.
"""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from instructrl.data.encoding import Encoder, pad_left, pad_right
from instructrl.data.settings import Limits
from instructrl.models.adapters import merged
from instructrl.models.base import named_weights
from instructrl.models.policy import Policy
from instructrl.rollout.generate import Sampling
from instructrl.rollout.randomness import keyed_seed
from instructrl.types import Rollout, Sequences

# vLLM clamps a lower temperature with a warning and refuses a higher one.
_TEMPERATURES = (0.01, 2.0)


class VLLMEngine:
    """A `RolloutEngine`: takes over the policy's weights at each call, then samples.

    model: a transformers folder or name; gives the architecture, and weights until the first call. limits: of prompts
    and responses; memory is planned for them. options: further arguments of `vllm.LLM`, as `dtype` and
    `gpu_memory_utilization`. Raises RuntimeError where vLLM is not installed.

    The engine is one GPU in this process. Weights go over by the names of parameters, an adapter's share in them; for
    models with experts these need not be those of their checkpoints: vLLM then raises for the unknown name.
    """

    def __init__(self, model: str | Path, limits: Limits, **options: Any) -> None:
        # In a process of its own, vLLM could be given nothing but messages; here it reads the tensors.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self._vllm = _import_vllm()
        self._context = limits.total
        settings = {
            "dtype": "float32",
            "max_model_len": limits.total,
            # prompts and responses are ids: a second tokenizer could only disagree
            "skip_tokenizer_init": True,
            # no sampling settings out of the model's generation_config.json
            "generation_config": "vllm",
        }
        self._llm = self._vllm.LLM(str(model), **{**settings, **options})

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
        episodes = range(first_episode, first_episode + len(encoded))
        # A trainer's autocast is not meant for the engine, which has the precision that it was opened with.
        with torch.autocast(device.type, enabled=False):
            self._take_weights(policy)
            # None for all: a list of every id is a mask that changes nothing and is built for each response.
            allowed = list(range(policy.num_ids)) if policy.has_unused_rows else None
            outputs = self._llm.generate(
                [{"prompt_token_ids": ids} for ids in encoded],
                [self._parameters(sampling, ends, allowed, episode) for episode in episodes],
                use_tqdm=False,
            )
        responses = [_response(output) for output in outputs]
        prompt, prompt_mask = pad_left(encoded, encoder.end_of_text)
        response, response_mask = pad_right(responses, encoder.end_of_text)
        sequences = Sequences(prompt=prompt, prompt_mask=prompt_mask, response=response, response_mask=response_mask)
        finished = torch.tensor([ids[-1] in ends for ids in responses])
        return Rollout(sequences=sequences, finished=finished).to(device)

    def _check(self, encoder: Encoder, sampling: Sampling) -> None:
        if sampling.truncation.stop:
            raise ValueError(f"stop: found {sampling.truncation.stop}, accepted by this engine are token ids alone")
        low, high = _TEMPERATURES
        if sampling.temperature and not low <= sampling.temperature <= high:
            raise ValueError(f"temperature: found {sampling.temperature}, accepted by vLLM is 0 and {low} to {high}")
        needed = encoder.limits.max_prompt_tokens + sampling.max_response_tokens
        if needed > self._context:
            raise ValueError(f"limits: found {needed} tokens, the engine was opened for up to {self._context}")

    def _take_weights(self, policy: Policy) -> None:
        """The policy's weights into vLLM's model; what was computed with the old ones is forgotten."""
        with merged(policy) as found:
            weights = ((name, weight.detach()) for name, weight in named_weights(found.lm))
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM: found its prefix cache in use after a weight update, accepted is an idle engine")

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


def _import_vllm() -> Any:
    try:
        return importlib.import_module("vllm")
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise RuntimeError(
            "engine: found 'vllm', which is not installed; accepted is 'builtin', or 'vllm' after "
            "pip install instructrl[vllm]"
        ) from None


def _response(output: Any) -> list[int]:
    """Token ids of vLLM's `RequestOutput`, the one that ended it included."""
    (completion,) = output.outputs
    if completion.finish_reason not in ("stop", "length"):
        raise RuntimeError(
            f"vLLM: found a response that ended by {completion.finish_reason!r}, accepted are stop, length"
        )
    return list(completion.token_ids)
