"""Options of PPO's losses: what options.py measures of them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.core import workloads
from benchmarks.core.workloads import Draw, Inputs
from benchmarks.ops import option_formulas as plain
from benchmarks.ops.floor_rows import V
from benchmarks.ops.option_rows import HEAD, Option, noise
from instructrl.ops import ppo
from instructrl.ops.ppo_settings import KLSettings, PolicySettings, PPOSettings

CRITIC = ("values", "old_values", "returns")
TOKENS = {"work": workloads.PPO, "shape": (512, 1024), "tiny": (4, 37), "counts": workloads.scattered(0.8)}


def reference_logprobs(draw: Draw, x: Inputs) -> Inputs:
    return {"ref_logprobs": x["logprobs"].detach() - draw.shifts(*x["logprobs"].shape)}


def ppo_row(option: str, formula: Callable[..., Tensor], policy: dict[str, Any] | None = None,
            kl: dict[str, Any] | None = None, **more: Any) -> Option:  # fmt: skip
    """Of `ppo_loss`, by fields of its settings."""
    terms = PPOSettings(policy=PolicySettings(**(policy or {})), kl=KLSettings(**({"coef": 0.1, **kl} if kl else {})))
    given = dict.fromkeys(("old_logprobs", *CRITIC))
    others = {"add": reference_logprobs} if kl else {}

    def call(**x: Any) -> Tensor:
        return ppo.ppo_loss(**{**given, **x}, settings=terms).loss

    return Option(option=option, plain=formula, call=call, **{**TOKENS, **others, **more})


WIDE = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 1.5, "log_ratio_clamp": 0.3}
wide = plain.clip(0.2, 0.28, 1.5, 0.3)
KLS = {
    "k1": (plain.k1, {"estimator": "k1"}),
    "k2": (plain.k2, {"estimator": "k2"}),
    "k3": (plain.k3, {}),
    "abs": (plain.absolute, {"estimator": "abs"}),
    "k3 straight through": (plain.straight_through, {"straight_through": True}),
    "k3 clamped": (plain.clamped, {"input_clamp": 0.3, "output_clamp": 0.04}),
    "k3 times the ratio": (plain.weighted, {"importance": "full"}),
}
no_critic = plain.objective(critic=False)


def linear_call(settings: PPOSettings) -> Callable[..., Tensor]:
    given = dict.fromkeys(CRITIC)
    return lambda **x: ppo.linear_ppo_loss(**{**given, **x}, settings=settings).loss


PPO_ROWS = (
    ppo_row("clip_low, clip_high", plain.objective(plain.clip(0.2, 0.28)), {"clip_high": 0.28}),
    ppo_row("dual clip, clamp", plain.objective(wide), WIDE),
    ppo_row("weights", plain.objective(), add=noise("weights", "mask")),
    ppo_row("on-policy", plain.objective(), drop=("old_logprobs",)),
    ppo_row("no critic", no_critic, drop=CRITIC),
    ppo_row("cispo", plain.objective(plain.cispo), {"surrogate": "cispo"}),
    ppo_row("reinforce", plain.objective(plain.reinforce), {"surrogate": "reinforce"}),
    ppo_row("sapo", plain.objective(plain.sapo), {"surrogate": "sapo"}),
    ppo_row("ratios of sequences", plain.objective(plain.of_sequences), {"ratio": "sequence"}),
    *(ppo_row(f"KL {name}", plain.objective(kl=formula), kl={"coef": 0.1, **kl}) for name, (formula, kl) in
      KLS.items()),
    Option(option="a loss a token", plain=plain.policy_terms, call=ppo.policy_token_losses, drop=CRITIC, **TOKENS),
    Option(option="no critic", work=workloads.LINEAR_PPO, plain=plain.linear_objective(plain.clip(0.2, 0.2), False),
           call=linear_call(PPOSettings()), drop=CRITIC, **HEAD),
    Option(option="dual clip, clamp, weights", work=workloads.LINEAR_PPO, plain=plain.linear_objective(wide, True),
           call=linear_call(PPOSettings(policy=PolicySettings(**WIDE))), add=noise("weights", "mask"), **HEAD),
    Option(option="ratios of sequences", work=workloads.LINEAR_PPO, shape=(256, V, 8, 256), tiny=(8, 67, 2, 5),
           plain=plain.linear_objective(plain.of_sequences, True),
           call=linear_call(PPOSettings(policy=PolicySettings(ratio="sequence")))),
)  # fmt: skip
