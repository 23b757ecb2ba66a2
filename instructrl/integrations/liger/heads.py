"""Liger's language-model heads: log-probabilities from hidden states, and random ones to compare by."""

from typing import Any

from torch import Tensor

from instructrl.integrations.logits import as_computed
from instructrl.integrations.selfcheck import Draw, Example
from instructrl.ops import logprobs


def head_logprobs(
    hidden: Tensor, weight: Tensor, tokens: Tensor, bias: Tensor | None, temperature: float = 1.0, **others: Any
) -> Tensor:
    hidden, weight, bias = as_computed(hidden, weight, bias)
    return logprobs.linear_token_logprobs(hidden, weight, tokens, bias=bias, temperature=temperature, **others)


def chunk_forward_of(own: Any) -> Any:
    def chunk_forward(
        input_chunk: Tensor,
        weight: Tensor,
        selected_token_ids: Tensor,
        bias: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        return head_logprobs(input_chunk, weight, selected_token_ids, bias, temperature)

    return staticmethod(chunk_forward)


def random_head(draw: Draw, rows: int, bias: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Hidden states, the weight, ids, a bias."""
    sizes = draw.sizes
    hidden = draw.normal(rows, sizes.tokens, sizes.hidden, grad=True)
    weight = draw.normal(sizes.vocabulary, sizes.hidden, scale=sizes.hidden**-0.5, grad=True)
    added = draw.normal(sizes.vocabulary, grad=True) if bias else None
    return hidden, weight, draw.ids(rows, sizes.tokens), added


def chunks(draw: Draw) -> list[Example]:
    return [Example(random_head(draw, 2)), Example((*random_head(draw, 1, bias=True), 0.7))]
