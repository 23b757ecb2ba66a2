"""How other trainers compute PPO, as the settings of the operations here.

    from instructrl.ops.presets import PRESETS

    verl = PRESETS["verl"]
    loss = ppo.ppo_loss(..., settings=verl.losses)

Values are the defaults of each project in 2026, read in its sources; a project's users set others. What a project does
that no setting says is in `beyond`. `docs/conventions.md` has them side by side.
"""

from dataclasses import dataclass

from instructrl.ops.advantage_settings import GAESettings, GroupSettings, RewardSettings, WhitenSettings
from instructrl.ops.ppo_settings import KLEstimator, KLSettings, PolicySettings, PPOSettings, ValueSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """The conventions of one trainer.

    losses: for `ppo.ppo_loss`, `ppo.linear_ppo_loss` and, by its parts, the policy and the value loss alone; `vf_coef`
        is 1 where the critic has an optimiser of its own.
    aggregation: for `aggregation.token_weights`.
    rewards, kl_coef, gamma, lam: for `advantages.ppo_advantages`; a kl_coef of 0 is a KL that is not in the rewards.
    whitening: for `advantages.masked_whiten`, None where there is none; whitens: whether it is on by default.
    groups: for `groups.group_advantages`, where the trainer has advantages without a critic.
    beyond: what the settings here do not say.
    """

    losses: PPOSettings
    aggregation: str = "token_mean"
    rewards: RewardSettings = RewardSettings()
    kl_coef: float
    gamma: float = 1.0
    lam: float
    whitening: WhitenSettings | None = WhitenSettings()
    whitens: bool = True
    groups: GroupSettings | None = None
    beyond: tuple[str, ...] = ()


def _losses(clip_high: float = 0.2, *, cliprange_value: float, vf_coef: float = 1.0, **policy: float) -> PPOSettings:
    return PPOSettings(
        policy=PolicySettings(clip_low=0.2, clip_high=clip_high, **policy),  # pyright: ignore[reportArgumentType]
        value=ValueSettings(cliprange=cliprange_value),
        vf_coef=vf_coef,
    )


PRESETS: dict[str, Preset] = {
    "instructgpt": Preset(losses=PPOSettings(), kl_coef=0.02, lam=0.95),
    "trl": Preset(
        losses=_losses(cliprange_value=0.2, vf_coef=0.1),
        rewards=RewardSettings(score_at="behind"),
        kl_coef=0.05,
        lam=0.95,
        groups=GroupSettings(epsilon=1e-4),
        beyond=(
            "PPO as up to TRL 1.12, group advantages as in its GRPO",
            "the value loss also counts the position after the last token",
            "each process whitens by itself",
        ),
    ),
    "openrlhf": Preset(
        losses=_losses(cliprange_value=0.5, log_ratio_clamp=20.0),
        rewards=RewardSettings(kl=KLEstimator(output_clamp=10.0), score_clip=10.0, gae=GAESettings(gaps="count")),
        kl_coef=0.01,
        lam=1.0,
        whitening=WhitenSettings(ddof=0, epsilon_at="clamp"),
        groups=GroupSettings(epsilon=1e-9),
        beyond=("masked positions keep a whitened value",),
    ),
    "verl": Preset(
        losses=PPOSettings(
            policy=PolicySettings(dual_clip=3.0, log_ratio_clamp=20.0),
            value=ValueSettings(cliprange=0.5),
            vf_coef=1.0,
            kl=KLSettings(input_clamp=20.0, output_clamp=10.0),
        ),
        kl_coef=0.0,
        lam=1.0,
        groups=GroupSettings(epsilon=1e-6),
        beyond=(
            "no KL by default; if switched on 0.001, as k1 in the rewards or as k3 in the loss",
            "masked positions keep a whitened value",
            "a group of one keeps its score",
        ),
    ),
    "nemo_rl": Preset(
        losses=PPOSettings(
            policy=PolicySettings(clip_high=0.28, dual_clip=10.0),
            value=ValueSettings(cliprange=0.2),
            vf_coef=0.4,
            kl=KLSettings(input_clamp=20.0, output_clamp=10.0, importance="score"),
        ),
        rewards=RewardSettings(kl=KLEstimator(estimator="k3", input_clamp=20.0, output_clamp=10.0)),
        kl_coef=0.0,
        lam=0.95,
        groups=GroupSettings(baseline="leave_one_out", epsilon=1e-6),
        beyond=(
            "the configuration of its PPO; used by itself, its loss clips the ratio at 0.2, and values not at all",
            "the deviation of a group is that of the other responses",
        ),
    ),
    "torchtune": Preset(
        losses=_losses(cliprange_value=0.2, vf_coef=0.1),
        rewards=RewardSettings(score_at="behind"),
        kl_coef=0.01,
        lam=0.95,
        whitening=WhitenSettings(center=False),
        beyond=(
            "the configurations of its recipes; used by itself, its loss clips the ratio at 0.1",
            "the value loss also counts the position after the last token",
        ),
    ),
    "liger": Preset(
        losses=PPOSettings(vf_coef=0.0, kl=KLSettings(coef=0.04)),
        kl_coef=0.0,
        lam=1.0,
        whitening=None,
        whitens=False,
        beyond=("GRPO on a linear head: advantages are given, there is no critic",),
    ),
    "areal": Preset(
        losses=_losses(cliprange_value=0.5),
        rewards=RewardSettings(kl=KLEstimator(output_clamp=10.0), score_clip=20.0),
        kl_coef=0.1,
        lam=1.0,
        whitening=WhitenSettings(epsilon=1e-5, epsilon_at="deviation"),
        whitens=False,
        groups=GroupSettings(epsilon=1e-5),
        beyond=("rows as long as the batch are bootstrapped with the value of their last token (`Ends.bootstrap`)",),
    ),
    "slime": Preset(
        # Its value loss has no factor of a half.
        losses=_losses(cliprange_value=0.2, vf_coef=2.0),
        aggregation="sequence_mean_of_token_means",
        kl_coef=0.0,
        lam=1.0,
        whitens=False,
        groups=GroupSettings(epsilon=1e-6),
        beyond=("masked positions count as steps, with their values and KL",),
    ),
    "deepspeed_chat": Preset(
        losses=_losses(cliprange_value=0.2),
        rewards=RewardSettings(score_at="behind", score_clip=5.0),
        kl_coef=0.1,
        lam=0.95,
        whitening=None,
        whitens=False,
        beyond=("the position after the last token has a KL, and no value loss",),
    ),
}
"""By name of the trainer; "instructgpt" is this library's own default."""
