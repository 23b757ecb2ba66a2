"""One process's part of a softmax over a vocabulary that is split over processes; `vocab_parallel` merges the parts.

Numbers are those of the private ops: `z` is the logits, or `tanh(tanh_slope * logits)` where the slope is not 0, and
under the softmax is `z / temperature`. tokens: [...] int64, an id of this shard, or out of its range where another
shard has the token. Arguments are checked by `vocab_parallel`; there are no gradients but what is returned.
"""

import math

import torch
from torch import Tensor

from instructrl.ops import checks, dispatch, linear
from instructrl.ops.linear import HeadGradients, LinearHead
from instructrl.ops.softmax_rows import readable_tokens


def _mapped(logits: Tensor, mask: Tensor | None, tanh_slope: float) -> tuple[Tensor, Tensor]:
    """z and its derivative by the logits; 0 in rows that do not count."""
    logits = logits.to(checks.accumulation_dtype(logits))
    if mask is not None:
        logits = torch.where(mask.unsqueeze(-1), logits, 0.0)
    if tanh_slope == 0.0:
        return logits, torch.ones_like(logits)
    excluded, capped = logits == -math.inf, torch.tanh(tanh_slope * logits)
    slopes = torch.where(excluded, 0.0, tanh_slope * (1.0 - capped.square()))
    return torch.where(excluded, logits, capped), slopes


def _log_probabilities(z: Tensor, normalizers: Tensor, temperature: float) -> Tensor:
    largest, log_sum = normalizers.unsqueeze(-2).unbind(-1)
    return (z - largest) / temperature - log_sum


def _hide(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else torch.where(mask, x, 0.0)


def _reference_shard_rows(
    logits: Tensor, tokens: Tensor, mask: Tensor | None, temperature: float, tanh_slope: float, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    z, _ = _mapped(logits, mask, tanh_slope)
    tokens, is_here = readable_tokens(tokens, mask, z.shape[-1])
    chosen = torch.where(is_here, z.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), 0.0)
    # Of a shard that excludes all of its ids: from -inf nothing can be subtracted.
    largest = z.amax(-1).clamp(min=torch.finfo(z.dtype).min)
    exponentials = ((z - largest.unsqueeze(-1)) / temperature).exp()
    log_sum = exponentials.sum(-1).log()
    normalizers = torch.stack([_hide(largest, mask), _hide(log_sum, mask)], -1)
    entropy = z.new_zeros(0)
    if with_entropy:
        log_p = _log_probabilities(z, normalizers, temperature)
        entropy = -(log_p.exp() * torch.where(log_p > -math.inf, log_p, 0.0)).sum(-1)
        entropy = _hide(entropy, mask)
    return _hide(chosen, mask), entropy, normalizers


def _reference_shard_gradient(
    logits: Tensor,
    tokens: Tensor,
    mask: Tensor | None,
    normalizers: Tensor,
    entropy: Tensor | None,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: float,
    tanh_slope: float,
) -> Tensor:
    z, slopes = _mapped(logits, mask, tanh_slope)
    tokens, is_here = readable_tokens(tokens, mask, z.shape[-1])
    by_logprob = torch.zeros_like(normalizers[..., 0]) if grad_logprobs is None else grad_logprobs
    log_p = _log_probabilities(z, normalizers, temperature)
    p = log_p.exp()
    factor = by_logprob.unsqueeze(-1)
    if entropy is not None and grad_entropy is not None:
        surprise = torch.where(p > 0, log_p, 0.0) + entropy.unsqueeze(-1)
        factor = factor + surprise * grad_entropy.unsqueeze(-1)
    own = torch.where(is_here, by_logprob, 0.0).unsqueeze(-1)
    gradient = (-p * factor).scatter_add_(-1, tokens.unsqueeze(-1), own) / temperature * slopes
    if mask is not None:
        gradient = torch.where(mask.unsqueeze(-1), gradient, 0.0)
    return gradient.to(logits.dtype)


def _reference_linear_shard_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    mask: Tensor | None,
    temperature: float,
    tanh_slope: float,
    workspace: int,
    with_entropy: bool,
) -> tuple[Tensor, ...]:
    head, rows, parts = _head(hidden, weight, bias, workspace)
    found = []
    with linear.full_precision(hidden.device):
        for part in parts:
            flat_mask = None if mask is None else mask.reshape(-1)[part]
            logits = head.logits(_counted(rows[part], flat_mask).to(head.weight.dtype))
            shape = (temperature, tanh_slope, with_entropy)
            found.append(_reference_shard_rows(logits, tokens.reshape(-1)[part], flat_mask, *shape))
    chosen, entropy, normalizers = (torch.cat(each) for each in zip(*found, strict=True))
    entropy = entropy.view(tokens.shape) if with_entropy else entropy
    return chosen.view(tokens.shape), entropy, normalizers.view(*tokens.shape, 2)


