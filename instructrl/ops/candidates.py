"""Log-probabilities of several given ids in each row, such as the top ids of a teacher or the answers of a multiple
choice."""

import torch
from torch import Tensor

from instructrl.ops import checks, dispatch, linear
from instructrl.ops.logit_settings import PLAIN, LogitSettings
from instructrl.ops.logprobs import check_logits, reference_linear
from instructrl.ops.softmax_rows import hide_invalid, readable_tokens, rows_forward, shaped_logits


def _reference_candidate_logprobs(
    logits: Tensor,
    ids: Tensor,
    mask: Tensor | None,
    allowed: Tensor | None,
    temperature: float,
    settings: LogitSettings,
) -> Tensor:
    each_mask = None if mask is None else mask.unsqueeze(-1)
    ids, in_range = readable_tokens(ids, each_mask, logits.shape[-1])
    logits = logits.to(checks.accumulation_dtype(logits))
    if each_mask is not None:
        logits = torch.where(each_mask, logits, 0.0)
    logprobs = rows_forward(shaped_logits(logits, temperature, settings, allowed), ids, False)[0]
    return hide_invalid(logprobs, each_mask, in_range)


def _reference_linear_candidate_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    mask: Tensor | None,
    temperature: float,
    settings: LogitSettings,
    workspace: int,
) -> Tensor:
    return reference_linear(hidden, weight, bias, ids, mask, temperature, settings, workspace, False)[0]


CANDIDATE_LOGPROBS = dispatch.declare("candidates.candidate_logprobs", _reference_candidate_logprobs, composed=True)
LINEAR_CANDIDATE_LOGPROBS = dispatch.declare(
    "candidates.linear_candidate_logprobs", _reference_linear_candidate_logprobs
)


def _check_ids(
    name: str, model: Tensor, ids: Tensor, temperature: float, mask: Tensor | None, num_classes: int
) -> tuple[Tensor, Tensor | None]:
    """ids against a tensor of as many dimensions; returns them as int64, and the mask."""
    checks.is_tensor("ids", ids)
    rows = tuple(model.shape[:-1])
    if ids.dim() != model.dim() or tuple(ids.shape[:-1]) != rows or ids.shape[-1] == 0:
        accepted = f"accepted is {(*rows, 'K')} with K of at least 1, with the rows of {name}".replace("'", "")
        raise ValueError(f"ids: found shape {tuple(ids.shape)}, {accepted}")
    if ids.device != model.device:
        raise ValueError(f"ids: found device {ids.device}, accepted is {model.device}, where {name} is")
    if mask is not None:
        mask = checks.mask_like("mask", mask, "ids without its last dimension", rows, ids.device)
    checks.temperature(temperature)
    each = torch.ones((), dtype=torch.bool, device=ids.device) if mask is None else mask.unsqueeze(-1)
    checks.token_ids(ids, each.expand(ids.shape), num_classes, name="ids")
    return ids.to(torch.int64), mask


def candidate_logprobs(
    logits: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    allowed: Tensor | None = None,
    logit_settings: LogitSettings = PLAIN,
) -> Tensor:
    """Log-probability of each of K ids in a row: `z[ids] / T - logsumexp(z / T)`, in nats, with the logits for z.

    logits: [..., V] floating. ids: [..., K] int64 or int32, from 0 to V - 1 in rows that count; they may repeat.
    mask: [...] bool, or 0 and 1 of any dtype; masked rows are ignored, even NaN, and their results are 0.
    temperature, allowed, logit_settings: as in `logprobs.token_logprobs`.
    Returns: [..., K] float32 (float64 for float64 logits), with a gradient for the logits.
    Raises: ValueError for other shapes, dtypes, devices or values.
    """
    allowed = check_logits(logits, allowed, logit_settings)
    ids, mask = _check_ids("logits", logits, ids, temperature, mask, logits.shape[-1])
    return dispatch.run(CANDIDATE_LOGPROBS, logits, ids, mask, allowed, temperature, logit_settings)


def linear_candidate_logprobs(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    max_workspace_bytes: int | None = None,
    logit_settings: LogitSettings = PLAIN,
) -> Tensor:
    """`candidate_logprobs(hidden @ weight.T + bias, ids)` without the logits in memory.

    hidden, weight, bias, max_workspace_bytes: as in `logprobs.linear_token_logprobs`; the rest as above.
    Returns: [..., K] float32 (float64 for float64 inputs), with gradients for hidden, weight and bias.
    Raises: ValueError for other shapes, dtypes, devices or values.
    """
    linear.check_head(hidden, weight, bias)
    ids, mask = _check_ids("hidden", hidden, ids, temperature, mask, weight.shape[0])
    checks.settings("logit_settings", logit_settings, LogitSettings)
    workspace = linear.workspace_bytes(max_workspace_bytes, weight)
    shape = (temperature, logit_settings)
    return dispatch.run(LINEAR_CANDIDATE_LOGPROBS, hidden, weight, bias, ids, mask, *shape, workspace)
