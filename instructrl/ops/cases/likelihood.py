"""Cases of `instructrl.ops.likelihood`."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from instructrl.ops.cases.case import Arguments, Case, poisoned, seeded
from instructrl.ops.cases.logprobs import linear_cases
from instructrl.ops.logit_settings import LogitSettings


def _linear_nll(dtype: torch.dtype, make: Callable[[torch.dtype], Arguments]) -> Arguments:
    arguments = make(dtype)
    arguments.pop("temperature", None)
    return {"mask": torch.ones_like(arguments["tokens"], dtype=torch.bool)} | arguments


def _weighted_nll(dtype: torch.dtype, make: Callable[[torch.dtype], Arguments]) -> Arguments:
    arguments = _linear_nll(dtype, make)
    weights = torch.rand(arguments["mask"].shape, generator=seeded("weighted nll"))
    arguments["weights"] = poisoned(torch.where(weights < 0.2, 0.0, weights), arguments["mask"])
    return arguments | {"logit_settings": LogitSettings(scale=1.3, softcap=5.0)}


def cases() -> list[Case]:
    found = linear_cases("likelihood.linear_nll_loss")
    weighted = [
        replace(case, name="weights", make=partial(_weighted_nll, make=case.make))
        for case in found
        if case.name == "masked"
    ]
    return [*(replace(case, make=partial(_linear_nll, make=case.make)) for case in found), *weighted]
