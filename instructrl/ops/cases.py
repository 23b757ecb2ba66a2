"""Inputs for every operation, which tests and benchmarks enumerate.

A case makes the keyword arguments of the public function. Its numbers come from a seed, are rounded to the dtype asked
for, and stay away from the kinks of clipped losses, so that rounding never decides which branch is taken.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One set of inputs of one operation.

    make: from a dtype to the keyword arguments, on the CPU. gradients: arguments that are differentiated.
    large: for benchmarks; too slow for a test on one core.
    """

    op: str
    name: str
    make: Callable[[torch.dtype], Arguments]
    gradients: tuple[str, ...] = ()
    large: bool = False

    def bytes_moved(self, arguments: Arguments) -> int:
        """Bytes of what `make` gave, and of the gradients once more: the floor for forward and backward."""
        size = {key: x.numel() * x.element_size() for key, x in arguments.items() if isinstance(x, Tensor)}
        return sum(size.values()) + sum(size[key] for key in self.gradients)


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(index * ord(letter) for index, letter in enumerate(name, start=1)))


def _mask(shape: tuple[int, ...], generator: torch.Generator, kept: float) -> Tensor:
    return torch.rand(shape, generator=generator) < kept


def _poison(x: Tensor, mask: Tensor) -> Tensor:
    """NaN and infinity, by turns, wherever the mask is False."""
    garbage = torch.full(x.shape, math.nan, dtype=x.dtype)
    garbage.view(-1)[::2] = math.inf
    return torch.where(mask.view(*mask.shape, *[1] * (x.dim() - mask.dim())), x, garbage)


def _ranking(
    dtype: torch.dtype, num_prompts: int, num_responses: int, scale: float = 1.0, kind: str = "ranks"
) -> Arguments:
    generator = _generator(f"{kind}{num_prompts}{num_responses}{scale}")
    shape = (num_prompts, num_responses)
    scores = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    ranks = torch.randint(-1, max(num_responses, 1), shape, generator=generator)
    preferred = (ranks.unsqueeze(2) >= 0) & (ranks.unsqueeze(1) >= 0) & (ranks.unsqueeze(2) < ranks.unsqueeze(1))
    if kind == "cycles":
        preferred = torch.rand((*shape, num_responses), generator=generator) < 0.5
    if kind == "nothing":
        preferred = torch.zeros_like(preferred)
    if kind == "tied scores":
        scores = scores.round()
    if kind == "missing":
        scores = _poison(scores, ranks >= 0)
    return {"scores": scores, "preferred": preferred}


def _ranking_cases() -> list[Case]:
    sizes = [(1, 2), (7, 4), (5, 9), (3, 33), (1, 130), (0, 4), (3, 1), (257, 3)]
    kinds = ["cycles", "nothing", "tied scores", "missing"]
    makes = {f"{p}x{k}": partial(_ranking, num_prompts=p, num_responses=k) for p, k in sizes}
    makes |= {kind: partial(_ranking, num_prompts=6, num_responses=5, kind=kind) for kind in kinds}
    makes["scores of 1e4"] = partial(_ranking, num_prompts=6, num_responses=5, scale=1e4)
    large = {f"{p}x{k}": partial(_ranking, num_prompts=p, num_responses=k) for p, k in [(1024, 9), (65536, 9)]}
    op = "ranking.pairwise_ranking_loss"
    return [Case(op=op, name=name, make=make, gradients=("scores",)) for name, make in makes.items()] + [
        Case(op=op, name=name, make=make, gradients=("scores",), large=True) for name, make in large.items()
    ]


