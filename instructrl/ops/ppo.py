"""PPO's clipped policy and value losses, separate, together, and straight from hidden states."""

from typing import NamedTuple

import torch
from torch import Tensor

from instructrl.ops import checks, dispatch, linear
from instructrl.ops.linear import HeadGradients, LinearHead, attach_gradients
from instructrl.ops.logprobs import hide_invalid, readable_tokens, rows_backward, rows_forward
from instructrl.ops.ppo_terms import (
    POLICY_METRICS,
    PPO_METRICS,
    VALUE_METRICS,
    Objective,
    Settings,
    Tokens,
    denominator,
    joined,
    objective,
    policy_terms,
    selected,
    value_terms,
)


class PolicyLoss(NamedTuple):
    """loss: 0-dim float32 (float64 for float64 inputs). metrics: see `POLICY_METRICS`, without gradient."""

    loss: Tensor
    metrics: dict[str, Tensor]


class ValueLoss(NamedTuple):
    """loss: 0-dim float32 (float64 for float64 inputs). metrics: see `VALUE_METRICS`, without gradient."""

    loss: Tensor
    metrics: dict[str, Tensor]


class PPOLoss(NamedTuple):
    """loss: 0-dim float32 (float64 for float64 inputs), the only one with a gradient.

    policy_loss, value_loss: its parts before `vf_coef`. metrics: see `PPO_METRICS`.
    """

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    metrics: dict[str, Tensor]


def _named(metrics: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: metrics[name].to(torch.float32) for name in names}


def _reference_clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    num_tokens: int | Tensor | None,
    cliprange: float,
) -> PolicyLoss:
    with torch.no_grad():
        new, old, advantage = selected(mask, logprobs, old_logprobs, advantages)
        terms = policy_terms(new, old, advantage, mask, cliprange)
        count = denominator(num_tokens, mask, terms.loss.dtype)
        loss, gradient = terms.loss.sum() / count, terms.derivative / count
    return PolicyLoss(attach_gradients(loss, [(logprobs, gradient)]), _named(terms.metrics, POLICY_METRICS))


def _reference_clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    num_tokens: int | Tensor | None,
    cliprange_value: float,
) -> ValueLoss:
    with torch.no_grad():
        value, old, target = selected(mask, values, old_values, returns)
        terms = value_terms(value, old, target, mask, cliprange_value)
        count = denominator(num_tokens, mask, terms.loss.dtype)
        loss, gradient = terms.loss.sum() / count, terms.derivative / count
    return ValueLoss(attach_gradients(loss, [(values, gradient)]), _named(terms.metrics, VALUE_METRICS))


def _finished(parts: Objective, count: Tensor, gradients: list[tuple[Tensor, Tensor]]) -> PPOLoss:
    loss = attach_gradients(parts.loss_sum / count, gradients)
    return PPOLoss(loss, parts.policy_sum / count, parts.value_sum / count, _named(parts.metrics, PPO_METRICS))


def _reference_ppo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    ref_logprobs: Tensor | None,
    num_tokens: int | Tensor | None,
    settings: Settings,
) -> PPOLoss:
    with torch.no_grad():
        new, old, advantage, value, old_value, target = selected(
            mask, logprobs, old_logprobs, advantages, values, old_values, returns
        )
        ref = None if ref_logprobs is None else selected(mask, ref_logprobs, like=new)[0]
        parts = objective(new, Tokens(old, advantage, value, old_value, target, ref, mask), settings)
        count = denominator(num_tokens, mask, new.dtype)
        gradients = [(logprobs, parts.logprob_derivative / count), (values, parts.value_derivative / count)]
    return _finished(parts, count, gradients)


def _reference_linear_ppo_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    ref_logprobs: Tensor | None,
    num_tokens: int | Tensor | None,
    settings: Settings,
    temperature: float,
    workspace: int,
) -> PPOLoss:
    with torch.no_grad(), linear.full_precision(hidden.device):
        flat_mask = mask.reshape(-1)
        dtype = checks.accumulation_dtype(hidden, weight, old_logprobs, advantages, values, old_values, returns)
        count = denominator(num_tokens, flat_mask, dtype)
        model = torch.empty((), dtype=dtype)
        per_token = (old_logprobs, advantages, values, old_values, returns)
        old, advantage, value, old_value, target = selected(flat_mask, *[x.reshape(-1) for x in per_token], like=model)
        ref = None if ref_logprobs is None else selected(flat_mask, ref_logprobs.reshape(-1), like=model)[0]
        inputs = Tokens(old, advantage, value, old_value, target, ref, flat_mask)
        flat_hidden = hidden.detach().reshape(-1, hidden.shape[-1])
        head = LinearHead(weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype), temperature)
        wanted = (hidden.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad)
        total = HeadGradients(head, flat_hidden, wanted)
        parts = joined(_chunk_objectives(flat_hidden, tokens.reshape(-1), inputs, settings, total, count, workspace))
    gradients = [(values, (parts.value_derivative / count).view(values.shape))]
    for argument, gradient in ((hidden, total.hidden), (weight, total.weight), (bias, total.bias)):
        if argument is not None and gradient is not None:
            gradients.append((argument, gradient.view(argument.shape)))
    return _finished(parts, count, gradients)


