"""Cases of `instructrl.ops.ppo`."""

from collections.abc import Callable
from functools import partial

import torch

from instructrl.ops.cases import ppo_settings
from instructrl.ops.cases.case import Arguments, Case, poisoned, random_mask, seeded
from instructrl.ops.cases.logprobs import linear_cases
from instructrl.ops.ppo_settings import KLSettings, PPOSettings

_CLIP = 0.2


def _away_from_kinks(arguments: Arguments) -> None:
    """Tokens that rounding could carry over a kink get ratio 1, or their old value."""
    old = arguments["old_logprobs"]
    if "logprobs" in arguments:
        ratio = (arguments["logprobs"].double() - old.double()).exp()
        near = ((ratio - (1 - _CLIP)).abs() < 1e-3) | ((ratio - (1 + _CLIP)).abs() < 1e-3)
        arguments["logprobs"] = torch.where(near, old, arguments["logprobs"])
    value, old_value, target = (arguments[name].double() for name in ("values", "old_values", "returns"))
    clipped = value.clamp(old_value - _CLIP, old_value + _CLIP)
    near = ((value - old_value).abs() - _CLIP).abs() < 1e-3
    near |= (clipped != value) & (((clipped - target).abs() - (value - target).abs()).abs() < 1e-3)
    arguments["values"] = torch.where(near, arguments["old_values"], arguments["values"])


_POLICY = ("logprobs", "old_logprobs", "advantages")
_VALUE = ("values", "old_values", "returns")


def _ppo(dtype: torch.dtype, names: tuple[str, ...], shape: tuple[int, ...], kind: str = "") -> Arguments:
    generator = seeded(f"ppo{shape}{kind}")
    draw = partial(torch.randn, shape, generator=generator, dtype=torch.float64)
    mask = random_mask(shape, generator, 0.0 if kind == "all masked" else 0.7)
    old, old_value = draw() - 2.0, draw()
    arguments: Arguments = {
        "logprobs": old + 0.3 * draw(),
        "old_logprobs": old,
        "advantages": draw(),
        "values": old_value + 0.3 * draw(),
        "old_values": old_value,
        "returns": old_value + draw(),
    }
    arguments = {name: x.to(dtype) for name, x in arguments.items()}
    if kind == "unchanged":
        arguments |= {"logprobs": arguments["old_logprobs"].clone(), "values": arguments["old_values"].clone()}
    _away_from_kinks(arguments)
    arguments = {name: poisoned(arguments[name], mask) for name in names} | {"mask": mask}
    if kind == "reference" and "returns" in names and "logprobs" in names:
        ref = (old + 0.5 * draw()).to(dtype)
        settings = PPOSettings(vf_coef=0.5, kl=KLSettings(coef=0.3))
        arguments |= {"ref_logprobs": poisoned(ref, mask), "settings": settings}
    if kind == "denominator":
        arguments["num_tokens"] = torch.tensor(29.5)
    return arguments


def _ppo_cases(op: str, names: tuple[str, ...], gradients: tuple[str, ...]) -> list[Case]:
    shapes = [(1,), (4, 5), (257,), (4097,), (0, 3), (2, 3, 4)]
    makes = {str(shape): partial(_ppo, names=names, shape=shape) for shape in shapes}
    kinds = ["all masked", "unchanged", "reference", "denominator"]
    makes |= {kind: partial(_ppo, names=names, shape=(5, 7), kind=kind) for kind in kinds}
    cases = [Case(op=op, name=name, make=make, gradients=gradients) for name, make in makes.items()]
    large = partial(_ppo, names=names, shape=(1024, 1024))
    return [*cases, Case(op=op, name="1024x1024", make=large, gradients=gradients, large=True)]


def _linear_ppo(dtype: torch.dtype, make: Callable[[torch.dtype], Arguments], with_reference: bool) -> Arguments:
    arguments = make(dtype)
    num_rows = arguments["tokens"].shape[0]
    names = ("old_logprobs", "advantages", *_VALUE)
    arguments |= _ppo(dtype, names, (num_rows,)) | {"mask": arguments.get("mask", torch.ones(num_rows).bool())}
    generator = seeded(f"linear ppo{num_rows}")
    # The new log-probabilities follow from the weights: old ones are set from them, at ratios off the kinks.
    logits = arguments["hidden"].double() @ arguments["weight"].double().t() + arguments.get("bias", torch.zeros(1))
    scaled = torch.log_softmax(logits / arguments.get("temperature", 1.0), dim=-1)
    new = scaled.gather(1, arguments["tokens"].clamp(0, scaled.shape[1] - 1).unsqueeze(1)).squeeze(1)
    shift = torch.tensor([0.0, 0.5, -0.5, 0.1])[torch.randint(0, 4, (num_rows,), generator=generator)]
    arguments["old_logprobs"] = (new - shift).to(dtype)
    for name in (*_VALUE, "advantages"):
        arguments[name] = torch.where(arguments[name].isfinite(), arguments[name], 0.25)
    if with_reference:
        arguments |= {"ref_logprobs": (new + 0.3).to(dtype), "settings": PPOSettings(kl=KLSettings(coef=0.3))}
    return arguments


def _linear_ppo_cases() -> list[Case]:
    cases = []
    for case in linear_cases("ppo.linear_ppo_loss"):
        make = partial(_linear_ppo, make=case.make, with_reference=case.name == "bias and temperature")
        gradients = (*case.gradients, "values")
        cases.append(Case(op=case.op, name=case.name, make=make, gradients=gradients, large=case.large))
    return cases


def cases() -> list[Case]:
    return [
        *_ppo_cases("ppo.clipped_policy_loss", _POLICY, ("logprobs",)),
        *_ppo_cases("ppo.clipped_value_loss", _VALUE, ("values",)),
        *_ppo_cases("ppo.ppo_loss", (*_POLICY, *_VALUE), ("logprobs", "values")),
        *_linear_ppo_cases(),
        *ppo_settings.cases(),
    ]
