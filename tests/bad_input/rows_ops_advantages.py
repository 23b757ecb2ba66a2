"""Arguments of the families that estimate advantages, and their settings; with names of their own."""

import torch
from op_row import NAMES, OpRow

from instructrl.ops import advantage_settings, advantages, groups

NAMES |= {
    "settings": advantage_settings,
    "groups": groups,
    "Ends": advantages.Ends,
    # [B]
    "GROUPS": torch.tensor([0, 1]),
}

ROWS = [
    OpRow(
        what="values of another length",
        call="advantages.generalized_advantages(X, X[:, :2], MASK)",
        message="values: found shape (2, 2), accepted is (2, 3), as rewards has it",
    ),
    OpRow(
        what="discount above 1",
        call="advantages.generalized_advantages(X, X, MASK, gamma=1.5)",
        message="gamma: found 1.5, accepted is a number from 0 to 1",
    ),
    OpRow(
        what="lambda that is NaN",
        call="advantages.generalized_advantages(X, X, MASK, lam=NAN)",
        message="lam: found nan, accepted is a number from 0 to 1",
    ),
    OpRow(
        what="mask of NaN",
        call="advantages.generalized_advantages(X, X, X + NAN)",
        message="mask: found a number other than 0 and 1, accepted are bool (True where an element counts), 0 and 1",
    ),
    OpRow(
        what="discount above 1 in a tensor",
        call="advantages.generalized_advantages(X, X, MASK, gamma=torch.tensor(1.5))",
        message="gamma: found 1.5, accepted is a number from 0 to 1",
    ),
    OpRow(
        what="padded rewards with offsets",
        call="advantages.generalized_advantages(X, X, MASK, cu_seqlens=torch.tensor([0, 3]))",
        message="rewards: found shape (2, 3), accepted is packed [N], because cu_seqlens is given",
    ),
    OpRow(
        what="offsets that end early",
        call="advantages.generalized_advantages(X[0], X[0], MASK[0], cu_seqlens=torch.tensor([0, 2]))",
        message="cu_seqlens: found other offsets, accepted are offsets that rise from 0 to 3, the packed length",
    ),
    OpRow(
        what="offsets that fall",
        call="advantages.generalized_advantages(X[0], X[0], MASK[0], cu_seqlens=torch.tensor([0, 2, 1, 3]))",
        message="cu_seqlens: found other offsets, accepted are offsets that rise from 0 to 3, the packed length",
    ),
    OpRow(
        what="offsets in a list",
        call="advantages.generalized_advantages(X[0], X[0], MASK[0], cu_seqlens=[0, 3])",
        message="cu_seqlens: found list, accepted is a tensor",
    ),
    OpRow(
        what="score for each token",
        call="advantages.ppo_advantages(X, X, X, X, MASK, kl_coef=0.1)",
        message="scores: found shape (2, 3), accepted is (2,), as the number of sequences has it",
    ),
    OpRow(
        what="infinite coefficient",
        call="advantages.ppo_advantages(X, X, X, X[:, 0], MASK, kl_coef=INF)",
        message="kl_coef: found inf, accepted is a finite number",
    ),
    OpRow(
        what="no coefficient",
        call="advantages.ppo_advantages(X, X, X, X[:, 0], MASK, kl_coef=None)",
        message="kl_coef: found None, accepted is a number",
    ),
    OpRow(
        what="reference on another device",
        call="advantages.ppo_advantages(X, META, X, X[:, 0], MASK, kl_coef=0.1)",
        message="ref_logprobs: found device meta, accepted is cpu, where logprobs is",
    ),
    OpRow(
        what="sums of another shape",
        call="advantages.masked_whiten(X, MASK, stats=X[:, 0])",
        message=(
            "stats: found shape (2,), dtype torch.float32, accepted is [3] or [4] floating (sum, sum "
            "of squares, count, ...)"
        ),
    ),
    OpRow(
        what="mask without a batch",
        call="advantages.masked_whiten(X, MASK[0])",
        message="mask: found shape (3,), accepted is (2, 3), as x has it",
    ),
    OpRow(
        what="lambda for each position",
        call="advantages.generalized_advantages(X, X, MASK, lam=X[0])",
        message=(
            "lam: found a tensor of shape (3,), dtype torch.float32, device cpu, accepted is a number from 0 to 1, "
            "a 0-dim tensor of it, or one of shape (2,)"
        ),
    ),
    OpRow(
        what="lambda above 1 for a sequence",
        call="advantages.generalized_advantages(X, X, MASK, lam=torch.tensor([0.5, 1.5]))",
        message="lam: found a number outside, accepted are numbers from 0 to 1",
    ),
    OpRow(
        what="tuple for ends",
        call="advantages.generalized_advantages(X, X, MASK, ends=(MASK, None, None))",
        message="ends: found tuple, accepted is Ends, or None",
    ),
    OpRow(
        what="ends of half a truth",
        call="advantages.generalized_advantages(X, X, MASK, ends=Ends(dones=X + 0.5))",
        message="dones: found a number other than 0 and 1, accepted are bool (True where an element counts), 0 and 1",
    ),
    OpRow(
        what="values behind of another length",
        call="advantages.generalized_advantages(X, X, MASK, ends=Ends(next_values=X[:, :2]))",
        message="next_values: found shape (2, 2), accepted is (2, 3), as values has it",
    ),
    OpRow(
        what="value behind each token twice",
        call="advantages.generalized_advantages(X, X, MASK, ends=Ends(None, X, X[:, 0]))",
        message="bootstrap: found a tensor beside next_values, accepted is one of the two",
    ),
    OpRow(
        what="value behind the last for each token",
        call="advantages.generalized_advantages(X, X, MASK, ends=Ends(bootstrap=X))",
        message="bootstrap: found shape (2, 3), accepted is (2,), as the number of sequences has it",
    ),
    OpRow(
        what="values behind where gaps are steps",
        call=(
            "advantages.generalized_advantages(X, X, MASK, ends=Ends(next_values=X), "
            "settings=settings.GAESettings(gaps='count'))"
        ),
        message="next_values: found a tensor where gaps count, accepted is None there",
    ),
    OpRow(
        what="settings of rewards for those of advantages",
        call="advantages.generalized_advantages(X, X, MASK, settings=settings.RewardSettings())",
        message="settings: found RewardSettings, accepted is GAESettings",
    ),
    OpRow(
        what="gaps of another kind",
        call="settings.GAESettings(gaps='drop')",
        message="gaps: found 'drop', accepted are skip, count",
    ),
    OpRow(
        what="lambda of the returns above 1",
        call="settings.GAESettings(value_lam=1.5)",
        message="value_lam: found 1.5, accepted is a number from 0 to 1",
    ),
    OpRow(
        what="score in the middle",
        call="settings.RewardSettings(score_at='middle')",
        message="score_at: found 'middle', accepted are last, behind",
    ),
    OpRow(
        what="scores clipped to nothing",
        call="settings.RewardSettings(score_clip=0.0)",
        message="score_clip: found 0.0, accepted is a finite number above 0",
    ),
    OpRow(
        what="name for an estimator",
        call="settings.RewardSettings(kl='k3')",
        message="kl: found str, accepted is KLEstimator",
    ),
    OpRow(
        what="ends where the score is behind the last token",
        call=(
            "advantages.ppo_advantages(X, X, X, X[:, 0], MASK, kl_coef=0.1, ends=Ends(MASK), "
            "settings=settings.RewardSettings(score_at='behind'))"
        ),
        message="ends: found Ends where the score is behind the last token, accepted is None there",
    ),
    OpRow(
        what="sums beside groups",
        call="advantages.masked_whiten(X, MASK, stats=X[0], groups=GROUPS, num_groups=2)",
        message="stats: found a tensor beside groups, accepted is one of the two",
    ),
    OpRow(
        what="group that is none",
        call="advantages.masked_whiten(X, MASK, groups=GROUPS, num_groups=1)",
        message="groups: found an id out of range, accepted are ids from 0 to 0",
    ),
    OpRow(
        what="number of groups alone",
        call="advantages.masked_whiten(X, MASK, num_groups=2)",
        message="num_groups: found 2 without groups, accepted is None",
    ),
    OpRow(
        what="degrees of freedom that are none",
        call="settings.WhitenSettings(ddof=2)",
        message="ddof: found 2, accepted are 0 (population), 1 (sample)",
    ),
    OpRow(
        what="epsilon of 0",
        call="settings.WhitenSettings(epsilon=0.0)",
        message="epsilon: found 0.0, accepted is a finite number above 0",
    ),
    OpRow(
        what="epsilon somewhere else",
        call="settings.WhitenSettings(epsilon_at='mean')",
        message="epsilon_at: found 'mean', accepted are variance, clamp, deviation",
    ),
    OpRow(
        what="number for a flag",
        call="settings.WhitenSettings(center=1)",
        message="center: found int, accepted is True or False",
    ),
    OpRow(
        what="groups of another batch",
        call="groups.group_advantages(X[:, 0], TOKENS[0], num_groups=2)",
        message="groups: found shape (3,), accepted is (2,), as scores (first dimension) has it",
    ),
    OpRow(
        what="float for ids of groups",
        call="groups.group_advantages(X[:, 0], X[:, 1], num_groups=2)",
        message="groups: found dtype torch.float32, accepted are int64, int32",
    ),
    OpRow(
        what="id of a group below 0",
        call="groups.group_advantages(X[:, 0], GROUPS - 1, num_groups=2)",
        message="groups: found an id out of range, accepted are ids from 0 to 1",
    ),
    OpRow(
        what="no groups",
        call="groups.group_advantages(X[:, 0], GROUPS, num_groups=0)",
        message="num_groups: found 0, accepted are whole numbers from 1 to below 2**31",
    ),
    OpRow(
        what="half a group",
        call="groups.group_advantages(X[:, 0], GROUPS, num_groups=1.5)",
        message="num_groups: found 1.5 of type float, accepted is a whole number",
    ),
    OpRow(
        what="scores of all tokens",
        call="groups.group_advantages(X, GROUPS, num_groups=2)",
        message="scores: found shape (2, 3), accepted is [B]",
    ),
    OpRow(
        what="baseline of another kind",
        call="settings.GroupSettings(baseline='median')",
        message="baseline: found 'median', accepted are mean, leave_one_out, none",
    ),
    OpRow(
        what="scale of another kind",
        call="settings.GroupSettings(scale='range')",
        message="scale: found 'range', accepted are deviation, none",
    ),
]
