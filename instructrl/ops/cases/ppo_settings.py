"""Cases of `instructrl.ops.ppo` under other settings than the published loss has; with weights, without a critic."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from instructrl.ops.cases.case import Arguments, Case, poisoned, random_mask, seeded
from instructrl.ops.logit_settings import LogitSettings
from instructrl.ops.ppo_settings import KLSettings, PolicySettings, PPOSettings, ValueSettings

_SHAPE = (5, 7)
# A row of logits is a program to an interpreter of kernels.
_LINEAR_SHAPE = (2, 6)
# What a log ratio may be: off the kinks of every setting below by more than bfloat16 rounds.
_STEPS = (0.0, 0.1, -0.1, 0.35, -0.35, 0.7, -0.7, 1.2, -1.2)


class _Kind(NamedTuple):
    """settings: of the op. without: arguments that are None. unweighted: without weights."""

    settings: Any
    without: tuple[str, ...] = ()
    unweighted: bool = False


_DUAL = PolicySettings(clip_low=0.2, clip_high=0.28, dual_clip=1.6, log_ratio_clamp=0.9)
_CISPO = PolicySettings(surrogate="cispo", clip_low=1.0, clip_high=0.28)
_SAPO = PolicySettings(surrogate="sapo", positive_temperature=1.5, negative_temperature=2.0, log_ratio_clamp=0.5)
_REINFORCE = PolicySettings(surrogate="reinforce")
_SEQUENCE = PolicySettings(ratio="sequence", clip_low=0.05, clip_high=0.06)
_CRITIC = ("values", "old_values", "returns")

_PPO = {
    "dual clip": _Kind(
        PPOSettings(policy=_DUAL, vf_coef=0.5, kl=KLSettings(estimator="k1", coef=0.3, input_clamp=0.5))
    ),
    "cispo": _Kind(
        PPOSettings(policy=_CISPO, kl=KLSettings(estimator="k3", coef=0.3, straight_through=True, output_clamp=0.2)),
        unweighted=True,
    ),
    "sapo": _Kind(PPOSettings(policy=_SAPO, kl=KLSettings(estimator="abs", coef=0.3, importance="constant"))),
    "on policy": _Kind(
        PPOSettings(policy=_REINFORCE, kl=KLSettings(estimator="k2", coef=0.3, importance="full")),
        without=("old_logprobs", *_CRITIC),
    ),
    "sequences": _Kind(
        PPOSettings(policy=_SEQUENCE, kl=KLSettings(coef=0.3, importance="full")), without=_CRITIC, unweighted=True
    ),
}
_POLICY = {
    "dual clip": _Kind(_DUAL, unweighted=True),
    "weights": _Kind(PolicySettings()),
    "on policy": _Kind(PolicySettings(), without=("old_logprobs",)),
    "sequences": _Kind(_SEQUENCE),
}
_VALUE = {"weights": _Kind(ValueSettings())}
_KL = {
    "k3": _Kind(KLSettings(input_clamp=0.9, output_clamp=0.3)),
    "k1 weighted": _Kind(KLSettings(estimator="k1", importance="full")),
    "k3 by score": _Kind(KLSettings(importance="score")),
}

_NAMES = {
    "ppo.ppo_loss": ("logprobs", "old_logprobs", "advantages", *_CRITIC, "ref_logprobs"),
    "ppo.clipped_policy_loss": ("logprobs", "old_logprobs", "advantages"),
    "ppo.policy_token_losses": ("logprobs", "old_logprobs", "advantages"),
    "ppo.clipped_value_loss": _CRITIC,
    "ppo.value_token_losses": _CRITIC,
    "ppo.kl_token_losses": ("logprobs", "ref_logprobs", "old_logprobs"),
}


def _steps(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    steps = torch.tensor(_STEPS, dtype=torch.float64)
    return steps[torch.randint(0, len(_STEPS), shape, generator=generator)]


def _inputs(shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    draw = partial(torch.randn, shape, generator=generator, dtype=torch.float64)
    # Of few digits, so that the differences between them are what they are in bfloat16 too.
    old = -2.0 - torch.randint(0, 64, shape, generator=generator) / 64
    old_value = torch.randint(-64, 64, shape, generator=generator) / 64
    values = old_value + _steps(shape, generator)
    return {
        "logprobs": old + _steps(shape, generator),
        "old_logprobs": old,
        "advantages": draw(),
        "values": values,
        "old_values": old_value,
        "returns": values + torch.tensor([1.5, -1.5])[torch.randint(0, 2, shape, generator=generator)],
    }


def _make(
    dtype: torch.dtype, op: str, name: str, kind: _Kind, masked: bool = False, shape: tuple[int, int] = _SHAPE
) -> Arguments:
    generator = seeded(f"{op}{name}")
    found = _inputs(shape, generator)
    # d = 0 is a kink of the absolute value.
    difference = _steps(shape, generator)
    found["ref_logprobs"] = found["logprobs"] - torch.where(difference == 0, 0.1, difference)
    mask = random_mask(shape, generator, 0.0 if masked else 0.7)
    arguments: Arguments = {key: poisoned(found[key].to(dtype), mask) for key in _NAMES[op]}
    arguments |= {"mask": mask, "settings": kind.settings} | dict.fromkeys(kind.without)
    if not kind.unweighted:
        weights = torch.rand(shape, generator=generator)
        # A weight of 0 leaves a token out.
        arguments["weights"] = poisoned(torch.where(weights < 0.2, 0.0, weights), mask)
    return arguments


def _gradients(op: str, kind: _Kind) -> tuple[str, ...]:
    return tuple(x for x in ("logprobs", "values") if x in _NAMES[op] and x not in kind.without)


def _cases(op: str, kinds: dict[str, _Kind]) -> list[Case]:
    makes: dict[str, tuple[Callable[..., Arguments], _Kind]] = {
        name: (partial(_make, op=op, name=name, kind=kind), kind) for name, kind in kinds.items()
    }
    if op.endswith("token_losses"):
        kind = next(iter(kinds.values()))
        makes["all masked"] = (partial(_make, op=op, name="all masked", kind=kind, masked=True), kind)
    return [Case(op=op, name=name, make=make, gradients=_gradients(op, kind)) for name, (make, kind) in makes.items()]


_LINEAR = {
    "dual clip": _PPO["dual clip"],
    "on policy": _PPO["on policy"],
    "sequences": _PPO["sequences"],
}


def _linear(dtype: torch.dtype, name: str, kind: _Kind) -> Arguments:
    generator = seeded(f"linear {name}")
    arguments = _make(dtype, "ppo.ppo_loss", name, kind, shape=_LINEAR_SHAPE)
    hidden = torch.randn((*_LINEAR_SHAPE, 6), generator=generator, dtype=torch.float64).to(dtype)
    weight = (0.4 * torch.randn((29, 6), generator=generator, dtype=torch.float64)).to(dtype)
    tokens = torch.randint(0, 29, _LINEAR_SHAPE, generator=generator)
    new = torch.log_softmax(hidden.double() @ weight.double().t(), -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    # The new log-probabilities follow from the weights: the others are set from them, off the kinks.
    for key in ("old_logprobs", "ref_logprobs"):
        if arguments[key] is not None:
            arguments[key] = (new - (arguments["logprobs"].double() - arguments[key].double())).to(dtype)
    # A sum that is a small difference of log-probabilities would be compared with less than their last digit.
    arguments["advantages"] = arguments["advantages"].abs()
    del arguments["logprobs"]
    if name == "on policy":
        # Nothing of it is near a kink, whatever the log-probabilities are.
        arguments |= {"temperature": 0.8, "logit_settings": LogitSettings(scale=1.3, softcap=5.0)}
    return {"hidden": poisoned(hidden, arguments["mask"]), "weight": weight, "tokens": tokens} | arguments


def _linear_cases() -> list[Case]:
    op, cases = "ppo.linear_ppo_loss", []
    for name, kind in _LINEAR.items():
        gradients = ("hidden", "weight", *(("values",) if "values" not in kind.without else ()))
        cases.append(Case(op=op, name=name, make=partial(_linear, name=name, kind=kind), gradients=gradients))
    return cases


def cases() -> list[Case]:
    return [
        *_cases("ppo.ppo_loss", _PPO),
        *_cases("ppo.clipped_policy_loss", _POLICY),
        *_cases("ppo.policy_token_losses", {name: _POLICY[name] for name in ("dual clip", "sequences")}),
        *_cases("ppo.clipped_value_loss", _VALUE),
        *_cases("ppo.value_token_losses", _VALUE),
        *_cases("ppo.kl_token_losses", _KL),
        *_linear_cases(),
    ]
