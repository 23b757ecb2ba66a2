"""What is measured: an op on a shape, those who compute it, and what is asked for. One record for every question."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.core import workloads
from benchmarks.core.peers import WRITE_OVER, Peer, padded_with_zeros
from benchmarks.core.timing import CpuMeter, forced
from benchmarks.core.workloads import BACKWARD, BOTH, FORWARD, Draw, Inputs, Run, Workload, running
from instructrl import kernels

BACKENDS = ("native", "triton")
NATIVE, EAGER, COMPILE, WITHOUT = "native", "eager", "compile", "without"
"""Names of providers. The last one is the op without the option of the row."""
V = 50257


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """run: from one set of inputs to the tensors that are compared. backend: forced around it. once: it writes over
    what it reads, so only its first results are right. compared: whether it computes the same as the others."""

    run: Run
    backend: str = kernels.REFERENCE
    once: bool = False
    compared: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """measure: a key of `figures`, or the name of the provider that ours is so many times as fast as. bound: in its
    unit. at_least: else at most."""

    text: str
    measure: str
    bound: float
    at_least: bool = False


def faster(**than: float) -> tuple[Target, ...]:
    """Times as fast as providers, "_" in a name for a space."""
    found = {name.replace("_", " "): least for name, least in than.items()}
    return tuple(Target(text=f"at least {x:g} times as fast as {name}", measure=name, bound=x, at_least=True)
                 for name, x in found.items())  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table.

    shape, tiny: of the op, and in a test. gradients: whether leaves need them. dtype, counts: as in `Draw`. upstream:
    gradients come from random numbers. backends: of ours. others: providers beside eager PyTorch and torch.compile, or
    in place of one of ours. compile: whether torch.compile is beside. peers: libraries. limit: from a set of inputs to
    amounts of `YARDSTICKS`: what no version can do without. graph: device time by replaying a graph. limit_s: after
    which the row is cut off.
    """

    name: str
    work: Workload
    shape: tuple[int, ...] = ()
    tiny: tuple[int, ...] = ()
    part: str = BOTH
    gradients: bool = True
    dtype: torch.dtype | None = None
    counts: Callable[..., Tensor] = workloads.whole
    upstream: bool = False
    backends: tuple[str, ...] = (NATIVE,)
    others: Mapping[str, Provider] = field(default_factory=dict)
    compile: bool = True
    peers: Mapping[str, Peer] = field(default_factory=dict)
    limit: Callable[[Inputs], dict[str, int]] = lambda x: {}
    targets: tuple[Target, ...] = ()
    graph: bool = False
    limit_s: int = 50

    def inputs(self, meter: CpuMeter, seed: int = 0) -> Inputs:
        generator = torch.Generator(meter.device).manual_seed(seed)
        draw = Draw(generator=generator, dtype=self.dtype, counts=self.counts)
        found = self.work.inputs(draw, *(self.tiny if meter.tiny else self.shape), gradients=self.gradients)
        return found | ({workloads.UPSTREAM: draw.normal(*found["tokens"].shape)} if self.upstream else {})

    def sets(self, meter: CpuMeter) -> list[Inputs]:
        """As many as are four times the last cache together, at most 8; 1 where one is as much."""
        first = self.inputs(meter)
        size = sum(x.nbytes for x in first.values() if isinstance(x, Tensor))
        number = min(8, -(-4 * meter.cache_bytes // size))
        return [first, *(self.inputs(meter, seed) for seed in range(1, number))]

    def providers(self, meter: CpuMeter) -> dict[str, Provider]:
        work, part = self.work, self.part
        found = {name: Provider(run=work.run(part), backend=name) for name in self.backends}
        found[EAGER] = Provider(run=work.plain_run(part))
        if self.compile:
            compiler = "eager" if meter.tiny else "inductor"
            compiled = torch.compile(work.compiled or work.plain or work.call, backend=compiler)
            found[COMPILE] = Provider(run=running(compiled, work.leaves, part))
        for name, peer in self.peers.items():
            # The backward of one that writes over its inputs has nothing left to do: its forward makes the gradient.
            if part != BACKWARD or peer not in WRITE_OVER:
                found[name] = beside(peer, work.leaves, part, peer in WRITE_OVER)
        return {**found, **self.others}

    def truth(self, x: Inputs) -> list[Tensor]:
        with forced(kernels.REFERENCE):
            return self.work.plain_run(self.part)(doubled(x))


def beside(
    peer: Peer, leaves: tuple[str, ...], part: str, writes_over: bool, backend: str = kernels.REFERENCE
) -> Provider:
    """A peer, which lays out its constants at the first call with a set of inputs. It is imported there too, so that a
    process loads the libraries it runs."""
    made: dict[int, tuple[Inputs, Run]] = {}
    once = writes_over and part != FORWARD

    def run(x: Inputs) -> list[Tensor]:
        if id(x) not in made:
            given = padded_with_zeros(x)
            if once:
                # Of its own, made once: later calls read what the one before wrote.
                given |= {name: x[name].detach().clone() for name in leaves}
                made[id(x)] = given, running(lambda **now: peer(**now)(), leaves, part)
            else:
                call = peer(**{name: value for name, value in given.items() if name != workloads.UPSTREAM})
                made[id(x)] = given, running(lambda **_: call(), leaves, part)
        given, found = made[id(x)]
        if once:
            given |= {name: given[name].detach().requires_grad_() for name in leaves}
        return found(given)

    return Provider(run=run, once=once, backend=backend)


def doubled(x: Inputs) -> Inputs:
    """The same numbers in float64, as leaves that need gradients where they did."""
    found = dict(x)
    for name, value in x.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            found[name] = value.detach().double().requires_grad_(value.requires_grad)
    return found
