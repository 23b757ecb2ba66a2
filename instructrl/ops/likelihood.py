"""Negative log-likelihood straight from hidden states: SFT, pretraining, and the pretraining mix of PPO-ptx."""

import torch
from torch import Tensor

from instructrl.ops import checks, dispatch, linear
from instructrl.ops.linear import HeadGradients, LinearHead, attach_gradients
from instructrl.ops.logit_settings import PLAIN, LogitSettings
from instructrl.ops.logprobs import hide_invalid, readable_tokens, rows_backward, rows_forward
from instructrl.ops.ppo_terms import denominator, selected, weighted


def _reference_linear_nll_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    mask: Tensor,
    weights: Tensor | None,
    num_tokens: int | Tensor | None,
    settings: LogitSettings,
    workspace: int,
) -> Tensor:
    with torch.no_grad(), linear.full_precision(hidden.device):
        flat_mask, dtype = mask.reshape(-1), checks.accumulation_dtype(hidden, weight)
        count = denominator(num_tokens, flat_mask, dtype)
        rows = hidden.detach().reshape(-1, hidden.shape[-1])
        constant = None if bias is None else bias.detach().to(dtype)
        head = LinearHead(weight.detach().to(dtype), constant, 1.0, settings)
        wanted = (hidden.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad)
        total, loss_sum = HeadGradients(head, rows, wanted), torch.zeros((), dtype=dtype, device=hidden.device)
        safe, in_range = readable_tokens(tokens.reshape(-1), flat_mask, weight.shape[0])
        per_row = selected(flat_mask, None if weights is None else weights.reshape(-1), dtype)
        by_logprob = -flat_mask.to(dtype) if per_row is None else -per_row
        for part in linear.chunks(rows.shape[0], weight.shape[0], dtype, workspace):
            chunk = torch.where(flat_mask[part].unsqueeze(-1), rows[part].to(dtype), 0.0)
            logits = head.logits(chunk)
            logprobs = hide_invalid(rows_forward(logits, safe[part], False)[0], flat_mask[part], in_range[part])
            loss_sum = loss_sum + weighted(logprobs, by_logprob[part]).sum()
            if total.any_wanted:
                total.add(part, chunk, rows_backward(logits, safe[part], by_logprob[part], None), logits)
    found = zip((hidden, weight, bias), (total.hidden, total.weight, total.bias), strict=True)
    gradients = [(x, (by / count).view(x.shape)) for x, by in found if x is not None and by is not None]
    return attach_gradients(loss_sum / count, gradients)


LINEAR_NLL_LOSS = dispatch.declare("likelihood.linear_nll_loss", _reference_linear_nll_loss)


def linear_nll_loss(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    weights: Tensor | None = None,
    num_tokens: int | Tensor | None = None,
    logit_settings: LogitSettings = PLAIN,
    max_workspace_bytes: int | None = None,
) -> Tensor:
    """`-sum(weights * linear_token_logprobs(hidden, weight, tokens)) / num_tokens` over counted tokens, in chunks.

    Gradients are computed in the forward pass, so the logits are computed once: three matrix products in place of four.

    hidden: [..., D] floating. weight: [V, D] floating, the language-model head. bias: [V] or None.
    tokens: [...] int64 or int32. mask: [...] bool, or 0 and 1 of any dtype; True where a token counts; masked elements
    are ignored, even NaN. None: tokens of -100 are masked.
    weights: [...] floating, finite and at least 0, constant; None: all 1.
    num_tokens, logit_settings, max_workspace_bytes: as in `ppo.linear_ppo_loss`.
    Returns: 0-dim float32 (float64 for float64 inputs), nats per token, with gradients for hidden, weight and bias.
    Raises: ValueError for other shapes, dtypes, devices or values.
    """
    checks.settings("logit_settings", logit_settings, LogitSettings)
    linear.check_head(hidden, weight, bias)
    tokens, mask = linear.check_tokens("hidden", hidden, tokens, 1.0, mask, weight.shape[0])
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    if weights is not None:
        checks.weights(weights, mask)
    num_tokens = checks.num_tokens(num_tokens, hidden.device)
    workspace = linear.workspace_bytes(max_workspace_bytes, weight, linear.CPU_LOSS_WORKSPACE_BYTES)
    return dispatch.run(
        LINEAR_NLL_LOSS, hidden, weight, bias, tokens, mask, weights, num_tokens, logit_settings, workspace
    )
