"""What sampling with vLLM is, wherever it runs: rows, weights and settings on their way there, and responses back.

The tokens are not those of `sample_rollout`: the random numbers are vLLM's own. They are keyed by (seed, episode), but
vLLM's logits change in their last bits with what else is in the batch, so a run is not reproducible bit for bit.
docs/engines.md says what was run with which version.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from instructrl import distributed
from instructrl.data.encoding import Encoder, pad_left, pad_right
from instructrl.data.settings import Limits
from instructrl.models.base import every_named_weight
from instructrl.models.policy import Policy
from instructrl.rollout import vllm_package
from instructrl.rollout.generate import Sampling
from instructrl.rollout.randomness import keyed_seed
from instructrl.types import Rollout, Sequences

# vLLM clamps a lower temperature with a warning and refuses a higher one.
_TEMPERATURES = (0.01, 2.0)


class ByVLLM(ABC):
    """A `RolloutEngine`: hands the policy's weights over at each call, then samples.

    limits: of prompts and responses. precision: of the weights that go over. together: processes of the job that sample
    the same rows. Weights go over by the names of parameters, an adapter's share in them; for models with experts these
    need not be those of their checkpoints: vLLM then raises for the unknown name.
    """

    _modules: set[str]  # the last parts of the paths of vLLM's modules

    def __init__(self, limits: Limits, precision: str, together: int = 1) -> None:
        self._context, self._dtype, self._together = limits.total, getattr(torch, precision), together

    @abstractmethod
    def _with_weights_of(self, policy: Policy) -> AbstractContextManager[None]:
        """Inside, vLLM's network has the policy's weights, and what was computed with the old ones is forgotten."""

    @abstractmethod
    def _generate(self, prompts: list[list[int]], parameters: list[dict[str, Any]]) -> list[list[int]]:
        """A response to each prompt, all of them token ids. parameters: of vLLM's `SamplingParams`, for each."""

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
            settings = [_parameters(sampling, ends, allowed, first_episode + row) for row in rows]
            responses = self._generate([encoded[row] for row in rows], settings) if rows else []
        sampled = dict(zip(rows, responses, strict=True))
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


def _parameters(sampling: Sampling, ends: list[int], allowed: list[int] | None, episode: int) -> dict[str, Any]:
    """For one response: the whole distribution of the allowed tokens, and what ends it."""
    return {
        "seed": keyed_seed(sampling.seed, episode),
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_response_tokens,
        "top_p": sampling.truncation.top_p,
        "top_k": sampling.truncation.top_k,
        "min_p": sampling.truncation.min_p,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        # Without `ignore_eos` every token that the engine's folder names as an end would end a response, too.
        "stop_token_ids": ends,
        "ignore_eos": True,
        "detokenize": False,
        "allowed_token_ids": allowed,
    }


def _rows_of_group(count: int, together: int) -> list[int]:
    """Those that the processes sample that work as one with this one: what each of them counts as its own."""
    size, group = distributed.size_of_job(), distributed.rank() // together
    return [row for row in range(count) if row % size // together == group]


def ended(token_ids: Sequence[int], reason: str | None) -> list[int]:
    """A response, with the token that ended it. reason: what vLLM says of its end."""
    if reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM: found a response that ended by {reason!r}, accepted are stop, length")
    return list(token_ids)
