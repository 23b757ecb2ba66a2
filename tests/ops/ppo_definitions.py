"""PPO's losses spelled out for every setting, in plain PyTorch with autograd; independent of the package.

Each takes the keyword arguments of the public function and computes in the dtype that they have.
"""

import torch

from instructrl.ops.ppo_settings import KLSettings, PolicySettings, PPOSettings, ValueSettings

POLICY, VALUE, KL, PPO = PolicySettings(), ValueSettings(), KLSettings(), PPOSettings()


def _bounded(x, limit):
    return x if limit is None else torch.clamp(x, -limit, limit)


def _scattered(mask, counted):
    return torch.zeros(mask.shape, dtype=counted.dtype).masked_scatter(mask, counted)


def _weighted(losses, mask, weights):
    if weights is None:
        return losses
    return torch.where(weights[mask] > 0, weights[mask] * losses, 0.0)


def _largest(x):
    return x.max() if x.numel() else x.sum()


def divisor(mask, num_tokens):
    return max(int(mask.sum()), 1) if num_tokens is None else num_tokens


def _token_log_ratio(logprobs, old_logprobs, mask):
    new = logprobs[mask]
    return new - (new.detach() if old_logprobs is None else old_logprobs[mask])


def _log_ratio(logprobs, old_logprobs, mask, settings):
    """That of the policy loss: of each counted token, or of its row with the derivative of the token."""
    if settings.ratio == "token" or old_logprobs is None:
        return _token_log_ratio(logprobs, old_logprobs, mask)
    rows = []
    for new, old, counted in zip(logprobs, old_logprobs, mask, strict=True):
        new = new[counted]
        mean = (new - old[counted]).sum() / max(len(new), 1)
        rows.append(new - new.detach() + mean.detach())
    return torch.cat(rows)


def _surrogate(new, ratio, advantages, settings):
    low, high = 1 - settings.clip_low, 1 + settings.clip_high
    bounded = torch.clamp(ratio, low, high)
    nothing = torch.zeros_like(new, dtype=torch.bool)
    if settings.surrogate == "reinforce":
        return -advantages * new, nothing, nothing
    if settings.surrogate == "cispo":
        return -bounded.detach() * advantages * new, bounded != ratio, nothing
    if settings.surrogate == "sapo":
        t = torch.tensor([settings.negative_temperature, settings.positive_temperature], dtype=new.dtype)
        t = t[(advantages > 0).long()]
        return -torch.sigmoid(t * (ratio - 1)) * 4 / t * advantages, nothing, nothing
    unclipped, clipped = -advantages * ratio, -advantages * bounded
    losses, wins = torch.maximum(unclipped, clipped), clipped > unclipped
    if settings.dual_clip is None:
        return losses, wins, nothing
    bound, negative = -advantages * settings.dual_clip, advantages < 0
    return torch.where(negative, torch.minimum(losses, bound), losses), wins, negative & (losses > bound)


def _policy(logprobs, old_logprobs, advantages, mask, settings):
    log_ratio = _bounded(_log_ratio(logprobs, old_logprobs, mask, settings), settings.log_ratio_clamp)
    ratio = log_ratio.exp()
    losses, clipped, dual_clipped = _surrogate(logprobs[mask], ratio, advantages[mask], settings)
    metrics = {
        "num_tokens": torch.tensor(float(ratio.numel())),
        "num_policy_clipped": clipped.sum(),
        "approx_kl_sum": (0.5 * _token_log_ratio(logprobs, old_logprobs, mask) ** 2).sum(),
        "ratio_sum": ratio.sum(),
        "ratio_max": _largest(ratio),
    }
    if settings.dual_clip is not None:
        metrics["num_dual_clipped"] = dual_clipped.sum()
    return losses, metrics


def _value(values, old_values, returns, settings):
    clipped = torch.clamp(values, old_values - settings.cliprange, old_values + settings.cliprange)
    squared, clipped_squared = (values - returns) ** 2, (clipped - returns) ** 2
    metrics = {
        "num_tokens": torch.tensor(float(values.numel())),
        "num_value_clipped": (clipped_squared > squared).sum(),
        "squared_value_error_sum": squared.sum(),
    }
    return 0.5 * torch.maximum(squared, clipped_squared), metrics


def _kl(logprobs, ref_logprobs, old_logprobs, mask, settings, log_ratio_clamp=None):
    whole = logprobs[mask] - ref_logprobs[mask]
    d = _bounded(whole, settings.input_clamp)
    value = {"k1": d, "k2": d**2 / 2, "k3": torch.expm1(-d) + d, "abs": d.abs()}[settings.estimator]
    k2 = whole**2 / 2
    if settings.importance != "none":
        old = None if settings.importance == "score" else old_logprobs
        ratio = _bounded(_token_log_ratio(logprobs, old, mask), log_ratio_clamp).exp()
        ratio = ratio.detach() if settings.importance == "constant" else ratio
        value, k2 = ratio * value, ratio * k2
    value = _bounded(value, settings.output_clamp)
    return value.detach() + k2 - k2.detach() if settings.straight_through else value


def clipped_policy_loss(logprobs, old_logprobs, advantages, mask, weights=None, num_tokens=None, settings=POLICY):
    losses, metrics = _policy(logprobs, old_logprobs, advantages, mask, settings)
    return _weighted(losses, mask, weights).sum() / divisor(mask, num_tokens), metrics


def policy_token_losses(logprobs, old_logprobs, advantages, mask, weights=None, settings=POLICY):
    losses, _ = _policy(logprobs, old_logprobs, advantages, mask, settings)
    return _scattered(mask, _weighted(losses, mask, weights))


def clipped_value_loss(values, old_values, returns, mask, weights=None, num_tokens=None, settings=VALUE):
    losses, metrics = _value(values[mask], old_values[mask], returns[mask], settings)
    return _weighted(losses, mask, weights).sum() / divisor(mask, num_tokens), metrics


def value_token_losses(values, old_values, returns, mask, weights=None, settings=VALUE):
    losses, _ = _value(values[mask], old_values[mask], returns[mask], settings)
    return _scattered(mask, _weighted(losses, mask, weights))


def kl_token_losses(logprobs, ref_logprobs, mask, old_logprobs=None, weights=None, settings=KL):
    losses = _kl(logprobs, ref_logprobs, old_logprobs, mask, settings)
    return _scattered(mask, _weighted(losses, mask, weights))


def ppo_loss(
    logprobs,
    old_logprobs,
    advantages,
    values,
    old_values,
    returns,
    mask,
    ref_logprobs=None,
    weights=None,
    num_tokens=None,
    settings=PPO,
):
    count = divisor(mask, num_tokens)
    losses, metrics = _policy(logprobs, old_logprobs, advantages, mask, settings.policy)
    policy = _weighted(losses, mask, weights).sum()
    nothing = torch.zeros(mask.shape, dtype=policy.dtype)[mask]
    value_losses, value_metrics = _value(nothing, nothing, nothing, settings.value)
    if values is not None:
        value_losses, value_metrics = _value(values[mask], old_values[mask], returns[mask], settings.value)
    value = _weighted(value_losses, mask, weights).sum()
    kl = nothing
    if ref_logprobs is not None:
        clamp = settings.policy.log_ratio_clamp
        kl = _kl(logprobs, ref_logprobs, old_logprobs, mask, settings.kl, clamp)
    loss = policy + settings.vf_coef * value + settings.kl.coef * _weighted(kl, mask, weights).sum()
    metrics = {**metrics, **value_metrics, "ref_kl_sum": kl.sum()}
    return loss / count, policy / count, value / count, metrics
