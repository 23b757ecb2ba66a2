"""What the row kernels of a backend do not do by themselves: several given ids a row, and rows that are a shard of a
vocabulary.

A kernel makes a row's normalizers, and writes a row's gradient for one token. Everything about further classes is
arithmetic on a few numbers a row, here in float64 and the same for all backends: it is little beside a row of V.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from instructrl.ops.softmax_rows import readable_tokens


class RowKernels(NamedTuple):
    """The private ops of a backend that rows go through; `private_ops.SCHEMAS` has what they take.

    backward_inplace: over the logits, which is what chunks of a linear op want.
    """

    forward: Callable[..., Any]
    backward_inplace: Callable[..., None]
    ppo_loss: Callable[..., Any]
    general_ppo_loss: Callable[..., Any]


class Classes(NamedTuple):
    """Some classes of each row. ids: [..., K] in range. z: [..., K] float64, what is under their softmax, times the
    temperature. slopes: the derivative of z by the logit.
    """

    ids: Tensor
    z: Tensor
    slopes: Tensor


def classes_at(logits: Tensor, ids: Tensor, allowed: Tensor | None, tanh_slope: float) -> Classes:
    """The classes of `ids` as the kernels map them."""
    z = logits.gather(-1, ids).to(torch.float64)
    slopes = torch.ones_like(z)
    if tanh_slope != 0.0:
        excluded = z == -math.inf
        capped = torch.tanh(tanh_slope * z)
        slopes = torch.where(excluded, 0.0, tanh_slope * (1.0 - capped.square()))
        z = torch.where(excluded, z, capped)
    if allowed is not None:
        possible = allowed[ids]
        z, slopes = torch.where(possible, z, -math.inf), torch.where(possible, slopes, 0.0)
    return Classes(ids, z, slopes)


def log_probabilities(z: Tensor, normalizers: Tensor, temperature: float) -> Tensor:
    """z: [..., K]. normalizers: [..., 2]. In float64."""
    largest, log_sum = normalizers.to(torch.float64).unsqueeze(-2).unbind(-1)
    return (z - largest) / temperature - log_sum


def _where_counted(classes: Classes, mask: Tensor | None) -> Classes:
    """Classes without a slope, hence without a gradient, in the rows that do not count."""
    return classes if mask is None else classes._replace(slopes=torch.where(mask.unsqueeze(-1), classes.slopes, 0.0))


class Upstream(NamedTuple):
    """Of the rows: what arrives for each class by itself ([..., K]), for the log-probabilities together, and for the
    entropy, with that entropy (both [...] or None).
    """

    by_class: Tensor
    by_logprobs: Tensor
    entropy: Tensor | None
    by_entropy: Tensor | None


def write_gradients(
    gradient: Tensor, classes: Classes, upstream: Upstream, normalizers: Tensor, temperature: float
) -> None:
    """Write the gradients of some logits into [..., V] that a kernel has written for all.

    `(by_class - p * by_logprobs - p * (log p + H) * by_entropy) / temperature * slope`. Ids may repeat in a row, with
    the same number each time.
    """
    log_p = log_probabilities(classes.z, normalizers, temperature)
    p = log_p.exp()
    total = upstream.by_class - p * upstream.by_logprobs.unsqueeze(-1)
    if upstream.by_entropy is not None and upstream.entropy is not None:
        surprise = torch.where(p > 0, log_p, 0.0) + upstream.entropy.unsqueeze(-1)
        total = total - p * surprise * upstream.by_entropy.unsqueeze(-1)
    total = torch.where(classes.slopes == 0, 0.0, total / temperature * classes.slopes)
    gradient.scatter_(-1, classes.ids, total.to(gradient.dtype))


def _summed_by_id(ids: Tensor, grads: Tensor) -> Tensor:
    """For each of the [..., K] ids what arrives for all ids of the row that are the same. A loop over K, because
    adding up by index has no order on a GPU.
    """
    total = torch.zeros_like(grads)
    for k in range(ids.shape[-1]):
        total = total + torch.where(ids == ids[..., k : k + 1], grads[..., k : k + 1], 0.0)
    return total


def _zero_where_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else torch.where(mask, x, 0.0)


def candidates_forward(
    forward: Callable[..., Any],
    logits: Tensor,
    ids: Tensor,
    mask: Tensor | None,
    allowed: Tensor | None,
    temperature: float,
    tanh_slope: float,
    with_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`token_logprobs` of the private ops for ids [..., K]."""
    each_mask = None if mask is None else mask.unsqueeze(-1)
    ids, in_range = readable_tokens(ids, each_mask, logits.shape[-1])
    first = ids[..., 0].contiguous()
    _, entropy, normalizers = forward(logits, first, mask, allowed, temperature, tanh_slope, with_entropy)
    found = log_probabilities(classes_at(logits, ids, allowed, tanh_slope).z, normalizers, temperature)
    found = _zero_where_masked(torch.where(in_range, found, math.nan), each_mask)
    return found.to(normalizers.dtype), entropy, normalizers


