"""PPO's policy and value losses and the KL to a reference: alone, together, for each token, from hidden states.

What they compute is a matter of settings (`ppo_settings`); the defaults are those of Schulman et al. 2017.
"""

import torch
from torch import Tensor

from instructrl.ops import aggregation, checks, dispatch, linear
from instructrl.ops.logit_settings import PLAIN, LogitSettings
from instructrl.ops.logprobs import linear_token_logprobs
from instructrl.ops.ppo_reference import (
    CLIPPED_POLICY_LOSS,
    CLIPPED_VALUE_LOSS,
    KL_TOKEN_LOSSES,
    LINEAR_PPO_LOSS,
    POLICY_TOKEN_LOSSES,
    PPO_LOSS,
    VALUE_TOKEN_LOSSES,
    PolicyLoss,
    PPOLoss,
    ValueLoss,
)
from instructrl.ops.ppo_settings import KLSettings, PolicySettings, PPOSettings, ValueSettings

_POLICY = PolicySettings()
_VALUE = ValueSettings()
_KL = KLSettings()
_PPO = PPOSettings()


_Count = int | Tensor | None


def _check_tokens(
    first: str, model: Tensor, mask: Tensor, weights: Tensor | None, num_tokens: _Count, **others: Tensor | None
) -> tuple[Tensor, _Count]:
    """Shapes, dtypes, devices and values; returns the mask and the number of tokens as implementations take them."""
    checks.floating(first, model)
    for name, tensor in others.items():
        if tensor is not None or name not in ("old_logprobs", "ref_logprobs"):
            checks.floating_like(name, tensor, first, model)  # pyright: ignore[reportArgumentType]
    mask = checks.mask_like("mask", mask, first, tuple(model.shape), model.device)
    if weights is not None:
        checks.weights(weights, mask)
    return mask, checks.num_tokens(num_tokens, model.device)


def _critic(values: Tensor | None, old_values: Tensor | None, returns: Tensor | None) -> dict[str, Tensor | None]:
    """The critic's tensors as they are to be checked: none of them where there is no critic."""
    found = {"values": values, "old_values": old_values, "returns": returns}
    return {} if all(x is None for x in found.values()) else found


def _check_rows(name: str, shape: tuple[int, ...], settings: PolicySettings) -> None:
    if settings.ratio == "sequence" and len(shape) < 2:
        raise ValueError(f"{name}: found shape {shape} with ratio 'sequence', accepted is [B, T], a row a sequence")


def _log_ratios(logprobs: Tensor, old_logprobs: Tensor | None, mask: Tensor, settings: PolicySettings) -> Tensor | None:
    """What stands in for `logprobs - old_logprobs` where ratios are of sequences, the same for all backends."""
    if settings.ratio == "token" or old_logprobs is None:
        return None
    return aggregation.log_ratios(logprobs, old_logprobs, mask)


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    weights: Tensor | None = None,
    num_tokens: int | Tensor | None = None,
    settings: PolicySettings = _POLICY,
) -> PolicyLoss:
    """PPO's clipped surrogate (Schulman et al. 2017, equation 7), or another that `settings` names, as a loss.

    Sum over counted tokens of `weights * max(-A * r, -A * clip(r, 1 - clip_low, 1 + clip_high))` with
    `r = exp(logprobs - old_logprobs)`, divided by `num_tokens`.

    logprobs: any shape, floating; nats; the only argument with a gradient; at kinks it is that of `max` and `clamp`.
    old_logprobs, advantages: the same shape, floating; constants. old_logprobs None: the policy has not changed, so
        that r is 1, with its gradient. One advantage for each sequence, [B] or [B, 1] for [B, T], counts for all of its
        tokens.
    mask: the same shape, bool, or 0 and 1 of any dtype; True where a token counts; masked elements are ignored, even
        NaN.
    weights: the same shape, floating, finite and at least 0; constant. None: all 1. A weight of 0 leaves a token out of
        the loss. `aggregation.token_weights` makes the weights for means other than that over tokens.
    num_tokens: the denominator: a whole number or a 0-dim tensor, such as the count of the whole optimiser batch.
        None: the mask's own count. If it is 0, the sum is divided by 1.
    settings: the conventions.
    Returns: `PolicyLoss`.
    Raises: ValueError for other shapes, dtypes, devices or values.
    """
    checks.settings("settings", settings, PolicySettings)
    advantages = checks.per_token("advantages", advantages, "logprobs", logprobs)
    others = {"old_logprobs": old_logprobs, "advantages": advantages}
    mask, num_tokens = _check_tokens("logprobs", logprobs, mask, weights, num_tokens, **others)
    _check_rows("logprobs", tuple(logprobs.shape), settings)
    log_ratios = _log_ratios(logprobs, old_logprobs, mask, settings)
    return dispatch.run(
        CLIPPED_POLICY_LOSS, logprobs, old_logprobs, advantages, mask, log_ratios, weights, num_tokens, settings
    )