def _chunk_objectives(
    hidden: Tensor,
    tokens: Tensor,
    inputs: Tokens,
    settings: Settings,
    total: HeadGradients,
    count: Tensor,
    workspace: int,
) -> list[Objective]:
    """Chunks of logits; the derivative of the objective goes straight into the gradients of hidden and weight."""
    head = total.head
    num_classes, dtype = head.weight.shape[0], head.weight.dtype
    safe, in_range = readable_tokens(tokens, inputs.mask, num_classes)
    parts = []
    for rows in linear.chunks(hidden.shape[0], num_classes, dtype, workspace):
        chunk = inputs.at(rows)
        chunk_hidden = torch.where(chunk.mask.unsqueeze(-1), hidden[rows].to(dtype), 0.0)
        logits = head.logits(chunk_hidden)
        new = hide_invalid(rows_forward(logits, safe[rows], False)[0], chunk.mask, in_range[rows])
        part = objective(new, chunk, settings)
        parts.append(part)
        if total.any_wanted:
            by_logprob = part.logprob_derivative / (count * head.temperature)
            total.add(rows, chunk_hidden, rows_backward(logits, safe[rows], by_logprob, None), logits)
    return parts


CLIPPED_POLICY_LOSS = dispatch.declare("ppo.clipped_policy_loss", _reference_clipped_policy_loss)
CLIPPED_VALUE_LOSS = dispatch.declare("ppo.clipped_value_loss", _reference_clipped_value_loss)
PPO_LOSS = dispatch.declare("ppo.ppo_loss", _reference_ppo_loss)
LINEAR_PPO_LOSS = dispatch.declare("ppo.linear_ppo_loss", _reference_linear_ppo_loss)


def _check_tokens(
    first: str, model: Tensor, mask: Tensor, num_tokens: int | Tensor | None, **others: Tensor
) -> tuple[Tensor, int | Tensor | None]:
    """Returns the mask and the number of tokens as implementations take them."""
    checks.floating(first, model)
    for name, tensor in others.items():
        checks.floating_like(name, tensor, first, model)
    mask = checks.mask_like("mask", mask, first, tuple(model.shape), model.device)
    return mask, checks.num_tokens(num_tokens, model.device)


def _settings(cliprange: float, cliprange_value: float, vf_coef: float, kl_coef: float) -> Settings:
    checks.within("cliprange", cliprange, 0.0, float("inf"))
    checks.within("cliprange_value", cliprange_value, 0.0, float("inf"))
    checks.finite("vf_coef", vf_coef)
    checks.finite("kl_coef", kl_coef)
    return Settings(cliprange, cliprange_value, vf_coef, kl_coef)


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    num_tokens: int | Tensor | None = None,
    cliprange: float = 0.2,
) -> PolicyLoss:
    """PPO's clipped surrogate (Schulman et al. 2017, equation 7), as a loss.

    Sum over counted tokens of `max(-A * r, -A * clip(r, 1 - cliprange, 1 + cliprange))` with
    `r = exp(logprobs - old_logprobs)`, divided by `num_tokens`.

    logprobs: any shape, floating; nats; the only argument with a gradient, at kinks that of `max` and `clamp`.
    old_logprobs, advantages: the same shape, floating; constants. One advantage a sequence, [B] or [B, 1] for [B, T],
        counts for all of its tokens.
    mask: the same shape, bool, or 0 and 1 of any dtype; True where a token counts, elsewhere nothing is read.
    num_tokens: the denominator: a whole number or a 0-dim tensor, such as the count of the whole optimiser batch.
        None: the mask's own count. Where it is 0 the sum is divided by 1.
    cliprange: at least 0.
    Returns: `PolicyLoss`.
    Raises: ValueError for other shapes, dtypes, devices or values.
    """
    advantages = checks.per_token("advantages", advantages, "logprobs", logprobs)
    others = {"old_logprobs": old_logprobs, "advantages": advantages}
    mask, num_tokens = _check_tokens("logprobs", logprobs, mask, num_tokens, **others)
    checks.within("cliprange", cliprange, 0.0, float("inf"))
    return dispatch.run(CLIPPED_POLICY_LOSS, logprobs, old_logprobs, advantages, mask, num_tokens, cliprange)


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    num_tokens: int | Tensor | None = None,
    cliprange_value: float = 0.2,
) -> ValueLoss:
    """Value loss clipped around the old values, as in OpenAI's PPO and its successors.

    Sum over counted tokens of `0.5 * max((v - R)^2, (clip(v, old - c, old + c) - R)^2)` with `c = cliprange_value`,
    divided by `num_tokens`.

    values: any shape, floating; the only argument with a gradient, at kinks that of `max` and `clamp`.
    old_values, returns: the same shape, floating; constants.
    mask, num_tokens: as in `clipped_policy_loss`. cliprange_value: at least 0; infinity clips nothing.
    Returns: `ValueLoss`.
    Raises: ValueError for other shapes, dtypes, devices or values.
    """
    mask, num_tokens = _check_tokens("values", values, mask, num_tokens, old_values=old_values, returns=returns)
    checks.within("cliprange_value", cliprange_value, 0.0, float("inf"))
    return dispatch.run(CLIPPED_VALUE_LOSS, values, old_values, returns, mask, num_tokens, cliprange_value)


