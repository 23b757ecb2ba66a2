"""A quick look at whether a backend computes: small operations, forward and backward, whose results are known by hand.

It finds a backend that does not load, does not launch or is built for another machine. How accurate a backend is, the
tests say.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from instructrl import kernels
from instructrl.ops import dispatch, logprobs, ppo, ranking

# Inputs such as log 3 are rounded too, so a right result is off by a few roundings and not by one.
_ROUNDINGS = 8


class _Answer(NamedTuple):
    value: Tensor
    gradient: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One operation on numbers whose answer is known.

    ask: from a device to the operation's value (0-dim) and its gradient. value, gradient: the right answer.
    """

    op: str
    ask: Callable[[torch.device], _Answer]
    value: float
    gradient: tuple[float, ...]


class Finding(NamedTuple):
    """What came of the probes of one backend on one kind of device.

    ops: those that were probed. error: what went wrong, "" where nothing did. seconds: of all probes together.
    """

    backend: str
    device: str
    ops: tuple[str, ...]
    error: str
    seconds: float


def _ranking(device: torch.device) -> _Answer:
    scores = torch.tensor([[math.log(3), 0.0]], device=device, requires_grad=True)
    preferred = torch.tensor([[[False, True], [False, False]]], device=device)
    return _differentiated(ranking.pairwise_ranking_loss(scores, preferred).loss_sum.sum(), scores)


def _logprobs(device: torch.device) -> _Answer:
    logits = torch.tensor([[math.log(3), 0.0]], device=device, requires_grad=True)
    return _differentiated(logprobs.token_logprobs(logits, torch.tensor([0], device=device)).sum(), logits)


def _policy_loss(device: torch.device) -> _Answer:
    new = torch.tensor([math.log(1.1), math.log(2)], device=device, requires_grad=True)
    old, advantages = torch.zeros(2, device=device), torch.ones(2, device=device)
    mask = torch.ones(2, dtype=torch.bool, device=device)
    return _differentiated(ppo.clipped_policy_loss(new, old, advantages, mask).loss, new)


def _differentiated(value: Tensor, argument: Tensor) -> _Answer:
    (gradient,) = torch.autograd.grad(value, argument)
    return _Answer(value.detach(), gradient)


PROBES = (
    # softplus(0 - log 3) = log(1 + 1/3); its slope in the loser's score is sigmoid(-log 3) = 1/4.
    Probe(op="ranking.pairwise_ranking_loss", ask=_ranking, value=math.log(4 / 3), gradient=(-0.25, 0.25)),
    # Probabilities 3/4 and 1/4 of the two tokens; the gradient is one-hot minus probabilities.
    Probe(op="logprobs.token_logprobs", ask=_logprobs, value=math.log(3 / 4), gradient=(0.25, -0.25)),
    # Ratios 1.1, inside the clip range, and 2, which is clipped to 1.2 and has no slope; the mean over two tokens.
    Probe(op="ppo.clipped_policy_loss", ask=_policy_loss, value=-1.15, gradient=(-0.55, 0.0)),
)


def self_test(backend: str) -> list[Finding]:
    """Put the probes to a backend, on each kind of device that is here and on which it is chosen unasked.

    Returns one finding a device, none where the backend is not here or implements nothing that is probed.
    """
    findings = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        probes = [probe for probe in PROBES if _is_chosen(backend, probe.op, device)]
        if probes:
            start = time.perf_counter()
            with dispatch.use_backend(backend):
                error = _first_error(probes, torch.device(device))
            seconds = time.perf_counter() - start
            findings.append(Finding(backend, device, tuple(probe.op for probe in probes), error, seconds))
    return findings


def _is_chosen(backend: str, op: str, device: str) -> bool:
    return backend == kernels.REFERENCE or kernels.implementation(op, backend) in kernels.candidates(op, device)


def _first_error(probes: list[Probe], device: torch.device) -> str:
    for probe in probes:
        try:
            answer = probe.ask(device)
        except RuntimeError as error:  # of torch, a compiler or a driver: the finding that a self-test is for
            return f"{probe.op}: {type(error).__name__}: {error}".splitlines()[0]
        for name, found, right in (
            ("value", [answer.value.item()], (probe.value,)),
            ("gradient", answer.gradient.flatten().tolist(), probe.gradient),
        ):
            if not _close(found, right):
                return f"{probe.op}: found the {name} {found}, right is {list(right)}"
    return ""


def _close(found: list[float], right: tuple[float, ...]) -> bool:
    bound = _ROUNDINGS * torch.finfo(torch.float32).eps * max(map(abs, right))
    # Written so that NaN is not close.
    return len(found) == len(right) and all(abs(a - b) <= bound for a, b in zip(found, right, strict=True))