def policy_token_losses(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    weights: Tensor | None = None,
    settings: PolicySettings = _POLICY,
) -> Tensor:
    """The terms of `clipped_policy_loss`, to add up yourself: [...] as logprobs, 0 where the mask is False; float32
    (float64 for float64 inputs), with a gradient for logprobs. Arguments and errors are the same.
    """
    checks.settings("settings", settings, PolicySettings)
    advantages = checks.per_token("advantages", advantages, "logprobs", logprobs)
    others = {"old_logprobs": old_logprobs, "advantages": advantages}
    mask, _ = _check_tokens("logprobs", logprobs, mask, weights, None, **others)
    _check_rows("logprobs", tuple(logprobs.shape), settings)
    log_ratios = _log_ratios(logprobs, old_logprobs, mask, settings)
    return dispatch.run(POLICY_TOKEN_LOSSES, logprobs, old_logprobs, advantages, mask, log_ratios, weights, settings)


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    weights: Tensor | None = None,
    num_tokens: int | Tensor | None = None,
    settings: ValueSettings = _VALUE,
) -> ValueLoss:
    """Value loss clipped around the old values, as in OpenAI's PPO and its successors.

    Sum over counted tokens of `weights * 0.5 * max((v - R)^2, (clip(v, old - c, old + c) - R)^2)` with
    `c = settings.cliprange`, divided by `num_tokens`.

    values: any shape, floating; the only argument with a gradient; at kinks it is that of `max` and `clamp`.
    old_values, returns: the same shape, floating; constants.
    mask, weights, num_tokens: as in `clipped_policy_loss`.
    Returns: `ValueLoss`.
    Raises: ValueError for other shapes, dtypes, devices or values.
    """
    checks.settings("settings", settings, ValueSettings)
    others = {"old_values": old_values, "returns": returns}
    mask, num_tokens = _check_tokens("values", values, mask, weights, num_tokens, **others)
    return dispatch.run(CLIPPED_VALUE_LOSS, values, old_values, returns, mask, weights, num_tokens, settings)


def value_token_losses(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    weights: Tensor | None = None,
    settings: ValueSettings = _VALUE,
) -> Tensor:
    """The terms of `clipped_value_loss`, to add up yourself: [...] as values, 0 where the mask is False; float32
    (float64 for float64 inputs), with a gradient for values. Arguments and errors are the same.
    """
    checks.settings("settings", settings, ValueSettings)
    others = {"old_values": old_values, "returns": returns}
    mask, _ = _check_tokens("values", values, mask, weights, None, **others)
    return dispatch.run(VALUE_TOKEN_LOSSES, values, old_values, returns, mask, weights, settings)


def kl_token_losses(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    *,
    old_logprobs: Tensor | None = None,
    weights: Tensor | None = None,
    settings: KLSettings = _KL,
) -> Tensor:
    """The estimate of the KL to a reference of each token, with a gradient for logprobs, before `settings.coef`.

    logprobs: any shape, floating. ref_logprobs: the same shape; constant. old_logprobs: the same shape; constant, used
    if `settings.importance` needs the ratio; None: the ratio is 1, with its gradient. mask, weights: as in
    `clipped_policy_loss`.
    Returns: [...] as logprobs, 0 where the mask is False; float32 (float64 for float64 inputs).
    Raises: ValueError for other shapes, dtypes, devices or values.
    """
    checks.settings("settings", settings, KLSettings)
    checks.is_tensor("ref_logprobs", ref_logprobs)
    others = {"ref_logprobs": ref_logprobs, "old_logprobs": old_logprobs}
    mask, _ = _check_tokens("logprobs", logprobs, mask, weights, None, **others)
    return dispatch.run(KL_TOKEN_LOSSES, logprobs, ref_logprobs, old_logprobs, mask, weights, settings)


def _check_reference(ref_logprobs: Tensor | None, settings: PPOSettings) -> None:
    if ref_logprobs is None and settings.kl.coef != 0.0:
        found = f"None with a KL coefficient of {settings.kl.coef}"
        raise ValueError(f"ref_logprobs: found {found}, accepted is a tensor, or a coefficient of 0")