def _logits(dtype: torch.dtype, num_rows: int, num_classes: int, kind: str = "") -> Arguments:
    generator = _generator(f"{kind}{num_rows}{num_classes}")
    width = num_classes + (3 if kind == "misaligned" else 0)
    logits = 3.0 * torch.randn((num_rows, width), generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, num_classes, (num_rows,), generator=generator)
    arguments: Arguments = {"logits": logits, "tokens": tokens}
    if kind == "temperature":
        arguments["temperature"] = 0.7
    elif kind == "logits of 1e4":
        logits.mul_(1e4 / 3.0)
    elif kind == "one finite":
        logits.fill_(-math.inf).scatter_(1, tokens.unsqueeze(1), 1.5)
    elif kind == "some -inf":
        hole = _mask((num_rows, width), generator, 0.5).scatter_(1, tokens.unsqueeze(1), False)
        logits.masked_fill_(hole, -math.inf)
    elif kind == "nearly certain":
        logits.scatter_add_(1, tokens.unsqueeze(1), torch.full((num_rows, 1), 12.0, dtype=torch.float64))
    elif kind in ("masked", "all masked"):
        mask = _mask((num_rows,), generator, 0.6 if kind == "masked" else 0.0)
        arguments |= {"mask": mask, "tokens": torch.where(mask, tokens, -100)}
        arguments["logits"] = _poison(logits, mask)
    arguments["logits"] = arguments["logits"].to(dtype)
    if kind == "misaligned":
        arguments["logits"] = arguments["logits"][:, 3:]
    return arguments


_LOGITS_KINDS = (
    "temperature",
    "logits of 1e4",
    "one finite",
    "some -inf",
    "nearly certain",
    "masked",
    "all masked",
    "misaligned",
)


def _logits_cases(op: str) -> list[Case]:
    # 31: one class short of whole vectors, so that what reads one too many reads the next row's.
    sizes = [(1, 1), (1, 2), (3, 31), (5, 257), (2, 4097), (0, 7), (3, 50257)]
    makes = {f"{n}x{v}": partial(_logits, num_rows=n, num_classes=v) for n, v in sizes}
    makes |= {kind: partial(_logits, num_rows=7, num_classes=33, kind=kind) for kind in _LOGITS_KINDS}
    large = partial(_logits, num_rows=1024, num_classes=50257)
    return [Case(op=op, name=name, make=make, gradients=("logits",)) for name, make in makes.items()] + [
        Case(op=op, name="1024x50257", make=large, gradients=("logits",), large=True)
    ]


def _linear(
    dtype: torch.dtype, num_rows: int, num_hidden: int, num_classes: int, kind: str = "", num_chunks: int = 1
) -> Arguments:
    generator = _generator(f"{kind}{num_rows}{num_hidden}{num_classes}")
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    hidden, tokens = draw((num_rows, num_hidden)), torch.randint(0, num_classes, (num_rows,), generator=generator)
    weight = draw((num_classes, num_hidden)) / math.sqrt(max(num_hidden, 1)) * 3.0
    arguments: Arguments = {"hidden": hidden.to(dtype), "weight": weight.to(dtype), "tokens": tokens}
    if num_chunks > 1:
        arguments["max_workspace_bytes"] = 16 * num_classes * math.ceil(num_rows / num_chunks)
    if kind == "bias and temperature":
        arguments |= {"bias": draw((num_classes,)).to(dtype), "temperature": 0.7}
    if kind in ("masked", "all masked"):
        mask = _mask((num_rows,), generator, 0.6 if kind == "masked" else 0.0)
        arguments |= {"mask": mask, "tokens": torch.where(mask, tokens, num_classes)}
        arguments["hidden"] = _poison(hidden, mask).to(dtype)
    return arguments


def _linear_makes() -> Mapping[str, Callable[[torch.dtype], Arguments]]:
    sizes = [(1, 1, 1), (5, 8, 257), (0, 4, 7), (2, 3, 50257)]
    makes = {f"{n}x{d}x{v}": partial(_linear, num_rows=n, num_hidden=d, num_classes=v) for n, d, v in sizes}
    for kind in ("bias and temperature", "masked", "all masked"):
        makes[kind] = partial(_linear, num_rows=13, num_hidden=8, num_classes=33, kind=kind, num_chunks=3)
    return makes


