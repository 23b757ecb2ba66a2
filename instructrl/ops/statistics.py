"""What is often logged of a policy's distributions, in addition to log-probabilities and entropies."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from instructrl.ops import checks, dispatch, linear
from instructrl.ops.linear import LinearHead
from instructrl.ops.logit_settings import PLAIN, LogitSettings
from instructrl.ops.logprobs import check_logits, reference_linear
from instructrl.ops.softmax_rows import hide_invalid, readable_tokens, rows_forward, shaped_logits


class TokenStatistics(NamedTuple):
    """Each [...], one a token; the first two have gradients. All are 0 (False) where the mask is False.

    logprobs, entropy: as of `logprobs.token_logprobs_and_entropy`. is_largest: top-1 agreement, whether no possible id
    has a larger logit than the token. mean_logit: the mean of z, before the temperature, over the ids that are
    possible. sum_of_squares: of the probabilities, which is the probability of drawing the same token twice.
    """

    logprobs: Tensor
    entropy: Tensor
    is_largest: Tensor
    mean_logit: Tensor
    sum_of_squares: Tensor


def _of_rows(
    logits: Tensor, shaped: Tensor, tokens: Tensor, temperature: float, in_range: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The constants among the statistics. logits: [..., V] in the accumulation dtype. shaped: what was made of them."""
    possible = shaped > -math.inf
    chosen = torch.where(possible, logits, -math.inf).gather(-1, tokens.unsqueeze(-1))
    larger = (possible & (logits > chosen)).any(-1) | (chosen.squeeze(-1) == -math.inf)
    mean = torch.where(possible, shaped, 0.0).sum(-1) / possible.sum(-1) * temperature
    squares = torch.softmax(shaped, -1).square().sum(-1)
    is_largest = in_range & ~larger
    is_largest = is_largest if mask is None else is_largest & mask
    return is_largest, hide_invalid(mean, mask, in_range), hide_invalid(squares, mask, in_range)


def _reference_token_statistics(
    logits: Tensor,
    tokens: Tensor,
    mask: Tensor | None,
    allowed: Tensor | None,
    temperature: float,
    settings: LogitSettings,
) -> tuple[Tensor, ...]:
    tokens, in_range = readable_tokens(tokens, mask, logits.shape[-1])
    logits = logits.to(checks.accumulation_dtype(logits))
    if mask is not None:
        logits = torch.where(mask.unsqueeze(-1), logits, 0.0)
    shaped = shaped_logits(logits, temperature, settings, allowed)
    logprobs, entropy = rows_forward(shaped, tokens, True)
    assert entropy is not None
    constants = _of_rows(logits.detach(), shaped.detach(), tokens, temperature, in_range, mask)
    return hide_invalid(logprobs, mask, in_range), hide_invalid(entropy, mask, in_range), *constants


def _reference_linear_token_statistics(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    mask: Tensor | None,
    temperature: float,
    settings: LogitSettings,
    workspace: int,
) -> tuple[Tensor, ...]:
    shape = (temperature, settings, workspace)
    logprobs, entropy = reference_linear(hidden, weight, bias, tokens, mask, *shape, True)
    dtype, flat_tokens = checks.accumulation_dtype(hidden, weight), tokens.reshape(-1)
    flat_mask = None if mask is None else mask.reshape(-1)
    found = []
    with torch.no_grad(), linear.full_precision(hidden.device):
        rows = hidden.detach().reshape(-1, hidden.shape[-1]).to(dtype)
        head = LinearHead(weight.to(dtype), None if bias is None else bias.to(dtype), 1.0)
        for part in linear.chunks(rows.shape[0], weight.shape[0], dtype, workspace):
            part_mask = None if flat_mask is None else flat_mask[part]
            chunk = rows[part] if part_mask is None else torch.where(part_mask.unsqueeze(-1), rows[part], 0.0)
            logits = head.logits(chunk)
            shaped = shaped_logits(logits, temperature, settings)
            safe, in_range = readable_tokens(flat_tokens[part], part_mask, weight.shape[0])
            found.append(_of_rows(logits, shaped, safe, temperature, in_range, part_mask))
    constants = (torch.cat(each).view(tokens.shape) for each in zip(*found, strict=True))
    assert entropy is not None
    return logprobs, entropy, *constants


TOKEN_STATISTICS = dispatch.declare("statistics.token_statistics", _reference_token_statistics)
LINEAR_TOKEN_STATISTICS = dispatch.declare("statistics.linear_token_statistics", _reference_linear_token_statistics)


def token_statistics(
    logits: Tensor,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    allowed: Tensor | None = None,
    logit_settings: LogitSettings = PLAIN,
) -> TokenStatistics:
    """Statistics of `softmax(z / T)` of each row and of its token, for one more reading of the logits.

    Arguments, z and errors are those of `logprobs.token_logprobs`.
    """
    allowed = check_logits(logits, allowed, logit_settings)
    tokens, mask = linear.check_tokens("logits", logits, tokens, temperature, mask, logits.shape[-1])
    shape = (temperature, logit_settings)
    return TokenStatistics(*dispatch.run(TOKEN_STATISTICS, logits, tokens, mask, allowed, *shape))


def linear_token_statistics(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    max_workspace_bytes: int | None = None,
    logit_settings: LogitSettings = PLAIN,
) -> TokenStatistics:
    """`token_statistics(hidden @ weight.T + bias, tokens)` without the logits in memory.

    Arguments and errors are those of `logprobs.linear_token_logprobs`.
    """
    linear.check_head(hidden, weight, bias)
    tokens, mask = linear.check_tokens("hidden", hidden, tokens, temperature, mask, weight.shape[0])
    checks.settings("logit_settings", logit_settings, LogitSettings)
    workspace = linear.workspace_bytes(max_workspace_bytes, weight)
    shape = (temperature, logit_settings, workspace)
    return TokenStatistics(*dispatch.run(LINEAR_TOKEN_STATISTICS, hidden, weight, bias, tokens, mask, *shape))
