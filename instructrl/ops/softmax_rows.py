"""Rows of logits in plain PyTorch: what the references of every family that has a softmax over a vocabulary share."""

import math

import torch
from torch import Tensor

from instructrl.ops.logit_settings import LogitSettings


def readable_tokens(tokens: Tensor, mask: Tensor | None, num_classes: int) -> tuple[Tensor, Tensor]:
    """Tokens that can be used as an index (0 where masked or out of range), and where they are in range."""
    if mask is not None:
        tokens = torch.where(mask, tokens, 0)
    in_range = (tokens >= 0) & (tokens < num_classes)
    return torch.where(in_range, tokens, 0), in_range


def hide_invalid(x: Tensor, mask: Tensor | None, in_range: Tensor) -> Tensor:
    """NaN where the token id is out of range, 0 where masked."""
    x = torch.where(in_range, x, float("nan"))
    return x if mask is None else torch.where(mask, x, 0.0)


def shaped_logits(logits: Tensor, temperature: float, settings: LogitSettings, allowed: Tensor | None = None) -> Tensor:
    """What is under the softmax: logits, scaled, capped, over the temperature; -inf where not allowed.

    logits: [..., V] in the accumulation dtype. allowed: broadcastable to them, or None.
    """
    shaped = logits if settings.scale == 1.0 else logits * settings.scale
    if settings.softcap is not None:
        capped = settings.softcap * torch.tanh(shaped / settings.softcap)
        shaped = torch.where(shaped == -math.inf, -math.inf, capped)
    if allowed is not None:
        shaped = torch.where(allowed, shaped, -math.inf)
    return shaped if temperature == 1.0 else shaped / temperature


def by_logits(
    gradient: Tensor, shaped: Tensor, temperature: float, settings: LogitSettings, allowed: Tensor | None = None
) -> Tensor:
    """A gradient by `temperature * shaped_logits(...)` as one by the logits; the first may be overwritten.

    `d z / d logits = scale * (1 - (z / softcap)^2)`, and 0 where z is -inf.
    """
    if settings.scale != 1.0:
        gradient = gradient.mul_(settings.scale)
    if settings.softcap is not None:
        slope = 1.0 - (shaped * (temperature / settings.softcap)).square()
        gradient = gradient.mul_(slope.masked_fill_(shaped == -math.inf, 0.0))
    return gradient if allowed is None else gradient.masked_fill_(~allowed, 0.0)


def rows_forward(logits: Tensor, tokens: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
    """logits: [..., V] in the accumulation dtype, tokens: [...] in range, or [..., K] -> log-probabilities of the
    tokens' shape, entropy: [...].
    """
    log_softmax = torch.log_softmax(logits, dim=-1)
    logprob = log_softmax.gather(-1, _each(tokens, logits)).view(tokens.shape)
    if not with_entropy:
        return logprob, None
    probability = log_softmax.exp()
    # 0 * -inf is 0 here: a token of probability 0 adds nothing, and no NaN comes back through it.
    return logprob, -(probability * torch.where(probability > 0, log_softmax, 0.0)).sum(-1)


def rows_backward(logits: Tensor, tokens: Tensor, grad_logprob: Tensor, grad_entropy: Tensor | None) -> Tensor:
    """Gradient of [n, V] logits; `grad_logprob`: [n], or [n, K] as the tokens are; `grad_entropy`: [n].

    `d logprob / d z[k] = [k is token] - p[k]`, `d entropy / d z[k] = -p[k] * (log p[k] + entropy)`.
    """
    by_token = _each(grad_logprob, logits)
    total = by_token.sum(-1, keepdim=True)
    if grad_entropy is None:
        gradient = torch.softmax(logits, dim=-1).mul_(-total)
    else:
        log_softmax = torch.log_softmax(logits, dim=-1)
        probability = log_softmax.exp()
        log_softmax.masked_fill_(probability == 0, 0.0)
        entropy = -(probability * log_softmax).sum(-1, keepdim=True)
        log_softmax.add_(entropy).mul_(grad_entropy.unsqueeze(-1)).add_(total)
        gradient = probability.mul_(log_softmax).neg_()
    return gradient.scatter_add_(-1, _each(tokens, logits), by_token)


def _each(x: Tensor, logits: Tensor) -> Tensor:
    """[...] of one token a row -> [..., 1]; [..., K] as it is."""
    return x if x.dim() == logits.dim() else x.unsqueeze(-1)
