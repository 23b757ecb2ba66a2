"""Cases of `instructrl.ops.logprobs`."""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from instructrl.ops.cases.case import Arguments, Case, poisoned, random_mask, seeded
from instructrl.ops.logit_settings import LogitSettings


def logits(dtype: torch.dtype, num_rows: int, num_classes: int, kind: str = "") -> Arguments:
    generator = seeded(f"{kind}{num_rows}{num_classes}")
    width = num_classes + (3 if kind == "misaligned" else 0)
    logits = 3.0 * torch.randn((num_rows, width), generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, num_classes, (num_rows,), generator=generator)
    arguments: Arguments = {"logits": logits, "tokens": tokens}
    if kind == "temperature":
        arguments["temperature"] = 0.7
    elif kind == "logits of 1e4":
        logits.mul_(1e4 / 3.0)
    elif kind == "scaled":
        arguments["logit_settings"] = LogitSettings(scale=0.25)
    elif kind == "capped":
        arguments |= {"logit_settings": LogitSettings(scale=2.0, softcap=30.0), "temperature": 0.7}
    elif kind == "capped logits of 1e4":
        arguments["logit_settings"] = LogitSettings(softcap=50.0)
        logits.mul_(1e4 / 3.0)
    elif kind == "allowed":
        arguments["allowed"] = _allowed(tokens, num_classes, generator)
    elif kind == "capped and allowed":
        arguments |= {"logit_settings": LogitSettings(softcap=5.0), "allowed": _allowed(tokens, num_classes, generator)}
    elif kind == "capped, allowed and some -inf":
        arguments |= {"logit_settings": LogitSettings(softcap=5.0), "allowed": _allowed(tokens, num_classes, generator)}
        hole = random_mask((num_rows, width), generator, 0.3).scatter_(1, tokens.unsqueeze(1), False)
        logits.masked_fill_(hole, -math.inf)
    elif kind == "one finite":
        logits.fill_(-math.inf).scatter_(1, tokens.unsqueeze(1), 1.5)
    elif kind == "some -inf":
        hole = random_mask((num_rows, width), generator, 0.5).scatter_(1, tokens.unsqueeze(1), False)
        logits.masked_fill_(hole, -math.inf)
    elif kind == "nearly certain":
        logits.scatter_add_(1, tokens.unsqueeze(1), torch.full((num_rows, 1), 12.0, dtype=torch.float64))
    elif kind in ("masked", "all masked"):
        mask = random_mask((num_rows,), generator, 0.6 if kind == "masked" else 0.0)
        arguments |= {"mask": mask, "tokens": torch.where(mask, tokens, -100)}
        arguments["logits"] = poisoned(logits, mask)
    arguments["logits"] = arguments["logits"].to(dtype)
    if kind == "misaligned":
        arguments["logits"] = arguments["logits"][:, 3:]
    return arguments


def _allowed(tokens: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """[V], some of the ids and all of the tokens."""
    return random_mask((num_classes,), generator, 0.6).index_fill_(0, tokens, True)


_LOGITS_KINDS = (
    "scaled",
    "allowed",
    "capped, allowed and some -inf",
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
    makes = {f"{n}x{v}": partial(logits, num_rows=n, num_classes=v) for n, v in sizes}
    makes |= {kind: partial(logits, num_rows=7, num_classes=33, kind=kind) for kind in _LOGITS_KINDS}
    # Of logits of 1e4 few are off the cap: 300 classes, so that some have a gradient.
    makes["capped logits of 1e4"] = partial(logits, num_rows=7, num_classes=300, kind="capped logits of 1e4")
    # More classes than a block of the native kernels has.
    makes["capped"] = partial(logits, num_rows=3, num_classes=2100, kind="capped")
    large = partial(logits, num_rows=1024, num_classes=50257)
    return [Case(op=op, name=name, make=make, gradients=("logits",)) for name, make in makes.items()] + [
        Case(op=op, name="1024x50257", make=large, gradients=("logits",), large=True)
    ]


def linear(
    dtype: torch.dtype, num_rows: int, num_hidden: int, num_classes: int, kind: str = "", num_chunks: int = 1
) -> Arguments:
    generator = seeded(f"{kind}{num_rows}{num_hidden}{num_classes}")
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    hidden, tokens = draw((num_rows, num_hidden)), torch.randint(0, num_classes, (num_rows,), generator=generator)
    weight = draw((num_classes, num_hidden)) / math.sqrt(max(num_hidden, 1)) * 3.0
    arguments: Arguments = {"hidden": hidden.to(dtype), "weight": weight.to(dtype), "tokens": tokens}
    if num_chunks > 1:
        arguments["max_workspace_bytes"] = 16 * num_classes * math.ceil(num_rows / num_chunks)
    if kind == "bias and temperature":
        arguments |= {"bias": draw((num_classes,)).to(dtype), "temperature": 0.7}
    if kind == "capped, an id excluded":
        # Of the last id, which no token is.
        excluded = draw((num_classes,)).index_fill_(0, torch.tensor([num_classes - 1]), -math.inf)
        arguments |= {"bias": excluded.to(dtype), "logit_settings": LogitSettings(scale=0.5, softcap=3.0)}
        arguments["tokens"] = tokens.clamp(max=num_classes - 2)
    if kind in ("masked", "all masked"):
        mask = random_mask((num_rows,), generator, 0.6 if kind == "masked" else 0.0)
        arguments |= {"mask": mask, "tokens": torch.where(mask, tokens, num_classes)}
        arguments["hidden"] = poisoned(hidden, mask).to(dtype)
    return arguments


_WITH_BIAS = ("bias and temperature", "capped, an id excluded")


def _linear_makes() -> Mapping[str, Callable[[torch.dtype], Arguments]]:
    sizes = [(1, 1, 1), (5, 8, 257), (0, 4, 7), (2, 3, 50257)]
    makes = {f"{n}x{d}x{v}": partial(linear, num_rows=n, num_hidden=d, num_classes=v) for n, d, v in sizes}
    for kind in (*_WITH_BIAS, "masked", "all masked"):
        makes[kind] = partial(linear, num_rows=13, num_hidden=8, num_classes=33, kind=kind, num_chunks=3)
    return makes


def linear_cases(op: str) -> list[Case]:
    cases = []
    for name, make in _linear_makes().items():
        gradients = ("hidden", "weight", "bias") if name in _WITH_BIAS else ("hidden", "weight")
        cases.append(Case(op=op, name=name, make=make, gradients=gradients))
    large = partial(linear, num_rows=1024, num_hidden=256, num_classes=50257)
    cases.append(Case(op=op, name="1024x256x50257", make=large, gradients=("hidden", "weight"), large=True))
    return cases


def cases() -> list[Case]:
    return [
        *_logits_cases("logprobs.token_logprobs"),
        *_logits_cases("logprobs.token_logprobs_and_entropy"),
        *linear_cases("logprobs.linear_token_logprobs"),
        *linear_cases("logprobs.linear_token_logprobs_and_entropy"),
    ]
