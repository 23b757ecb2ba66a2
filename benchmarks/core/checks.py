"""Whether somebody computes the same as float64 does: no time of one who does not is taken."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps
ROUNDINGS = 4.0
FLOAT32_PEER = 1e-4


class Distance(NamedTuple):
    """Of one result from the truth. largest: error, infinite where there is a NaN. norm: of the error over that of the
    truth. eps: of the result's dtype where that is a half one, else 0. top: the truth's largest magnitude."""

    largest: float
    norm: float
    eps: float
    top: float


def distance(x: Tensor, truth: Tensor) -> Distance:
    if x.shape != truth.shape:
        raise ValueError(f"results: found shape {tuple(x.shape)}, accepted is {tuple(truth.shape)}")
    truth = truth.to(torch.float64)
    error = x.to(torch.float64).sub_(truth)
    found = float(error.abs().max()), float(error.norm() / truth.norm().clamp(min=1e-300))
    largest, norm = found if all(number == number for number in found) else (float("inf"), float("inf"))
    eps = torch.finfo(x.dtype).eps if x.dtype in (torch.bfloat16, torch.float16) else 0.0
    return Distance(largest, norm, eps, float(truth.abs().max()))


def distances(results: Sequence[Tensor], truth: Sequence[Tensor]) -> list[Distance]:
    if len(results) != len(truth):
        raise ValueError(f"found {len(results)} results, accepted is {len(truth)}")
    return [distance(x, exact) for x, exact in zip(results, truth, strict=True)]


def why_ours(found: list[Distance], eager: list[Distance]) -> str:
    """At most twice as far from float64 as eager PyTorch in float32, with some roundings to float32 and one to the
    dtype of the result; "" for what is right."""
    for place, (x, plain) in enumerate(zip(found, eager, strict=True)):
        bound = 2 * plain.largest + (ROUNDINGS * EPS + x.eps) * x.top
        if not x.largest <= bound:
            return f"wrong: result {place}: largest error {x.largest:.3g}, accepted is {bound:.3g}"
    return ""


def why_peer(found: list[Distance], eager: list[Distance], inputs: Sequence[object]) -> str:
    """Another algorithm rounds elsewhere: the norm of its error is at most twice that of eager PyTorch's, and a
    rounding to bfloat16 where that is the dtype of an input, else 1e-4. "" for what is right."""
    low = any(isinstance(x, Tensor) and x.dtype == torch.bfloat16 for x in inputs)
    slack = torch.finfo(torch.bfloat16).eps if low else FLOAT32_PEER
    for place, (x, plain) in enumerate(zip(found, eager, strict=True)):
        if not x.norm <= 2 * plain.norm + slack:
            return f"wrong: result {place}: relative error {x.norm:.3g}, accepted is {2 * plain.norm + slack:.3g}"
    return ""
