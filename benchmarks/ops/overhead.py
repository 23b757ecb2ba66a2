"""What a call costs beside its work: microseconds on inputs so small that nothing else is left.

    OMP_NUM_THREADS=1 python -m benchmarks.ops.overhead [--backend native] [--rounds 15]

Three figures an op: the registered private op, the public function without a gradient, and forward and backward.
Medians of rounds that take turns. The last line is a multiplication by PyTorch itself, for the cost of autograd.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.core import workloads as ops
from benchmarks.core.tables import command, markdown
from benchmarks.core.timing import Step, cpu_seconds
from benchmarks.core.workloads import Draw, Workload
from instructrl import kernels
from instructrl.ops import use_backend

ROWS = ((ops.RANKING, (2, 3)), (ops.TOKEN_LOGPROBS, (2, 4)), (ops.POLICY, (4,)), (ops.PPO, (4,)),
        (ops.PPO_ADVANTAGES, (2, 4)), (ops.WHITEN, (2, 4)), (ops.SAMPLING, (2, 4)))  # fmt: skip


class Registered(TorchDispatchMode):
    """Keeps the call of ours that is made inside."""

    call: Step

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "instructrl":
            self.call = partial(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def steps_of(work: Workload, shape: tuple[int, ...]) -> list[Callable[[], object]]:
    """Registered, public, and forward and backward where there is one."""
    draw = Draw(generator=torch.Generator().manual_seed(0))
    plain, leaves = work.inputs(draw, *shape, gradients=False), work.inputs(draw, *shape)
    with Registered() as registered:
        work.call(**plain)
    one, wanted = torch.ones(work.call(**plain).shape) if work.leaves else None, [leaves[x] for x in work.leaves]
    both = [lambda: torch.autograd.grad(work.call(**leaves), wanted, one)] if work.leaves else []
    return [registered.call, partial(work.call, **plain), *both]


def multiplication() -> list[Callable[[], object]]:
    x, a = torch.randn(4), torch.randn(4).requires_grad_()
    return [lambda: torch.mul(x, x), lambda: x * x, lambda: torch.autograd.grad((a * x).sum(), a)]


def main() -> None:
    arguments = command(__doc__, backend="native", rounds=15)
    if why := kernels.why_missing(arguments.backend):
        raise SystemExit(f"{arguments.backend}: {why}")
    with use_backend(arguments.backend):
        found = {work.op.split(".")[1]: steps_of(work, shape) for work, shape in ROWS}
        found["torch.mul"] = multiplication()
        every = {f"{name} {place}": step for name, steps in found.items() for place, step in enumerate(steps)}
        times = {name: f"{1e6 * statistics.median(x):.1f}" for name, x in cpu_seconds(every, arguments.rounds).items()}
    rows = [[name, *(times.get(f"{name} {place}", "") for place in range(3))] for name in found]
    print(markdown(("microseconds a call", "registered", "public", "fwd + bwd"), rows), end="")


if __name__ == "__main__":
    main()
