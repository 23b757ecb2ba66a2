"""What a step tells, by the names that it has in TRL."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from instructrl.integrations.trl.episodes import Episodes
from instructrl.ops.ppo_reference import PPOLoss


def minibatch_statistics(
    part: Episodes, result: PPOLoss, values: Tensor, num_parts: int, kept: bool
) -> dict[str, float]:
    """num_parts: what its losses were divided by. kept: it was learned from."""
    sums = {name: float(value) for name, value in result.metrics.items()}
    count = max(sums["num_tokens"], 1.0)
    counted, returns, old = part.counted, part.returns[part.counted], part.values[part.counted]
    losses = {"policy": result.policy_loss, "value": result.value_loss, "total": result.loss}
    return {
        **{f"loss/{name}": float(loss.detach()) * num_parts * kept for name, loss in losses.items()},
        "policy/approxkl": sums["approx_kl_sum"] / count,
        "policy/clipfrac": sums["num_policy_clipped"] / count,
        "policy/ratio": sums["ratio_sum"] / count,
        "policy/advantages_mean": float(part.advantages[counted].mean()),
        "returns/mean": float(returns.mean()),
        "returns/var": float(returns.var(correction=int(len(returns) > 1))),
        "val/vpred": float(values[counted].mean()),
        "val/error": sums["squared_value_error_sum"] / count,
        "val/clipfrac": sums["num_value_clipped"] / count,
        "val/mean": float(old.mean()),
        "val/var": float(old.var(correction=int(len(old) > 1))),
    }


def step_statistics(
    episodes: Episodes, rewards: Tensor, kl: Tensor, kl_coef: float, updates: Sequence[dict[str, float]], lr: float
) -> dict[str, Any]:
    """rewards: without the scores, [B, T]. updates: of the minibatches."""
    counted = episodes.counted
    means = {f"ppo/{name}": sum(each[name] for each in updates) / len(updates) for name in updates[0]}
    lengths = {
        "queries": episodes.sequences.prompt_mask.sum(dim=1).float(),
        "responses": episodes.sequences.response_mask.sum(dim=1).float(),
    }
    found: dict[str, Any] = {
        "objective/kl": float(kl.sum(dim=1).mean()),
        "objective/kl_dist": kl.sum(dim=1).tolist(),
        "objective/kl_coef": kl_coef,
        "objective/entropy": float(-episodes.logprobs.masked_fill(~counted, 0.0).sum(dim=1).mean()),
        "ppo/mean_non_score_reward": float(rewards[counted].mean()),
        "ppo/mean_scores": float(episodes.scores.mean()),
        "ppo/std_scores": float(episodes.scores.std(correction=int(len(episodes.scores) > 1))),
        "ppo/learning_rate": lr,
        **means,
    }
    for name, each in lengths.items():
        found[f"tokens/{name}_len_mean"] = float(each.mean())
        found[f"tokens/{name}_len_std"] = float(each.std(correction=int(len(each) > 1)))
    variance = found["ppo/returns/var"]
    found["ppo/val/var_explained"] = 1 - found["ppo/val/error"] / variance if variance > 0 else 0.0
    return found
