"""Between numbers of tokens and numbers of sequences: the means in which losses differ, and ratios of sequences.

Sequences are rows, [..., T], or packed, [N] with `cu_seqlens`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from instructrl.ops import checks


class TokenWeights(NamedTuple):
    """What makes another mean of a loss: `weights` in the shape of the mask, float32, or None if all are 1, and
    `num_tokens`."""

    weights: Tensor | None
    num_tokens: int | Tensor


class _Sequences(NamedTuple):
    mask: Tensor
    cu_seqlens: Tensor | None

    def sums(self, x: Tensor) -> Tensor:
        """[...] of tokens -> [..., 1] of rows, or [B] of packed sequences; in float64, so that no digit is lost."""
        x = torch.where(self.mask, x.to(torch.float64), 0.0)
        if self.cu_seqlens is None:
            return x.sum(-1, keepdim=True)
        return torch.segment_reduce(x, "sum", offsets=self.cu_seqlens.to(torch.int64), initial=0)

    def at_tokens(self, x: Tensor) -> Tensor:
        """The other way: each sequence's number at each of its tokens."""
        if self.cu_seqlens is None:
            return x.expand(self.mask.shape)
        lengths = self.cu_seqlens[1:] - self.cu_seqlens[:-1]
        return torch.repeat_interleave(x, lengths, output_size=self.mask.shape[0])


def _lengths(sequences: _Sequences) -> Tensor:
    return sequences.sums(torch.ones_like(sequences.mask, dtype=torch.float64))


def _token_mean(sequences: _Sequences, num_sequences: int | Tensor, length: int) -> TokenWeights:
    return TokenWeights(None, sequences.mask.sum())


def _sequence_mean_of_token_means(sequences: _Sequences, num_sequences: int | Tensor, length: int) -> TokenWeights:
    share = (1.0 / _lengths(sequences).clamp(min=1.0)).to(torch.float32)
    return TokenWeights(torch.where(sequences.mask, sequences.at_tokens(share), 0.0), num_sequences)


def _sequence_mean_of_token_sums(sequences: _Sequences, num_sequences: int | Tensor, length: int) -> TokenWeights:
    return TokenWeights(None, num_sequences)


def _constant(sequences: _Sequences, num_sequences: int | Tensor, length: int) -> TokenWeights:
    return TokenWeights(None, num_sequences * length)


AGGREGATIONS: dict[str, Callable[[_Sequences, int | Tensor, int], TokenWeights]] = {
    "token_mean": _token_mean,
    "sequence_mean_of_token_means": _sequence_mean_of_token_means,
    "sequence_mean_of_token_sums": _sequence_mean_of_token_sums,
    "constant": _constant,
}
"""Means over the counted tokens of a batch. token_mean: over all of them, each weighs the same.
sequence_mean_of_token_means: over sequences, of the mean over each one's tokens (GRPO, arXiv 2402.03300).
sequence_mean_of_token_sums: over sequences, of the sum over each one's tokens. constant: the same, divided by `length`
whatever the lengths are (Dr. GRPO, arXiv 2503.20783)."""


def _checked(name: str, mask: Tensor, cu_seqlens: Tensor | None) -> None:
    if cu_seqlens is not None:
        checks.dims(name, mask, 1, "[N] with cu_seqlens")
        checks.sequence_offsets(cu_seqlens, mask.shape[0], mask.device)
    elif mask.dim() == 0:
        raise ValueError(f"{name}: found shape (), accepted is [..., T], or [N] with cu_seqlens")


def token_weights(
    mask: Tensor,
    aggregation: str,
    *,
    num_sequences: int | Tensor | None = None,
    length: int | None = None,
    cu_seqlens: Tensor | None = None,
) -> TokenWeights:
    """The weights and the denominator with which a loss is the mean that `aggregation` names.

    `ppo.ppo_loss(..., mask, **token_weights(mask, "sequence_mean_of_token_means")._asdict())`. Multiply other token
    weights with these, such as importance weights `exp(logprobs - rollout_logprobs).clamp(max=2)`.

    mask: [..., T], a sequence a row, or packed [N]; bool, or 0 and 1 of any dtype.
    aggregation: one of `AGGREGATIONS`.
    num_sequences: a whole number or a 0-dim tensor, such as that of the whole optimiser batch; None: the number of
        sequences with an unmasked token.
    length: for "constant": a whole number such as the limit of a response; None: T.
    cu_seqlens: [B + 1] int32 or int64, offsets of packed sequences; "constant" then needs a length.
    Raises: ValueError for other shapes, devices or values, TypeError for other types.
    """
    checks.is_tensor("mask", mask)
    mask = checks.mask_like("mask", mask, "mask", tuple(mask.shape), mask.device)
    checks.one_of("aggregation", aggregation, tuple(AGGREGATIONS))
    _checked("mask", mask, cu_seqlens)
    sequences = _Sequences(mask, cu_seqlens)
    number = checks.num_sequences(num_sequences, mask.device)
    if number is None:
        number = (_lengths(sequences) > 0).sum()
    if length is None and aggregation == "constant" and cu_seqlens is not None:
        raise ValueError("length: found None with cu_seqlens, accepted is a whole number")
    of_each = mask.shape[-1] if length is None else checks.count("length", length)
    return AGGREGATIONS[aggregation](sequences, number, of_each)


def sequence_log_ratios(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, *, cu_seqlens: Tensor | None = None
) -> Tensor:
    """The mean of `logprobs - old_logprobs` over the counted tokens of each sequence, at each of its tokens.

    The log of GSPO's ratio of sequences. Losses with the setting ratio="sequence" make it themselves where sequences
    are rows. Of packed ones it is made here and given to a loss with ratio="token" in the form
    `old_logprobs = logprobs.detach() - sequence_log_ratios(...)`, which gives the same ratios and gradients.

    logprobs, old_logprobs: [..., T] floating, a sequence a row, or packed [N]. mask: the same shape, bool, or 0 and 1.
    cu_seqlens: [B + 1] int32 or int64, offsets of packed sequences.
    Returns: as logprobs, float32 (float64 for float64 inputs), no gradient; 0 where no token of the sequence counts.
    Raises: ValueError for other shapes, dtypes, devices or values.
    """
    checks.floating("logprobs", logprobs)
    checks.floating_like("old_logprobs", old_logprobs, "logprobs", logprobs)
    mask = checks.mask_like("mask", mask, "logprobs", tuple(logprobs.shape), logprobs.device)
    _checked("logprobs", logprobs, cu_seqlens)
    return log_ratios(logprobs, old_logprobs, mask, cu_seqlens)


@torch.no_grad()
def log_ratios(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """`sequence_log_ratios` of arguments that are checked."""
    dtype, sequences = checks.accumulation_dtype(logprobs, old_logprobs), _Sequences(mask, cu_seqlens)
    means = sequences.sums(logprobs.to(dtype) - old_logprobs.to(dtype)) / _lengths(sequences).clamp(min=1.0)
    return sequences.at_tokens(means.to(dtype))
