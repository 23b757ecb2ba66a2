"""The references of PPO's losses, which define them, and what the losses return."""

from typing import NamedTuple

import torch
from torch import Tensor

from instructrl.ops import checks, dispatch, linear
from instructrl.ops.autograd import attach_derivative
from instructrl.ops.linear import HeadGradients, LinearHead, attach_gradients
from instructrl.ops.logit_settings import LogitSettings
from instructrl.ops.logprobs import hide_invalid, readable_tokens, rows_backward, rows_forward
from instructrl.ops.ppo_settings import KLSettings, PolicySettings, PPOSettings, ValueSettings
from instructrl.ops.ppo_terms import (
    DUAL_CLIP_METRIC,
    POLICY_METRICS,
    PPO_METRICS,
    VALUE_METRICS,
    Objective,
    Terms,
    Tokens,
    denominator,
    joined,
    kl_terms,
    objective,
    policy_terms,
    selected,
    value_terms,
    weighted_terms,
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

    policy_loss, value_loss: its parts before `vf_coef`; the second is 0 without a critic. metrics: see `PPO_METRICS`.
    """

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    metrics: dict[str, Tensor]


def metric_names(names: tuple[str, ...], settings: PolicySettings) -> tuple[str, ...]:
    """The names of a loss's metrics: one more where a dual clip is set."""
    return names if settings.dual_clip is None else (*names, DUAL_CLIP_METRIC)


def _named(metrics: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: metrics[name].to(torch.float32) for name in names}


def _selected(mask: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    found = selected(mask, x, dtype)
    assert found is not None
    return found


def _tokens(mask: Tensor, dtype: torch.dtype, **inputs: Tensor | None) -> Tokens:
    return Tokens(mask, **{name: selected(mask, x, dtype) for name, x in inputs.items()})


def _policy(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    log_ratios: Tensor | None,
    weights: Tensor | None,
    settings: PolicySettings,
) -> Terms:
    dtype = checks.accumulation_dtype(*(x for x in (logprobs, old_logprobs, advantages) if x is not None))
    constants = {"old_logprobs": old_logprobs, "log_ratios": log_ratios, "advantages": advantages, "weights": weights}
    new, tokens = _selected(mask, logprobs, dtype), _tokens(mask, dtype, **constants)
    return weighted_terms(policy_terms(new, tokens, settings), tokens.weights)


def _value(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, weights: Tensor | None, settings: ValueSettings
) -> Terms:
    dtype = checks.accumulation_dtype(values, old_values, returns)
    tokens = _tokens(mask, dtype, values=values, old_values=old_values, returns=returns, weights=weights)
    return weighted_terms(value_terms(tokens, settings), tokens.weights)


def _mean(terms: Terms, x: Tensor, mask: Tensor, num_tokens: int | Tensor | None) -> Tensor:
    """The loss of all terms, with their derivatives by x."""
    count = denominator(num_tokens, mask, terms.loss.dtype)
    return attach_gradients(terms.loss.sum() / count, [(x, terms.derivative / count)])


def _reference_clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    log_ratios: Tensor | None,
    weights: Tensor | None,
    num_tokens: int | Tensor | None,
    settings: PolicySettings,
) -> PolicyLoss:
    with torch.no_grad():
        terms = _policy(logprobs, old_logprobs, advantages, mask, log_ratios, weights, settings)
    metrics = _named(terms.metrics, metric_names(POLICY_METRICS, settings))
    return PolicyLoss(_mean(terms, logprobs, mask, num_tokens), metrics)


def _reference_policy_token_losses(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    log_ratios: Tensor | None,
    weights: Tensor | None,
    settings: PolicySettings,
) -> Tensor:
    with torch.no_grad():
        terms = _policy(logprobs, old_logprobs, advantages, mask, log_ratios, weights, settings)
    return attach_derivative(logprobs, terms.loss, terms.derivative)


def _reference_clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    weights: Tensor | None,
    num_tokens: int | Tensor | None,
    settings: ValueSettings,
) -> ValueLoss:
    with torch.no_grad():
        terms = _value(values, old_values, returns, mask, weights, settings)
    return ValueLoss(_mean(terms, values, mask, num_tokens), _named(terms.metrics, VALUE_METRICS))


def _reference_value_token_losses(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, weights: Tensor | None, settings: ValueSettings
) -> Tensor:
    with torch.no_grad():
        terms = _value(values, old_values, returns, mask, weights, settings)
    return attach_derivative(values, terms.loss, terms.derivative)