def candidates_backward(
    backward: Callable[..., Tensor | None],
    logits: Tensor,
    ids: Tensor,
    mask: Tensor | None,
    allowed: Tensor | None,
    normalizers: Tensor,
    entropy: Tensor | None,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: float,
    tanh_slope: float,
) -> Tensor:
    """Its backward. backward: either of the private ops; the one that writes over the logits returns None."""
    assert entropy is None, "candidates have no entropy"
    assert grad_logprobs is not None
    each_mask = None if mask is None else mask.unsqueeze(-1)
    ids, in_range = readable_tokens(ids, each_mask, logits.shape[-1])
    grads = _zero_where_masked(torch.where(in_range, grad_logprobs.to(torch.float64), 0.0), each_mask)
    # Before they may be written over.
    classes = _where_counted(classes_at(logits, ids, allowed, tanh_slope), mask)
    together = grads.sum(-1)
    saved = (normalizers, None, together.to(normalizers.dtype), None)
    written = backward(logits, ids[..., 0].contiguous(), mask, allowed, *saved, temperature, tanh_slope)
    gradient = logits if written is None else written
    upstream = Upstream(_summed_by_id(ids, grads), together, None, None)
    write_gradients(gradient, classes, upstream, normalizers, temperature)
    return gradient


def of_candidates(row: RowKernels) -> RowKernels:
    """Row kernels for K given ids a row."""

    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return candidates_forward(row.forward, *args)

    def backward_inplace(*args: Any) -> None:
        candidates_backward(row.backward_inplace, *args)

    return row._replace(forward=forward, backward_inplace=backward_inplace)


def shard_forward(
    forward: Callable[..., Any],
    logits: Tensor,
    tokens: Tensor,
    mask: Tensor | None,
    allowed: Tensor | None,
    temperature: float,
    tanh_slope: float,
    with_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`token_logprobs` of the private ops for a shard: the token's z in place of its log-probability, 0 where another
    shard has it (a token out of range); the entropy and the normalizers are those of the shard alone.
    """
    tokens, is_here = readable_tokens(tokens, mask, logits.shape[-1])
    _, entropy, normalizers = forward(logits, tokens, mask, allowed, temperature, tanh_slope, with_entropy)
    chosen = classes_at(logits, tokens.unsqueeze(-1), allowed, tanh_slope).z.squeeze(-1)
    chosen = _zero_where_masked(torch.where(is_here, chosen, 0.0), mask)
    return chosen.to(normalizers.dtype), entropy, normalizers


def shard_backward(
    backward: Callable[..., Tensor | None],
    logits: Tensor,
    tokens: Tensor,
    mask: Tensor | None,
    allowed: Tensor | None,
    normalizers: Tensor,
    entropy: Tensor | None,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: float,
    tanh_slope: float,
) -> Tensor:
    """The gradient of a shard's logits; normalizers and entropy are those of the whole vocabulary.

    The kernel takes the first class of rows whose token is elsewhere for the token; that class is written anew.
    """
    tokens, is_here = readable_tokens(tokens, mask, logits.shape[-1])
    classes = _where_counted(classes_at(logits, tokens.unsqueeze(-1), allowed, tanh_slope), mask)
    saved = (normalizers, entropy, grad_logprobs, grad_entropy)
    written = backward(logits, tokens, mask, allowed, *saved, temperature, tanh_slope)
    gradient = logits if written is None else written
    by_logprob = torch.zeros_like(normalizers[..., 0]) if grad_logprobs is None else grad_logprobs
    upstream = Upstream(torch.where(is_here, by_logprob, 0.0).unsqueeze(-1), by_logprob, entropy, grad_entropy)
    write_gradients(gradient, classes, upstream, normalizers, temperature)
    return gradient


def of_shards(row: RowKernels) -> RowKernels:
    """Row kernels for a shard of the vocabulary."""

    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return shard_forward(row.forward, *args)

    def backward_inplace(*args: Any) -> None:
        shard_backward(row.backward_inplace, *args)

    return row._replace(forward=forward, backward_inplace=backward_inplace)
