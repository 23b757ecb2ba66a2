"""What growth.py measures: the axes, the shapes of few rows, and the ops whose largest shape it looks for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.core import workloads as ops
from benchmarks.core.rows import V
from benchmarks.core.timing import Step, forced
from instructrl import kernels

OURS, EAGER = "ours", "eager"


def step_of(work: ops.Workload, shape: tuple[int, ...], provider: str = OURS) -> Step:
    """Ours on the fastest backend that is here; eager advantages and ranking are the references: vectorised scans and
    masks, which beat loops. Memory does not depend on the numbers, so that rows may be the same."""
    inputs = work.inputs(ops.Draw(generator=torch.Generator().manual_seed(0), repeated=True), *shape)
    run, backend = (work.run(), "") if provider == OURS else (work.plain_run(), kernels.REFERENCE)

    def step() -> object:
        with forced(backend):
            return run(inputs)

    return step


def touch_code() -> None:
    """Every op once on a few numbers, so that the pages of its code are there and count for no size."""
    for work in (ops.LINEAR_NLL, ops.LINEAR_LOGPROBS, ops.LINEAR_PPO):
        step_of(work, (1, 2, 1))()
    for work in (ops.TOKEN_LOGPROBS, ops.PPO, ops.PPO_ADVANTAGES, ops.RANKING, ops.SAMPLING):
        step_of(work, (1, 2))()


@dataclass(frozen=True, slots=True)
class Axis:
    """axis: what a size counts. shape: from a size to that of the op. expected: the slope of time that the arithmetic
    says. memory: that of outputs, gradients and scratch; what does not grow beside them (a workspace, the gradient of
    the other operand) makes it less.
    """

    work: ops.Workload
    axis: str
    sizes: tuple[Any, ...]
    shape: Callable[[Any], tuple[int, ...]]
    expected: int = 1
    memory: int = 1

    @property
    def op(self) -> str:
        return self.work.op.split(".")[1]


def powers(first: int, last: int) -> tuple[int, ...]:
    return tuple(2**i for i in range(first, last + 1))


AXES = (
    Axis(ops.TOKEN_LOGPROBS, "tokens (V = 8192)", powers(8, 14), lambda n: (n, 8192)),
    Axis(ops.TOKEN_LOGPROBS, "V (512 tokens)", powers(11, 17), lambda v: (512, v)),
    Axis(ops.TOKEN_LOGPROBS, "batch (T = 64, V = 8192)", powers(0, 7), lambda b: (b, 64, 8192)),
    Axis(ops.LINEAR_NLL, "tokens (D = 128, V = 8192)", powers(8, 14), lambda n: (128, 8192, n)),
    Axis(ops.LINEAR_NLL, "V (512 tokens, D = 128)", powers(11, 16), lambda v: (128, v, 512)),
    Axis(ops.LINEAR_NLL, "D (512 tokens, V = 8192)", powers(6, 11), lambda d: (d, 8192, 512)),
    Axis(ops.LINEAR_NLL, "batch (T = 64, D = 128, V = 8192)", powers(0, 7), lambda b: (128, 8192, b, 64)),
    Axis(ops.LINEAR_PPO, "batch (T = 64, D = 128, V = 8192)", powers(0, 7), lambda b: (128, 8192, b, 64)),
    Axis(ops.PPO, "tokens", powers(15, 22), lambda n: (n,)),
    Axis(ops.PPO, "batch (T = 256)", powers(0, 14), lambda b: (b, 256)),
    Axis(ops.PPO_ADVANTAGES, "T (16 rows)", powers(11, 17), lambda t: (16, t)),
    Axis(ops.PPO_ADVANTAGES, "batch (T = 256)", powers(0, 14), lambda b: (b, 256)),
    Axis(ops.RANKING, "prompts (K = 9)", powers(10, 17), lambda p: (p, 9)),
    Axis(ops.RANKING, "K (512 prompts)", powers(4, 9), lambda k: (512, k), expected=2, memory=2),
    Axis(ops.SAMPLING, "batch (V = 8192)", powers(0, 13), lambda b: (b, 8192), memory=0),
    Axis(ops.SAMPLING, "V (64 rows)", powers(12, 18), lambda v: (64, v), memory=0),
)
# Of (rows, length). The last one has many rows and as many elements as the largest of few.
FEW_ROWS = (
    Axis(ops.PPO_ADVANTAGES, "T", (*((b, 2**n) for n in (11, 14, 17) for b in (1, 2, 4, 16)), (2**11, 2**10)), tuple),
    Axis(ops.TOKEN_LOGPROBS, "V", (*((b, 2**n) for n in (17, 20, 22) for b in (1, 2, 4)), (2**11, 2**13)), tuple),
)
# Ops whose largest size is looked for, from one that surely fits.
LARGEST = (
    Axis(ops.TOKEN_LOGPROBS, f"tokens, V = {V}", (64,), lambda n: (n, V)),
    Axis(ops.LINEAR_LOGPROBS, f"tokens, V = {V}, D = 256", (64,), lambda n: (256, V, n)),
    Axis(ops.LINEAR_PPO, f"tokens, V = {V}, D = 256", (64,), lambda n: (256, V, n)),
    Axis(ops.PPO_ADVANTAGES, "rows of 1024 tokens", (1024,), lambda b: (b, 1024)),
    Axis(ops.RANKING, "prompts, K = 9", (2**15,), lambda p: (p, 9)),
)