def ppo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    values: Tensor | None,
    old_values: Tensor | None,
    returns: Tensor | None,
    mask: Tensor,
    *,
    ref_logprobs: Tensor | None = None,
    weights: Tensor | None = None,
    num_tokens: int | Tensor | None = None,
    settings: PPOSettings = _PPO,
) -> PPOLoss:
    """`clipped_policy_loss + vf_coef * clipped_value_loss`, plus `kl.coef` times the KL to a reference, in one pass.

    The KL term puts the penalty into the loss in place of the rewards; it needs `ref_logprobs`. Gradients go to
    logprobs and values. Without a critic, values, old_values and returns are all None.

    All tensors: one shape, floating, and the bool mask; the rest as in the two losses.
    Returns: `PPOLoss`.
    Raises: ValueError for other shapes, dtypes, devices or values, and for a coefficient without `ref_logprobs`.
    """
    checks.settings("settings", settings, PPOSettings)
    advantages = checks.per_token("advantages", advantages, "logprobs", logprobs)
    others = {"old_logprobs": old_logprobs, "advantages": advantages, **_critic(values, old_values, returns)}
    others["ref_logprobs"] = ref_logprobs
    mask, num_tokens = _check_tokens("logprobs", logprobs, mask, weights, num_tokens, **others)
    _check_reference(ref_logprobs, settings)
    _check_rows("logprobs", tuple(logprobs.shape), settings.policy)
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
        _log_ratios(logprobs, old_logprobs, mask, settings.policy),
        weights,
        num_tokens,
        settings,
    )


def linear_ppo_loss(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    values: Tensor | None,
    old_values: Tensor | None,
    returns: Tensor | None,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    weights: Tensor | None = None,
    num_tokens: int | Tensor | None = None,
    temperature: float = 1.0,
    logit_settings: LogitSettings = PLAIN,
    max_workspace_bytes: int | None = None,
    settings: PPOSettings = _PPO,
) -> PPOLoss:
    """`ppo_loss` of `linear_token_logprobs(hidden, weight, tokens)`, in chunks of tokens.

    Gradients are computed in the forward pass, so the logits are computed once: three matrix products in place of four.
    Sequence ratios are only known after a pass over all tokens, so with them the logits are computed twice.

    hidden: [..., D] floating. weight: [V, D] floating. bias: [V] or None. tokens: [...] int64 or int32.
    old_logprobs, advantages, values, old_values, returns, ref_logprobs, weights: [...] floating, or None as in
    `ppo_loss`. mask: [...] bool.
    temperature, logit_settings: as in `logprobs.linear_token_logprobs`. num_tokens, settings: as in `ppo_loss`.
    max_workspace_bytes: for the logits of a chunk of tokens; None: 128 MiB on the CPU, 1 GiB elsewhere.
    Returns: `PPOLoss`.
    Raises: ValueError for other shapes, dtypes, devices or values, and for a coefficient without `ref_logprobs`.
    """
    checks.settings("settings", settings, PPOSettings)
    checks.settings("logit_settings", logit_settings, LogitSettings)
    linear.check_head(hidden, weight, bias)
    tokens, _ = linear.check_tokens("hidden", hidden, tokens, temperature, mask, weight.shape[0])
    advantages = checks.per_token("advantages", advantages, "tokens", tokens)
    checks.floating("advantages", advantages)
    checks.like("advantages", advantages, "tokens", tuple(tokens.shape), tokens.device)
    per_token = {"old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs, **_critic(values, old_values, returns)}
    mask, num_tokens = _check_tokens("advantages", advantages, mask, weights, num_tokens, **per_token)
    _check_reference(ref_logprobs, settings)
    _check_rows("tokens", tuple(tokens.shape), settings.policy)
    log_ratios = None
    if settings.policy.ratio == "sequence" and old_logprobs is not None:
        with torch.no_grad():
            new = linear_token_logprobs(
                hidden, weight, tokens, bias=bias, temperature=temperature, mask=mask, logit_settings=logit_settings,
                max_workspace_bytes=max_workspace_bytes,
            )  # fmt: skip
        log_ratios = aggregation.log_ratios(new, old_logprobs, mask)
    workspace = linear.workspace_bytes(max_workspace_bytes, weight, linear.CPU_LOSS_WORKSPACE_BYTES)
    inputs = (old_logprobs, advantages, values, old_values, returns, mask, ref_logprobs, log_ratios, weights)
    others = (num_tokens, settings, temperature, logit_settings, workspace)
    return dispatch.run(LINEAR_PPO_LOSS, hidden, weight, bias, tokens, *inputs, *others)
