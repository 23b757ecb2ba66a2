"""verl's log-probabilities and entropies, from logits and from hidden states."""

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instructrl.integrations.adapter import Replacement
from instructrl.integrations.logits import as_computed, entropy_of, nothing_chosen
from instructrl.integrations.selfcheck import Draw, Example, Sizes
from instructrl.ops import logprobs, statistics

_MODULE = "verl.utils.torch_functional"
_HEAD_MODULE = "verl.utils.experimental.torch_functional"


def _host_takes_flash_attention(logits: Tensor) -> bool:
    """Its log-probabilities are float32 then, and their backward may overwrite the logits."""
    switched_off = os.environ.get("VERL_DISABLE_FLASH_ATTN_CE", "0") == "1"
    return logits.is_cuda and not switched_off and sys.modules[_MODULE].FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE


def _logprobs_from_logits(own: Callable[..., Any]) -> Callable[..., Any]:
    def logprobs_from_logits(logits: Tensor, labels: Tensor, inplace_backward: bool = True) -> Tensor:
        if not _host_takes_flash_attention(logits):
            return logprobs.token_logprobs(logits, labels).to(logits.dtype)
        return logprobs.token_logprobs(logits, labels, inplace_backward=inplace_backward)

    return logprobs_from_logits


def _entropy_from_logits(own: Callable[..., Any]) -> Callable[..., Any]:
    def entropy_from_logits(logits: Tensor) -> Tensor:
        return entropy_of(logits).to(logits.dtype)

    return entropy_from_logits


def _entropy_from_logits_with_chunking(own: Callable[..., Any]) -> Callable[..., Any]:
    def entropy_from_logits_with_chunking(logits: Tensor, chunk_size: int = 2048) -> Tensor:
        return entropy_of(logits).to(torch.float32)

    return entropy_from_logits_with_chunking


def _calculate_sum_pi_squared_from_logits(own: Callable[..., Any]) -> Callable[..., Any]:
    def calculate_sum_pi_squared_from_logits(logits: Tensor) -> Tensor:
        # Ours has no gradient, and neither has what verl makes of it.
        if logits.requires_grad and torch.is_grad_enabled():
            return own(logits)
        return statistics.token_statistics(logits, nothing_chosen(logits)).sum_of_squares.to(logits.dtype)

    return calculate_sum_pi_squared_from_logits


class _Head:
    """In place of an autograd function, of which verl calls `apply`."""

    @staticmethod
    def apply(
        hidden_states: Tensor,
        vocab_weights: Tensor,
        input_ids: Tensor,
        temperature: float = 1.0,
        chunk_size: int = 512,
    ) -> tuple[Tensor, Tensor]:
        head = as_computed(hidden_states, vocab_weights)[:2]
        found, entropy = logprobs.linear_token_logprobs_and_entropy(*head, input_ids, temperature=temperature)
        return found.to(torch.float32), entropy.to(hidden_states.dtype)


def _linear_cross_entropy(own: Callable[..., Any]) -> Callable[..., Any]:
    def linear_cross_entropy(
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        temperature: float = 1.0,
        reduction: str = "none",
        dist_process_group: Any = None,
    ) -> tuple[Tensor, Tensor]:
        # A vocabulary over processes is left to the host: its caller adds up the gradients that ours would have added.
        if dist_process_group is not None or reduction.lower() != "none":
            return own(hidden, weight, labels, temperature, reduction, dist_process_group)
        head = as_computed(hidden.reshape(-1, hidden.shape[-1]), weight)[:2]
        found, entropy = logprobs.linear_token_logprobs_and_entropy(*head, labels.reshape(-1), temperature=temperature)
        return found.to(torch.float32), entropy.to(torch.float32)

    return linear_cross_entropy


