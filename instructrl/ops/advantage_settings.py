"""Conventions of rewards, advantages and whitening as records of settings, checked where they are made."""

from dataclasses import dataclass, field

from instructrl.ops import checks
from instructrl.ops.ppo_settings import KLEstimator

GAPS = ("skip", "count")
SCORE_PLACES = ("last", "behind")
EPSILON_PLACES = ("variance", "clamp", "deviation")
BASELINES = ("mean", "leave_one_out", "none")
SCALES = ("deviation", "none")


def _deviation(ddof: int, epsilon: float) -> None:
    if isinstance(ddof, bool) or ddof not in (0, 1):
        raise ValueError(f"ddof: found {ddof!r}, accepted are 0 (population), 1 (sample)")
    checks.positive("epsilon", epsilon)


@dataclass(frozen=True, slots=True, kw_only=True)
class GAESettings:
    """Generalised advantage estimation.

    value_lam: lambda of the returns if it differs from that of the advantages (VAPO, Yue et al. 2025); None: the same.
        gaps: masked positions between counted ones are skipped, as if they were not there, or count as steps of reward
        0 and value 0, which discount what comes after them.
    """

    value_lam: float | None = None
    gaps: str = "skip"

    def __post_init__(self) -> None:
        if self.value_lam is not None:
            checks.within("value_lam", self.value_lam, 0.0, 1.0)
        checks.one_of("gaps", self.gaps, GAPS)


_KL, _GAE = KLEstimator(), GAESettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSettings:
    """Rewards of `ppo_advantages`.

    kl: the estimate of the KL to the reference that is taken from the reward, times kl_coef.
    score_at: the last counted token ("last"), or the position after it if the row has one ("behind"): there, the value
        is used and a return is given, the reward is only the score, and the advantage is 0. score_clip: scores are
        clamped from minus to plus this.
    """

    # Functions for the sake of torch.compile, as in `PPOSettings`.
    kl: KLEstimator = field(default_factory=lambda: _KL)
    score_at: str = "last"
    score_clip: float | None = None
    gae: GAESettings = field(default_factory=lambda: _GAE)

    def __post_init__(self) -> None:
        checks.settings("kl", self.kl, KLEstimator)
        checks.one_of("score_at", self.score_at, SCORE_PLACES)
        if self.score_clip is not None:
            checks.positive("score_clip", self.score_clip)
        checks.settings("gae", self.gae, GAESettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class WhitenSettings:
    """Whitening.

    center: False adds the mean again after scaling. ddof: what is subtracted from the count by which squares are
        divided: 1 for the variance of a sample, 0 for that of a population. epsilon: above 0; epsilon_at: where it
        enters, "variance" `rsqrt(var + epsilon)`, "clamp" `rsqrt(max(var, epsilon))`, "deviation"
        `1 / (sqrt(var) + epsilon)`.
    """

    center: bool = True
    ddof: int = 1
    epsilon: float = 1e-8
    epsilon_at: str = "variance"

    def __post_init__(self) -> None:
        checks.flag("center", self.center)
        _deviation(self.ddof, self.epsilon)
        checks.one_of("epsilon_at", self.epsilon_at, EPSILON_PLACES)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSettings:
    """Advantages of scores within their group.

    baseline: what is subtracted from a score: the mean of its group ("mean"), the mean of the others of its group
        ("leave_one_out"), nothing ("none"). scale: divide by the group's `std + epsilon` ("deviation") or not ("none").
        ddof: as in `WhitenSettings`.

    GRPO (Shao et al. 2024) is the default, RLOO (Ahmadian et al. 2024) leave_one_out and none, Dr. GRPO (Liu et al.
    2025) mean and none.
    """

    baseline: str = "mean"
    scale: str = "deviation"
    ddof: int = 1
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        checks.one_of("baseline", self.baseline, BASELINES)
        checks.one_of("scale", self.scale, SCALES)
        _deviation(self.ddof, self.epsilon)