def _linear_cases(op: str) -> list[Case]:
    cases = []
    for name, make in _linear_makes().items():
        gradients = ("hidden", "weight", "bias") if name == "bias and temperature" else ("hidden", "weight")
        cases.append(Case(op=op, name=name, make=make, gradients=gradients))
    large = partial(_linear, num_rows=1024, num_hidden=256, num_classes=50257)
    cases.append(Case(op=op, name="1024x256x50257", make=large, gradients=("hidden", "weight"), large=True))
    return cases


def _linear_nll(dtype: torch.dtype, make: Callable[[torch.dtype], Arguments]) -> Arguments:
    arguments = make(dtype)
    arguments.pop("temperature", None)
    return {"mask": torch.ones_like(arguments["tokens"], dtype=torch.bool)} | arguments


def _linear_nll_cases() -> list[Case]:
    return [
        replace(case, make=partial(_linear_nll, make=case.make)) for case in _linear_cases("likelihood.linear_nll_loss")
    ]


def _rewards(dtype: torch.dtype, num_rows: int, length: int, kind: str = "", fused: bool = False) -> Arguments:
    generator = _generator(f"{kind}{num_rows}{length}")
    shape: tuple[int, ...] = (num_rows, length)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    mask = torch.arange(length) < torch.randint(0, length + 1, (num_rows, 1), generator=generator)
    if kind in ("gaps", "packed"):
        mask = _mask(shape, generator, 0.5)
    elif kind == "all masked":
        mask = torch.zeros(shape, dtype=torch.bool)
    arguments: Arguments = {"gamma": 0.9, "lam": 0.8} if kind == "discounted" else {}
    scores = draw((num_rows,)).to(dtype)
    if kind == "packed":
        cuts = torch.randint(0, num_rows * length + 1, (num_rows - 1,), generator=generator).sort().values
        cuts[0] = cuts[1]  # One sequence is empty.
        arguments["cu_seqlens"] = torch.cat([torch.tensor([0]), cuts, torch.tensor([num_rows * length])])
        mask, shape = mask.flatten(), (num_rows * length,)
    for name in ("logprobs", "ref_logprobs", "values") if fused else ("rewards", "values"):
        arguments[name] = _poison(draw(shape).to(dtype), mask)
    if fused:
        arguments |= {"scores": scores, "kl_coef": 0.02}
    return arguments | {"mask": mask}


def _advantage_cases() -> list[Case]:
    # Lengths on both sides of where GPU kernels change how they cut a row.
    sizes = [(1, 1), (4, 5), (3, 257), (2, 2000), (2, 4097), (1, 9000), (0, 3), (2, 0)]
    kinds = ("gaps", "packed", "all masked", "discounted")
    cases = []
    for op, fused in (("advantages.generalized_advantages", False), ("advantages.ppo_advantages", True)):
        makes = {f"{b}x{t}": partial(_rewards, num_rows=b, length=t, fused=fused) for b, t in sizes}
        makes |= {kind: partial(_rewards, num_rows=5, length=19, kind=kind, fused=fused) for kind in kinds}
        cases += [Case(op=op, name=name, make=make) for name, make in makes.items()]
        large = {
            f"{b}x{t}": partial(_rewards, num_rows=b, length=t, fused=fused) for b, t in [(512, 1024), (16, 32768)]
        }
        cases += [Case(op=op, name=name, make=make, large=True) for name, make in large.items()]
    return cases


def _whiten(dtype: torch.dtype, shape: tuple[int, ...], kept: float = 0.7) -> Arguments:
    generator = _generator(f"whiten{shape}{kept}")
    mask = _mask(shape, generator, kept)
    x = 3.0 + torch.randn(shape, generator=generator, dtype=torch.float64)
    return {"x": _poison(x.to(dtype), mask), "mask": mask}