def _reference_linear_shard_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    mask: Tensor | None,
    normalizers: Tensor,
    entropy: Tensor | None,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: float,
    tanh_slope: float,
    workspace: int,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, ...]:
    head, rows, parts = _head(hidden, weight, bias, workspace)
    per_row = [None if x is None else x.reshape(-1) for x in (tokens, mask, entropy, grad_logprobs, grad_entropy)]
    with linear.full_precision(hidden.device):
        total = HeadGradients(head, rows, wanted)
        for part in parts:
            chunk_tokens, chunk_mask, *upstream = (None if x is None else x[part] for x in per_row)
            chunk = _counted(rows[part], chunk_mask).to(head.weight.dtype)
            logits = head.logits(chunk)
            saved = (chunk_tokens, chunk_mask, normalizers.reshape(-1, 2)[part], *upstream)
            gradient = _reference_shard_gradient(logits, *saved, temperature, tanh_slope)  # pyright: ignore
            total.add(part, chunk, gradient, logits)
    nothing = hidden.new_empty(0)
    by_hidden = nothing if total.hidden is None else total.hidden.view(hidden.shape)
    return by_hidden, *(nothing if x is None else x for x in (total.weight, total.bias))


def _counted(hidden: Tensor, mask: Tensor | None) -> Tensor:
    return hidden if mask is None else torch.where(mask.unsqueeze(-1), hidden, 0.0)


def _head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, workspace: int
) -> tuple[LinearHead, Tensor, list[slice]]:
    dtype = checks.accumulation_dtype(hidden, weight)
    head = LinearHead(weight.to(dtype), None if bias is None else bias.to(dtype), 1.0)
    rows = hidden.reshape(-1, hidden.shape[-1])
    return head, rows, list(linear.chunks(rows.shape[0], weight.shape[0], dtype, workspace))


SHARD_ROWS = dispatch.declare("vocab_shards.shard_rows", _reference_shard_rows)
SHARD_GRADIENT = dispatch.declare("vocab_shards.shard_gradient", _reference_shard_gradient)
LINEAR_SHARD_ROWS = dispatch.declare("vocab_shards.linear_shard_rows", _reference_linear_shard_rows)
LINEAR_SHARD_GRADIENTS = dispatch.declare("vocab_shards.linear_shard_gradients", _reference_linear_shard_gradients)


@torch.no_grad()
def shard_rows(
    logits: Tensor,
    tokens: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    tanh_slope: float = 0.0,
    with_entropy: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a shard of logits [..., V]: the token's z [...], 0 where it is not here; the entropy [...] of the shard's own
    softmax, [0] where it is not wanted; the normalizers [..., 2], the largest z and the log of the sum of
    `exp((z - largest) / temperature)`.
    """
    return dispatch.run(SHARD_ROWS, logits, tokens, mask, temperature, tanh_slope, with_entropy)


@torch.no_grad()
def shard_gradient(
    logits: Tensor,
    tokens: Tensor,
    normalizers: Tensor,
    *,
    mask: Tensor | None = None,
    entropy: Tensor | None = None,
    grad_logprobs: Tensor | None = None,
    grad_entropy: Tensor | None = None,
    temperature: float = 1.0,
    tanh_slope: float = 0.0,
) -> Tensor:
    """The gradient [..., V] of a shard of logits; normalizers and entropy are those of the whole vocabulary."""
    upstream = (normalizers, entropy, grad_logprobs, grad_entropy)
    return dispatch.run(SHARD_GRADIENT, logits, tokens, mask, *upstream, temperature, tanh_slope)


@torch.no_grad()
def linear_shard_rows(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    workspace: int,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    tanh_slope: float = 0.0,
    with_entropy: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """`shard_rows(hidden @ weight.T + bias)`, with weight [V, D] and bias [V] of this shard."""
    shape = (temperature, tanh_slope, workspace, with_entropy)
    return dispatch.run(LINEAR_SHARD_ROWS, hidden, weight, bias, tokens, mask, *shape)


@torch.no_grad()
def linear_shard_gradients(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    normalizers: Tensor,
    *,
    workspace: int,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    entropy: Tensor | None = None,
    grad_logprobs: Tensor | None = None,
    grad_entropy: Tensor | None = None,
    temperature: float = 1.0,
    tanh_slope: float = 0.0,
    wanted: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, this shard's alone, of weight and of bias; [0] for those that are not wanted."""
    upstream = (normalizers, entropy, grad_logprobs, grad_entropy)
    shape = (temperature, tanh_slope, workspace, wanted)
    return dispatch.run(LINEAR_SHARD_GRADIENTS, hidden, weight, bias, tokens, mask, *upstream, *shape)
