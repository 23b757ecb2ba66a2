"""The conventions of PPO's losses: what the papers and the frameworks after them do differently, as settings."""

from dataclasses import dataclass, field
from typing import NamedTuple

from instructrl.ops import checks

SURROGATES = ("clip", "cispo", "reinforce", "sapo")
"""Policy losses of a token, with A its advantage, r its ratio and sg a constant of autograd:

clip: `max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))` (Schulman et al. 2017, equation 7).
cispo: `-sg(clip(r, 1 - clip_low, 1 + clip_high)) A logprob` (MiniMax-M1, arXiv 2506.13585).
reinforce: `-A logprob`, whatever the ratio (Williams 1992).
sapo: `-A sigmoid(t (r - 1)) 4 / t` with t = `positive_temperature` where A > 0, else `negative_temperature` (soft
    adaptive policy optimization, arXiv 2511.20347).
"""

RATIOS = ("token", "sequence")
"""token: `r = exp(logprobs - old_logprobs)`. sequence: r is the exponential of the mean of `logprobs - old_logprobs`
over the counted tokens of the sequence, and its derivative by a token's log-probability is r (GSPO in its form for
tokens, Zheng et al. 2025, arXiv 2507.18071)."""

KL_ESTIMATORS = ("k1", "k2", "k3", "abs")
"""Estimates of `KL(policy || reference)` from one token, with d = log-probability - that of the reference (Schulman
2020, http://joschu.net/blog/kl-approx.html). k1: `d`. k2: `0.5 d^2`. k3: `exp(-d) - 1 + d`. abs: `|d|`."""