def ppo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    num_tokens: int | Tensor | None = None,
    cliprange: float = 0.2,
    cliprange_value: float = 0.2,
    vf_coef: float = 0.1,
    ref_logprobs: Tensor | None = None,
    kl_coef: float = 0.0,
) -> PPOLoss:
    """`clipped_policy_loss + vf_coef * clipped_value_loss`, plus `kl_coef` times the KL to a reference, in one pass.

    The KL term is the k3 estimate `exp(ref - new) - 1 - (ref - new)`, for those who want the penalty in the loss
    rather than in the rewards; it needs `ref_logprobs`. Gradients go to logprobs and values.

    All tensors: one shape, floating, and the bool mask; the rest as in the two losses.
    Returns: `PPOLoss`.
    Raises: ValueError for other shapes, dtypes, devices or values, and for a `kl_coef` without `ref_logprobs`.
    """
    advantages = checks.per_token("advantages", advantages, "logprobs", logprobs)
    others = {"old_logprobs": old_logprobs, "advantages": advantages, "values": values, "old_values": old_values}
    mask, num_tokens = _check_tokens("logprobs", logprobs, mask, num_tokens, **others, returns=returns)
    settings = _settings(cliprange, cliprange_value, vf_coef, kl_coef)
    _check_reference("logprobs", logprobs, ref_logprobs, kl_coef)
    return dispatch.run(
        PPO_LOSS,
        logprobs,
        old_logprobs,
        advantages,
        values,
        old_values,
        returns,
        mask,
        ref_logprobs,
        num_tokens,
        settings,
    )


def _check_reference(model_name: str, model: Tensor, ref_logprobs: Tensor | None, kl_coef: float) -> None:
    if ref_logprobs is not None:
        checks.floating_like("ref_logprobs", ref_logprobs, model_name, model)
    elif kl_coef != 0.0:
        raise ValueError(f"ref_logprobs: found None with kl_coef {kl_coef}, accepted is a tensor, or kl_coef 0")


def linear_ppo_loss(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    max_workspace_bytes: int | None = None,
    num_tokens: int | Tensor | None = None,
    cliprange: float = 0.2,
    cliprange_value: float = 0.2,
    vf_coef: float = 0.1,
    ref_logprobs: Tensor | None = None,
    kl_coef: float = 0.0,
) -> PPOLoss:
    """`ppo_loss` of `linear_token_logprobs(hidden, weight, tokens)`, in token chunks.

    Gradients are made in the forward, so the logits are made once: three matrix products in place of four.

    hidden: [..., D] floating. weight: [V, D] floating. bias: [V] or None. tokens: [...] int64 or int32.
    old_logprobs, advantages, values, old_values, returns, ref_logprobs: [...] floating. mask: [...] bool.
    temperature: as in `logprobs.linear_token_logprobs`. max_workspace_bytes: for the logits of a chunk of tokens;
    None: 128 MiB on the CPU, 1 GiB elsewhere. The other numbers: as in `ppo_loss`.
    Returns: `PPOLoss`.
    Raises: ValueError for other shapes, dtypes, devices or values, and for a `kl_coef` without `ref_logprobs`.
    """
    linear.check_head(hidden, weight, bias)
    tokens, _ = linear.check_tokens("hidden", hidden, tokens, temperature, mask, weight.shape[0])
    advantages = checks.per_token("advantages", advantages, "tokens", tokens)
    others = {"advantages": advantages, "values": values, "old_values": old_values, "returns": returns}
    checks.floating("old_logprobs", old_logprobs)
    checks.like("old_logprobs", old_logprobs, "tokens", tuple(tokens.shape), tokens.device)
    mask, num_tokens = _check_tokens("old_logprobs", old_logprobs, mask, num_tokens, **others)
    settings = _settings(cliprange, cliprange_value, vf_coef, kl_coef)
    _check_reference("old_logprobs", old_logprobs, ref_logprobs, kl_coef)
    workspace = linear.workspace_bytes(max_workspace_bytes, weight, linear.CPU_LOSS_WORKSPACE_BYTES)
    return dispatch.run(
        LINEAR_PPO_LOSS,
        hidden,
        weight,
        bias,
        tokens,
        old_logprobs,
        advantages,
        values,
        old_values,
        returns,
        mask,
        ref_logprobs,
        num_tokens,
        settings,
        temperature,
        workspace,
    )