def _whiten_cases() -> list[Case]:
    op = "advantages.masked_whiten"
    makes = {str(shape): partial(_whiten, shape=shape) for shape in [(4, 5), (3, 257), (4097,), (0, 3), (2, 3, 4)]}
    makes |= {"all masked": partial(_whiten, shape=(3, 4), kept=0.0), "one": partial(_whiten, shape=(1,), kept=1.0)}
    cases = [Case(op=op, name=name, make=make) for name, make in makes.items()]
    return [*cases, Case(op=op, name="512x1024", make=partial(_whiten, shape=(512, 1024)), large=True)]


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
    generator = _generator(f"ppo{shape}{kind}")
    draw = partial(torch.randn, shape, generator=generator, dtype=torch.float64)
    mask = _mask(shape, generator, 0.0 if kind == "all masked" else 0.7)
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
    arguments = {name: _poison(arguments[name], mask) for name in names} | {"mask": mask}
    if kind == "reference" and "returns" in names and "logprobs" in names:
        ref = (old + 0.5 * draw()).to(dtype)
        arguments |= {"ref_logprobs": _poison(ref, mask), "kl_coef": 0.3, "vf_coef": 0.5}
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
    generator = _generator(f"linear ppo{num_rows}")
    # The new log-probabilities follow from the weights: old ones are set from them, at ratios off the kinks.
    logits = arguments["hidden"].double() @ arguments["weight"].double().t() + arguments.get("bias", torch.zeros(1))
    scaled = torch.log_softmax(logits / arguments.get("temperature", 1.0), dim=-1)
    new = scaled.gather(1, arguments["tokens"].clamp(0, scaled.shape[1] - 1).unsqueeze(1)).squeeze(1)
    shift = torch.tensor([0.0, 0.5, -0.5, 0.1])[torch.randint(0, 4, (num_rows,), generator=generator)]
    arguments["old_logprobs"] = (new - shift).to(dtype)
    for name in (*_VALUE, "advantages"):
        arguments[name] = torch.where(arguments[name].isfinite(), arguments[name], 0.25)
    if with_reference:
        arguments |= {"ref_logprobs": (new + 0.3).to(dtype), "kl_coef": 0.3}
    return arguments


def _linear_ppo_cases() -> list[Case]:
    cases = []
    for case in _linear_cases("ppo.linear_ppo_loss"):
        make = partial(_linear_ppo, make=case.make, with_reference=case.name == "bias and temperature")
        gradients = (*case.gradients, "values")
        cases.append(Case(op=case.op, name=case.name, make=make, gradients=gradients, large=case.large))
    return cases


def _sampling(dtype: torch.dtype, num_rows: int, num_classes: int, kind: str = "") -> Arguments:
    arguments = _logits(dtype, num_rows, num_classes, kind)
    del arguments["tokens"]
    generator = _generator(f"uniforms{num_rows}{num_classes}")
    return arguments | {"uniforms": torch.rand((num_rows,), generator=generator)}


def _sampling_cases() -> list[Case]:
    sizes = [(1, 1), (9, 2), (33, 257), (0, 7), (3, 50257)]
    makes = {f"{b}x{v}": partial(_sampling, num_rows=b, num_classes=v) for b, v in sizes}
    kinds = ["temperature", "logits of 1e4", "one finite", "some -inf", "misaligned"]
    makes |= {kind: partial(_sampling, num_rows=33, num_classes=33, kind=kind) for kind in kinds}
    cases = [Case(op="sampling.sample_tokens", name=name, make=make) for name, make in makes.items()]
    large = partial(_sampling, num_rows=64, num_classes=50257)
    return [*cases, Case(op="sampling.sample_tokens", name="64x50257", make=large, large=True)]


CASES: tuple[Case, ...] = (
    *_ranking_cases(),
    *_logits_cases("logprobs.token_logprobs"),
    *_logits_cases("logprobs.token_logprobs_and_entropy"),
    *_linear_cases("logprobs.linear_token_logprobs"),
    *_linear_cases("logprobs.linear_token_logprobs_and_entropy"),
    *_linear_nll_cases(),
    *_advantage_cases(),
    *_whiten_cases(),
    *_ppo_cases("ppo.clipped_policy_loss", _POLICY, ("logprobs",)),
    *_ppo_cases("ppo.clipped_value_loss", _VALUE, ("values",)),
    *_ppo_cases("ppo.ppo_loss", (*_POLICY, *_VALUE), ("logprobs", "values")),
    *_linear_ppo_cases(),
    *_sampling_cases(),
)
