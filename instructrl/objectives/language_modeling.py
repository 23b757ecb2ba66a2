"""Negative log-likelihood: of demonstrations (SFT) and of plain text (pretraining, and its mix in PPO-ptx)."""

from torch import Tensor


def negative_log_likelihood(logprobs: Tensor, mask: Tensor, num_tokens: int | Tensor) -> Tensor:
    """`-sum(logprobs over counted tokens) / num_tokens`.

    logprobs: [...] float; nats. mask: [...] bool. num_tokens: the count over the whole optimiser batch, so that
    micro-batches add up to the one big batch. Returns a scalar; 0 where nothing counts.
    """
    total = -logprobs.masked_fill(~mask, 0.0).sum()
    return total / max(num_tokens, 1) if isinstance(num_tokens, int) else total / num_tokens.clamp(min=1)


def pretraining_term(logprobs: Tensor, mask: Tensor, num_tokens: int | Tensor, ptx_coef: float) -> Tensor:
    """The last term of the paper's equation 2, as a loss: `ptx_coef * NLL per token` of a pretraining batch."""
    return ptx_coef * negative_log_likelihood(logprobs, mask, num_tokens)
