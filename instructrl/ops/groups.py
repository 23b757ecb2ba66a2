"""Advantages of whole responses within the group of responses to one prompt.

Nothing here carries a gradient: advantages are targets.
"""

import torch
from torch import Tensor

from instructrl.ops import checks, dispatch
from instructrl.ops.advantage_settings import GroupSettings
from instructrl.ops.precision import widest


def in_range(groups: Tensor, num_groups: int) -> Tensor:
    return (groups >= 0) & (groups < num_groups)


def group_sums(x: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """[G] sums of [B] numbers by group, in an order of their own: scattering on a GPU would add in any."""
    members = groups == torch.arange(num_groups, device=groups.device).unsqueeze(1)
    return torch.where(members, x, 0.0).sum(1)


@torch.no_grad()
def _reference_group_advantages(scores: Tensor, groups: Tensor, num_groups: int, settings: GroupSettings) -> Tensor:
    if scores.shape[0] == 0:
        return scores.to(checks.accumulation_dtype(scores))
    x = scores.to(widest(scores.device))
    own = groups.clamp(min=0, max=max(num_groups - 1, 0))
    count = group_sums(torch.ones_like(x), groups, num_groups)[own]
    centred = x - (group_sums(x, groups, num_groups)[own] / count)
    found = x
    if settings.baseline == "mean":
        found = centred
    elif settings.baseline == "leave_one_out":
        # The mean of the others is n / (n - 1) times as far from a score as the mean of all.
        found = torch.where(count > 1, centred * (count / (count - 1).clamp(min=1)), 0.0)
    if settings.scale == "deviation":
        divisor = count - settings.ddof
        squares = group_sums(centred.square(), groups, num_groups)[own]
        variance = torch.where(divisor > 0, squares / divisor.clamp(min=1), 0.0)
        found = found / (variance.sqrt() + settings.epsilon)
    return torch.where(in_range(groups, num_groups), found, torch.nan).to(checks.accumulation_dtype(scores))


GROUP_ADVANTAGES = dispatch.declare("groups.group_advantages", _reference_group_advantages)


def group_advantages(
    scores: Tensor, groups: Tensor, *, num_groups: int, settings: GroupSettings = GroupSettings()
) -> Tensor:
    """The advantage of each response over its group: `(scores - baseline) / (std + epsilon)`, as `settings` says.

    The mean and the standard deviation are those of the group's scores; the mean of the others of a group of n is
    `scores - n / (n - 1) * (scores - mean)`. With a baseline, a group of one has advantage 0: there is nothing to
    compare with. The variance is 0 when a group has no more than `ddof` scores.

    scores: [B] floating, one a response. groups: [B] int64 or int32, from 0 to below num_groups, in any order; groups
        may have any size. On a GPU ids are not checked, and one out of range gives NaN in its place.
    Returns: [B], float32 (float64 for float64), without gradient.
    Raises: ValueError or TypeError for other shapes, dtypes, devices or values.
    """
    checks.floating("scores", scores)
    checks.dims("scores", scores, 1, "[B]")
    checks.settings("settings", settings, GroupSettings)
    num_groups = checks.group_ids(groups, num_groups, scores.shape[0], scores.device, "scores")
    return dispatch.run(GROUP_ADVANTAGES, scores, groups, num_groups, settings)