def _reference_kl_token_losses(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    old_logprobs: Tensor | None,
    mask: Tensor,
    weights: Tensor | None,
    settings: KLSettings,
) -> Tensor:
    with torch.no_grad():
        dtype = checks.accumulation_dtype(*(x for x in (logprobs, old_logprobs) if x is not None))
        constants = {"ref_logprobs": ref_logprobs, "old_logprobs": old_logprobs, "weights": weights}
        tokens = _tokens(mask, dtype, **constants)
        terms = kl_terms(_selected(mask, logprobs, dtype), tokens, settings, None)
        terms = weighted_terms(terms, tokens.weights)
    return attach_derivative(logprobs, terms.loss, terms.derivative)


def _finished(
    parts: Objective, count: Tensor, gradients: list[tuple[Tensor, Tensor]], settings: PolicySettings
) -> PPOLoss:
    loss = attach_gradients(parts.losses.sum() / count, gradients)
    metrics = _named(parts.metrics, metric_names(PPO_METRICS, settings))
    return PPOLoss(loss, parts.policy_sum / count, parts.value_sum / count, metrics)


def _reference_ppo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    values: Tensor | None,
    old_values: Tensor | None,
    returns: Tensor | None,
    mask: Tensor,
    ref_logprobs: Tensor | None,
    log_ratios: Tensor | None,
    weights: Tensor | None,
    num_tokens: int | Tensor | None,
    settings: PPOSettings,
) -> PPOLoss:
    with torch.no_grad():
        model = (logprobs, old_logprobs, advantages, values, old_values, returns)
        dtype = checks.accumulation_dtype(*(x for x in model if x is not None))
        names = ("old_logprobs", "advantages", "values", "old_values", "returns")
        constants = dict(zip(names, model[1:], strict=True))
        constants |= {"ref_logprobs": ref_logprobs, "log_ratios": log_ratios, "weights": weights}
        parts = objective(_selected(mask, logprobs, dtype), _tokens(mask, dtype, **constants), settings)
        count = denominator(num_tokens, mask, dtype)
        gradients = [(logprobs, parts.logprob_derivative / count)]
        if values is not None:
            gradients.append((values, parts.value_derivative / count))
    return _finished(parts, count, gradients, settings.policy)


def _reference_linear_ppo_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    values: Tensor | None,
    old_values: Tensor | None,
    returns: Tensor | None,
    mask: Tensor,
    ref_logprobs: Tensor | None,
    log_ratios: Tensor | None,
    weights: Tensor | None,
    num_tokens: int | Tensor | None,
    settings: PPOSettings,
    temperature: float,
    logit_settings: LogitSettings,
    workspace: int,
) -> PPOLoss:
    with torch.no_grad(), linear.full_precision(hidden.device):
        flat_mask = mask.reshape(-1)
        model = (hidden, weight, old_logprobs, advantages, values, old_values, returns)
        dtype = checks.accumulation_dtype(*(x for x in model if x is not None))
        count = denominator(num_tokens, flat_mask, dtype)
        names = ("old_logprobs", "advantages", "values", "old_values", "returns")
        constants = dict(zip(names, model[2:], strict=True))
        constants |= {"ref_logprobs": ref_logprobs, "log_ratios": log_ratios, "weights": weights}
        flat = {name: None if x is None else x.reshape(-1) for name, x in constants.items()}
        flat_hidden = hidden.detach().reshape(-1, hidden.shape[-1])
        constant = None if bias is None else bias.detach().to(dtype)
        head = LinearHead(weight.detach().to(dtype), constant, temperature, logit_settings)
        wanted = (hidden.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad)
        total = HeadGradients(head, flat_hidden, wanted)
        inputs = _tokens(flat_mask, dtype, **flat)
        parts = joined(_chunk_objectives(flat_hidden, tokens.reshape(-1), inputs, settings, total, count, workspace))
    gradients = [] if values is None else [(values, (parts.value_derivative / count).view(values.shape))]
    for argument, gradient in ((hidden, total.hidden), (weight, total.weight), (bias, total.bias)):
        if argument is not None and gradient is not None:
            gradients.append((argument, gradient.view(argument.shape)))
    return _finished(parts, count, gradients, settings.policy)


def _chunk_objectives(
    hidden: Tensor,
    tokens: Tensor,
    inputs: Tokens,
    settings: PPOSettings,
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
POLICY_TOKEN_LOSSES = dispatch.declare("ppo.policy_token_losses", _reference_policy_token_losses)
CLIPPED_VALUE_LOSS = dispatch.declare("ppo.clipped_value_loss", _reference_clipped_value_loss)
VALUE_TOKEN_LOSSES = dispatch.declare("ppo.value_token_losses", _reference_value_token_losses)
KL_TOKEN_LOSSES = dispatch.declare("ppo.kl_token_losses", _reference_kl_token_losses)
PPO_LOSS = dispatch.declare("ppo.ppo_loss", _reference_ppo_loss)
LINEAR_PPO_LOSS = dispatch.declare("ppo.linear_ppo_loss", _reference_linear_ppo_loss)
