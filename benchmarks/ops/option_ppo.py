"""Options of PPO's losses: what options.py measures of them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.core import workloads
from benchmarks.core.rows import Row, V
from benchmarks.core.workloads import CRITIC, Draw, Inputs
from benchmarks.ops import option_formulas as plain
from benchmarks.ops.option_rows import HEAD, noise, option
from instructrl.ops import ppo
from instructrl.ops.ppo_settings import KLSettings, PolicySettings, PPOSettings

TOKENS = {"shape": (512, 1024), "tiny": (4, 37), "counts": workloads.scattered(0.8)}
WEIGHTS = {"add": {"weights": noise("mask")}}


def near(draw: Draw, x: Inputs) -> Tensor:
    return x["logprobs"].detach() - draw.shifts(*x["logprobs"].shape)


REFERENCE = {"add": {"ref_logprobs": near}}
OFF = dict.fromkeys(("old_logprobs", *CRITIC))


def ppo_row(text: str, formula: Callable[..., Tensor], kl: dict[str, Any] | None = None, *, drop: tuple[str, ...] = (),
            add: dict[str, Any] | None = None, **policy: Any) -> Row:  # fmt: skip
    """Of `ppo_loss`, by fields of its settings."""
    terms = PPOSettings(policy=PolicySettings(**policy), kl=KLSettings(**({} if kl is None else {"coef": 0.1, **kl})))

    def call(**x: Any) -> Tensor:
        return ppo.ppo_loss(**{**OFF, **x}, settings=terms).loss

    return option(text, workloads.PPO, formula, call, drop=drop, **(add or {}), **TOKENS)


def linear_row(text: str, formula: Callable[..., Tensor], critic: bool = True, row: dict[str, Any] = HEAD,
               add: dict[str, Any] | None = None, **policy: Any) -> Row:  # fmt: skip
    settings = PPOSettings(policy=PolicySettings(**policy))

    def call(**x: Any) -> Tensor:
        return ppo.linear_ppo_loss(**{**dict.fromkeys(CRITIC), **x}, settings=settings).loss

    return option(text, workloads.LINEAR_PPO, plain.linear_objective(formula, critic), call,
                  drop=() if critic else CRITIC, **(add or {}), **row)  # fmt: skip


WIDE: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 1.5, "log_ratio_clamp": 0.3}
wide = plain.clip(0.2, 0.28, 1.5, 0.3)
KLS: dict[str, dict[str, Any]] = {
    "k1": {"estimator": "k1"},
    "k2": {"estimator": "k2"},
    "k3": {},
    "abs": {"estimator": "abs"},
    "k3 straight through": {"straight_through": True},
    "k3 clamped": {"input_clamp": 0.3, "output_clamp": 0.04},
    "k3 times the ratio": {"importance": "full"},
}
SEQUENCES = {"shape": (256, V, 8, 256), "tiny": (8, 67, 2, 5)}
POLICY = ("logprobs", "old_logprobs", "advantages")
PPO_ROWS = (
    ppo_row("clip_low, clip_high", plain.objective(plain.clip(0.2, 0.28)), clip_high=0.28),
    ppo_row("dual clip, clamp", plain.objective(wide), **WIDE),
    ppo_row("weights", plain.objective(), add=WEIGHTS),
    ppo_row("on-policy", plain.objective(), drop=("old_logprobs",)),
    ppo_row("no critic", plain.objective(critic=False), drop=CRITIC),
    ppo_row("cispo", plain.objective(plain.cispo), surrogate="cispo"),
    ppo_row("reinforce", plain.objective(plain.reinforce), surrogate="reinforce"),
    ppo_row("sapo", plain.objective(plain.sapo), surrogate="sapo"),
    ppo_row("ratios of sequences", plain.objective(plain.of_sequences), ratio="sequence"),
    *(ppo_row(f"KL {name}", plain.objective(kl=plain.KL[name]), kl, add=REFERENCE) for name, kl in KLS.items()),
    option("a policy loss a token", workloads.PPO, plain.policy_terms, ppo.policy_token_losses, drop=CRITIC, **TOKENS),
    option("a value loss a token", workloads.PPO, plain.value_terms, ppo.value_token_losses, drop=POLICY, **TOKENS),
    option("a KL a token", workloads.PPO, plain.kl_terms, ppo.kl_token_losses, **REFERENCE,
           drop=(*CRITIC, *POLICY[1:]), **TOKENS),
    linear_row("no critic", plain.clip(0.2, 0.2), critic=False),
    linear_row("dual clip, clamp, weights", wide, add=WEIGHTS, **WIDE),
    linear_row("ratios of sequences", plain.of_sequences, row=SEQUENCES, ratio="sequence"),
)  # fmt: skip
