"""Cases of `instructrl.ops.likelihood`."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from instructrl.ops.cases.case import Arguments, Case
from instructrl.ops.cases.logprobs import linear_cases


def _linear_nll(dtype: torch.dtype, make: Callable[[torch.dtype], Arguments]) -> Arguments:
    arguments = make(dtype)
    arguments.pop("temperature", None)
    return {"mask": torch.ones_like(arguments["tokens"], dtype=torch.bool)} | arguments


def cases() -> list[Case]:
    return [
        replace(case, make=partial(_linear_nll, make=case.make)) for case in linear_cases("likelihood.linear_nll_loss")
    ]
