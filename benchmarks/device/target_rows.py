"""What targets.py measures: inputs, those who compute, the truth they are held against, and the targets."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.core import workloads
from benchmarks.core.peers import DEVICE_PEERS
from benchmarks.core.workloads import (
    BACKWARD,
    BOTH,
    COMPILE,
    EAGER,
    FORWARD,
    Draw,
    Inputs,
    Provider,
    Workload,
    beside,
    doubled,
    running,
)
from instructrl import kernels, ops

BACKENDS = ("native", "triton")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """measure: a key of `target_measure.figures`. bound: in its unit. at_least: else at most."""

    text: str
    measure: str
    bound: float
    at_least: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A row made ready. sets: of inputs, in turn, so that they do not stay in the cache. truth: float64, of the first
    set, as `pick` takes it from a provider's results. gate: what that is, in words. num_bytes, num_flops: the least
    that a step must move and multiply."""

    sets: list[Inputs]
    providers: dict[str, Provider]
    truth: list[Tensor]
    gate: str
    pick: Callable[[list[Tensor]], list[Tensor]] = list
    num_bytes: int = 0
    num_flops: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """device: where. dry: tiny shapes and no compiler. cache_bytes: of the last cache."""

    device: torch.device
    dry: bool
    cache_bytes: int

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def sets(self, make: Callable[[torch.Generator], Inputs]) -> list[Inputs]:
        """As many as are four times the cache together, at most 8 and at least 2; 1 where one is as much."""
        first = make(self.generator(0))
        size = sum(x.nbytes for x in first.values() if isinstance(x, Tensor))
        number = min(8, -(-4 * self.cache_bytes // size))
        return [first, *(make(self.generator(seed)) for seed in range(1, number))]

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, backend="eager" if self.dry else "inductor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """yardstick: "copy" or "product": what is timed beside the providers in each round, "" for nothing. graph: device
    time by replaying a graph. limit_s: after which the row is cut off."""

    name: str
    prepare: Callable[[Setting], Prepared]
    targets: tuple[Target, ...] = ()
    yardstick: str = "copy"
    graph: bool = False
    limit_s: int = 50


def providers(work: Workload, part: str, setting: Setting, reference: bool = False) -> dict[str, Provider]:
    """reference: among them, as the gate of ours, where others write another formula."""
    plain = work.plain or work.call
    found = {backend: Provider(run=work.run(part), backend=backend) for backend in BACKENDS}
    if reference:
        found["reference"] = Provider(run=work.run(part))
    found |= {EAGER: Provider(run=work.plain_run(part))}
    found |= {COMPILE: Provider(run=running(setting.compiled(plain), work.leaves, part))}
    return found | {
        name: beside(peer, work.leaves, part)
        for name, peer in DEVICE_PEERS.get(work.op, {}).items()
        # The backward of one that writes over its inputs has nothing left to do: its forward makes the gradient.
        if part != BACKWARD or not peer.writes_over
    }


def reference_truth(work: Workload, x: Inputs, part: str) -> list[Tensor]:
    with ops.use_backend(kernels.REFERENCE):
        return [y.detach() for y in work.run(part)(doubled(x))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a row, and a tiny one for dry runs. dtype: as in `Draw`. upstream: gradients come from random numbers."""

    full: tuple[int, ...]
    tiny: tuple[int, ...]
    dtype: torch.dtype | None = None
    upstream: bool = False

    def inputs(self, work: Workload, setting: Setting, generator: torch.Generator, gradients: bool = True) -> Inputs:
        draw = Draw(generator=generator, dtype=self.dtype, counts=workloads.prefixes(0.875))
        found = work.inputs(draw, *(self.tiny if setting.dry else self.full), gradients=gradients)
        return found | ({"upstream": draw.normal(*found["tokens"].shape)} if self.upstream else {})


def nothing(x: Inputs) -> int:
    return 0


def token_row(
    work: Workload, name: str, shape: Shape, moved: Callable[[Inputs], int] = nothing, part: str = BOTH, *,
    flops: Callable[[Inputs], int] = nothing, gradients: bool = True, reference: bool = False, gate: str = "float64",
    truth: Callable[..., list[Tensor]] = reference_truth, pick: Callable[[list[Tensor]], list[Tensor]] = list,
    **settings: Any,
) -> Row:  # fmt: skip
    """A row of an op. moved, flops: of a step. gradients: whether leaves need them. truth: of the op, a set and the
    part, as `pick` takes it. reference: as in `providers`."""

    def prepare(setting: Setting) -> Prepared:
        sets = setting.sets(partial(shape.inputs, work, setting, gradients=gradients))
        exact, every = truth(work, sets[0], part), providers(work, part, setting, reference)
        return Prepared(sets=sets, providers=every, truth=exact, gate=gate, pick=pick, num_bytes=moved(sets[0]),
                        num_flops=flops(sets[0]))  # fmt: skip

    return Row(name=name, prepare=prepare, **settings)


def ranking_row(part: str, targets: tuple[Target, ...]) -> Row:
    passes = 1 if part == FORWARD else 2
    return token_row(
        workloads.RANKING, f"ranking {part}, 1024 x 9", Shape(full=(1024, 9), tiny=(5, 9)), part=part,
        moved=lambda x: passes * x["scores"].nbytes + x["preferred"].nbytes, targets=targets, graph=True, limit_s=40,
    )  # fmt: skip


def counts(x: Inputs) -> tuple[int, int]:
    """Positions that count, and all of them."""
    return int(x["mask"].sum()), x["mask"].numel()


def advantages_row(rows: int, length: int, targets: tuple[Target, ...], fused: bool = False) -> Row:
    """fused: with the KL penalty and the score in front."""
    work, name = (workloads.PPO_ADVANTAGES, "ppo") if fused else (workloads.GAE, "generalized")

    def moved(x: Inputs) -> int:
        counted, total = counts(x)
        return 12 * counted + 13 * total if fused else 8 * counted + 9 * total

    shape = Shape(full=(rows, length), tiny=(3, 37))
    name = f"{name}_advantages {rows} x {length}"
    return token_row(work, name, shape, moved, targets=targets, graph=True, limit_s=40)


def ppo_row(tokens: str, shape: tuple[int, int], part: str, targets: tuple[Target, ...]) -> Row:
    """part: "forward", which makes the gradients, or "forward + backward", which scales and returns them."""

    def moved(x: Inputs) -> int:
        counted, total = counts(x)
        # Six tensors and the mask are read, two gradients written; the backward reads and writes those again.
        return 24 * counted + 9 * total + (0 if part == FORWARD else 16 * total)

    name, small = f"ppo_loss {part}, {tokens} tokens", shape[0] * shape[1] <= 2**20
    return token_row(workloads.PPO, name, Shape(full=shape, tiny=(3, 37)), moved, part, targets=targets, graph=small)


def every_eighth(results: list[Tensor]) -> list[Tensor]:
    return [x[::8] for x in results]


def logits_row(classes: int, part: str, targets: tuple[Target, ...]) -> Row:
    """8192 rows of bfloat16 logits."""
    shape = Shape(full=(8192, classes), tiny=(16, 67 if classes % 8 else 64), dtype=torch.bfloat16, upstream=True)

    def moved(x: Inputs) -> int:
        small = {FORWARD: 12, BACKWARD: 20, BOTH: 16}[part] * x["tokens"].numel()
        return (1 if part == FORWARD else 2) * x["logits"].nbytes + small

    return token_row(
        workloads.TOKEN_LOGPROBS, f"token_logprobs {part}, 8192 x {classes} bfloat16", shape, moved, part,
        gradients=part != FORWARD, truth=_logits_truth, pick=every_eighth, gate="float64, every eighth row",
        targets=targets,
    )  # fmt: skip


def _logits_truth(work: Workload, x: Inputs, part: str) -> list[Tensor]:
    """By the definition, of every eighth row: the reference in float64 would take all of the memory."""
    logits, tokens, upstream = every_eighth([x[name].detach() for name in ("logits", "tokens", "upstream")])
    log_p, index = torch.log_softmax(logits, dim=-1, dtype=torch.float64), tokens.unsqueeze(-1)
    found = [log_p.gather(-1, index).squeeze(-1)] if part != BACKWARD else []
    if part != FORWARD:
        gradient = log_p.exp_().neg_().scatter_add_(-1, index, torch.ones_like(index, dtype=torch.float64))
        found.append(gradient.mul_(upstream.unsqueeze(-1)))
    return found


def head_row(work: Workload, part: str, targets: tuple[Target, ...]) -> Row:
    """4 sequences of 1024 tokens, D 4096, V 128256, in bfloat16."""
    linear = work is workloads.LINEAR_LOGPROBS
    places = ((4096,), (12,)) if linear else ((4, 1024), (2, 6))
    full, tiny = (4096, 128256, *places[0]), (16, 67, *places[1])
    return token_row(
        work, f"{work.op.split('.')[1]} {part}, 4096 tokens, D 4096, V 128256 bfloat16",
        Shape(full=full, tiny=tiny, dtype=torch.bfloat16, upstream=linear), part=part, gradients=part != FORWARD,
        flops=lambda x: (2 if part == FORWARD else 6) * x["hidden"].numel() * x["weight"].shape[0],
        truth=lambda *row: _picked(reference_truth(*row)), pick=_picked, reference=True,
        gate="float64, of the gradient of the weight every eighth row", targets=targets, yardstick="product",
        limit_s=70,
    )  # fmt: skip


def _picked(results: list[Tensor]) -> list[Tensor]:
    """The gradient of the weight is the third: every eighth row of it."""
    return [x[::8].contiguous() if place == 2 else x for place, x in enumerate(results)]