def _without_flash_attention(module: str, flag: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """To check by, on a CPU: where flash attention is installed verl takes it, and it has kernels for GPUs alone."""

    def checked(function: Any, *args: Any) -> Any:
        found = sys.modules[module]
        taken = getattr(found, flag)
        setattr(found, flag, taken and args[0].is_cuda)
        try:
            return call(function, *args)
        finally:
            setattr(found, flag, taken)

    return checked


def _selections(draw: Draw) -> list[Example]:
    sizes = draw.sizes
    shape = (sizes.batch, sizes.tokens)
    packed = draw.normal(sizes.batch * sizes.tokens, sizes.vocabulary, scale=2.0, grad=True)
    return [
        Example((packed, draw.ids(sizes.batch * sizes.tokens))),
        Example((draw.normal(*shape, sizes.vocabulary, scale=2.0, grad=True), draw.ids(*shape), False)),
    ]


def _distributions(draw: Draw) -> list[Example]:
    sizes = draw.sizes
    shape = (sizes.batch, sizes.tokens, sizes.vocabulary)
    return [
        Example((draw.normal(sizes.batch * sizes.tokens, sizes.vocabulary, scale=2.0, grad=True),)),
        Example((draw.normal(*shape, scale=2.0, grad=True),)),
    ]


def _samples(draw: Draw) -> list[Example]:
    shape = (draw.sizes.batch, draw.sizes.tokens, draw.sizes.vocabulary)
    return [Example((draw.normal(*shape, scale=2.0),)), Example((draw.normal(*shape[1:], grad=True),))]


def _chunks(draw: Draw) -> list[Example]:
    logits = [draw.normal(draw.sizes.batch * draw.sizes.tokens, draw.sizes.vocabulary, grad=True) for _ in range(2)]
    return [Example((logits[0],)), Example((logits[1], 7))]


def _heads(draw: Draw) -> list[Example]:
    """Rows as a batch and packed, temperatures, a chunk that does not divide."""
    sizes = draw.sizes

    def example(*shape: int, others: tuple[Any, ...]) -> Example:
        hidden = draw.normal(*shape, sizes.hidden, grad=True)
        weight = draw.normal(sizes.vocabulary, sizes.hidden, scale=sizes.hidden**-0.5, grad=True)
        return Example((hidden, weight, draw.ids(*shape), *others))

    return [
        example(sizes.batch * sizes.tokens, others=(1.0, 512)),
        example(sizes.batch, sizes.tokens, others=(0.7, 7)),
    ]


def _triton_heads(draw: Draw) -> list[Example]:
    """Of hidden sizes that verl's kernel has."""
    sizes = draw.sizes
    found = []
    for shape, temperature in (((sizes.batch * sizes.tokens,), 1.0), ((sizes.batch, sizes.tokens), 0.7)):
        hidden = draw.normal(*shape, 128, grad=True)
        weight = draw.normal(sizes.vocabulary, 128, scale=128**-0.5, grad=True)
        found.append(Example((hidden, weight, draw.ids(*shape), temperature, "none", None)))
    return found


_LOGITS = Sizes(batch=4, tokens=128, vocabulary=32000)

ROWS = (
    Replacement(
        name=f"{_MODULE}:logprobs_from_logits",
        signature="(logits, labels, inplace_backward=True)",
        sources=("dffd21fe40eb",),
        stand_in=_logprobs_from_logits,
        examples=_selections,
        call=_without_flash_attention(
            _MODULE, "FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE", lambda function, *args: function(*args)
        ),
        measured=_LOGITS,
    ),
    Replacement(
        name=f"{_MODULE}:entropy_from_logits",
        signature="(logits)",
        sources=("f69d6578eeb3",),
        stand_in=_entropy_from_logits,
        examples=_distributions,
        measured=_LOGITS,
    ),
    Replacement(
        name=f"{_MODULE}:entropy_from_logits_with_chunking",
        signature="(logits, chunk_size=2048)",
        sources=("bde1bbefafdf",),
        stand_in=_entropy_from_logits_with_chunking,
        examples=_chunks,
        measured=_LOGITS,
    ),
    Replacement(
        name=f"{_MODULE}:calculate_sum_pi_squared_from_logits",
        signature="(logits)",
        sources=("3b327751fc2e",),
        stand_in=_calculate_sum_pi_squared_from_logits,
        examples=_samples,
        measured=_LOGITS,
    ),
    Replacement(
        name=f"{_HEAD_MODULE}:FusedLinearForPPOFunction",
        signature="(ctx, hidden_states, vocab_weights, input_ids, temperature=1.0, chunk_size=512)",
        sources=("18956c52edd2",),
        stand_in=lambda own: _Head,
        examples=_heads,
        call=_without_flash_attention(
            _HEAD_MODULE, "_FLASH_ATTN_CROSS_ENTROPY_AVAILABLE", lambda function, *args: function.apply(*args)
        ),
        described="forward",
    ),
    Replacement(
        name="verl.utils.kernel.linear_cross_entropy:linear_cross_entropy",
        signature="(ctx, hidden, weight, labels, temperature=1.0, reduction='none', dist_process_group=None)",
        sources=("1486795b4ec0",),
        stand_in=_linear_cross_entropy,
        examples=_triton_heads,
        device="cuda",
    ),
)