IMPORTANCES = ("none", "constant", "full", "score")
"""What a KL loss is multiplied with. none: 1. constant: the token's ratio, without its gradient. full: the ratio with
its gradient, which makes the gradient that of the KL of the policy as it is, whoever sampled (as in DeepSeek-V3.2).
score: 1, with the gradient that the ratio has where the policy is the one that sampled (as in NeMo-RL)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """What a policy loss does with the ratio.

    surrogate: one of `SURROGATES`. clip_low: from 0 to 1; with 1, ratios below 1 are not clipped. clip_high: from 0 to
        infinity; with infinity, ratios above 1 are not clipped. "clip" and "cispo" use both.
    dual_clip: above 1; if the advantage is negative, the loss of "clip" is at most `-A dual_clip` (Ye et al. 2020,
        arXiv 1912.09729). None: unbounded.
    log_ratio_clamp: above 0; the log ratio is clamped to this on both sides before it is exponentiated, and has no
        gradient beyond it. None: not clamped.
    ratio: one of `RATIOS`. positive_temperature, negative_temperature: above 0, of "sapo".
    """

    surrogate: str = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    log_ratio_clamp: float | None = None
    ratio: str = "token"
    positive_temperature: float = 1.0
    negative_temperature: float = 1.05

    def __post_init__(self) -> None:
        checks.one_of("surrogate", self.surrogate, SURROGATES)
        checks.within("clip_low", self.clip_low, 0.0, 1.0)
        checks.within("clip_high", self.clip_high, 0.0, float("inf"))
        if self.dual_clip is not None:
            checks.above("dual_clip", self.dual_clip, 1.0)
            if self.surrogate != "clip":
                found = f"{self.dual_clip} with surrogate {self.surrogate!r}"
                raise ValueError(f"dual_clip: found {found}, accepted is None, or surrogate 'clip'")
        if self.log_ratio_clamp is not None:
            checks.positive("log_ratio_clamp", self.log_ratio_clamp)
        checks.one_of("ratio", self.ratio, RATIOS)
        checks.positive("positive_temperature", self.positive_temperature)
        checks.positive("negative_temperature", self.negative_temperature)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueSettings:
    """cliprange: at least 0, how far a value may move from the old one before its loss stops following it."""

    cliprange: float = 0.2

    def __post_init__(self) -> None:
        checks.within("cliprange", self.cliprange, 0.0, float("inf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class KLEstimator:
    """An estimate of the KL to a reference from one token.

    estimator: one of `KL_ESTIMATORS`. input_clamp, output_clamp: above 0; the log ratio before the estimate, and the
    estimate, are clamped to this on both sides. None: not clamped.
    """

    estimator: str = "k1"
    input_clamp: float | None = None
    output_clamp: float | None = None

    def __post_init__(self) -> None:
        checks.one_of("estimator", self.estimator, KL_ESTIMATORS)
        if self.input_clamp is not None:
            checks.positive("input_clamp", self.input_clamp)
        if self.output_clamp is not None:
            checks.positive("output_clamp", self.output_clamp)


@dataclass(frozen=True, slots=True, kw_only=True)
class KLSettings(KLEstimator):
    """The KL to a reference as a term of the loss: `coef` times an estimate with a gradient.

    estimator, input_clamp, output_clamp: as in `KLEstimator`; clamped numbers have no gradient.
    coef: finite; 0 measures the KL without adding it to the loss.
    straight_through: the estimate has the gradient of k2 of the unclamped log ratio in place of its own, so that the
        gradient is, on average, that of the KL.
    importance: one of `IMPORTANCES`; multiplied before the estimate is clamped.
    """

    estimator: str = "k3"
    coef: float = 0.0
    straight_through: bool = False
    importance: str = "none"

    def __post_init__(self) -> None:
        KLEstimator.__post_init__(self)
        checks.finite("coef", self.coef)
        checks.flag("straight_through", self.straight_through)
        checks.one_of("importance", self.importance, IMPORTANCES)


_POLICY, _VALUE, _KL = PolicySettings(), ValueSettings(), KLSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOSettings:
    """The whole objective: policy loss + `vf_coef` times the value loss + `kl.coef` times the KL to a reference."""

    # Functions, because torch.compile does not take a record for a default that it has not seen before.
    policy: PolicySettings = field(default_factory=lambda: _POLICY)
    value: ValueSettings = field(default_factory=lambda: _VALUE)
    vf_coef: float = 0.1
    kl: KLSettings = field(default_factory=lambda: _KL)

    def __post_init__(self) -> None:
        checks.settings("policy", self.policy, PolicySettings)
        checks.settings("value", self.value, ValueSettings)
        checks.finite("vf_coef", self.vf_coef)
        checks.settings("kl", self.kl, KLSettings)


def _bound(limit: float | None) -> float:
    return float("inf") if limit is None else limit


class Flat(NamedTuple):
    """The settings as kernels take them: places in the tables for names, infinity for what is not bounded."""

    surrogate: float
    clip_low: float
    clip_high: float
    dual_clip: float
    log_ratio_clamp: float
    positive_temperature: float
    negative_temperature: float
    cliprange_value: float
    vf_coef: float
    estimator: float
    kl_coef: float
    input_clamp: float
    output_clamp: float
    straight_through: float
    importance: float


def flat(
    policy: PolicySettings = _POLICY,
    value: ValueSettings = _VALUE,
    vf_coef: float = 1.0,
    kl: KLSettings = _KL,
    kl_coef: float = 0.0,
) -> list[float]:
    """The numbers of `Flat`."""
    return [
        float(SURROGATES.index(policy.surrogate)),
        policy.clip_low,
        policy.clip_high,
        _bound(policy.dual_clip),
        _bound(policy.log_ratio_clamp),
        policy.positive_temperature,
        policy.negative_temperature,
        value.cliprange,
        vf_coef,
        float(KL_ESTIMATORS.index(kl.estimator)),
        kl_coef,
        _bound(kl.input_clamp),
        _bound(kl.output_clamp),
        float(kl.straight_through),
        float(IMPORTANCES.index(kl.importance)),
    ]


def is_plain_policy(old_logprobs: object, weights: object, settings: PolicySettings) -> bool:
    """Whether a call is PPO's clipped loss as it was published, which kernels have a form of their own for."""
    plain = settings.surrogate == "clip" and settings.ratio == "token"
    unbounded = settings.dual_clip is None and settings.log_ratio_clamp is None
    return old_logprobs is not None and weights is None and plain and unbounded


def is_plain_ppo(
    old_logprobs: object, values: object, ref_logprobs: object, weights: object, settings: PPOSettings
) -> bool:
    """The same of the whole objective, where the KL is the unclamped k3 estimate with its own gradient."""
    kl = settings.kl
    plain_kl = kl.estimator == "k3" and not kl.straight_through and kl.importance == "none"
    unclamped = kl.input_clamp is None and kl.output_clamp is None
    plain = values is not None and is_plain_policy(old_logprobs, weights, settings.policy)
    return plain and (ref_logprobs is None or (plain_kl and unclamped))
