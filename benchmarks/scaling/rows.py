"""What growth.py measures: the axes, the shapes of few rows, and the ops whose largest shape it looks for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.core.timing import Step, forced
from benchmarks.core.workloads import (
    LINEAR_LOGPROBS,
    LINEAR_NLL,
    LINEAR_PPO,
    PPO,
    PPO_ADVANTAGES,
    RANKING,
    SAMPLING,
    TOKEN_LOGPROBS,
    Draw,
    Workload,
)
from instructrl import kernels

V, WIDTH = 50257, 256
"""Of the linear ops whose largest shape is looked for, as in floors.py."""
OURS, EAGER = "ours", "eager"


def step_of(work: Workload, shape: tuple[int, ...], provider: str = OURS) -> Step:
    """Ours on the fastest backend that is here; eager advantages and ranking are the references: vectorised scans and
    masks, which beat loops. Memory does not depend on the numbers, so that rows may be the same."""
    inputs = work.inputs(Draw(generator=torch.Generator().manual_seed(0), repeated=True), *shape)
    run, backend = (work.run(), "") if provider == OURS else (work.plain_run(), kernels.REFERENCE)

    def step() -> object:
        with forced(backend):
            return run(inputs)

    return step


def touch_code() -> None:
    """Every op once on a few numbers, so that the pages of its code are there and count for no size."""
    heads = ((work, (1, 2, 1)) for work in (LINEAR_NLL, LINEAR_LOGPROBS, LINEAR_PPO))
    for work, shape in (*heads, (TOKEN_LOGPROBS, (1, 2)), (PPO, (1,)), (PPO_ADVANTAGES, (1, 1)), (RANKING, (1, 2)),
                        (SAMPLING, (1, 2))):  # fmt: skip
        step_of(work, shape)()


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """axis: what a size counts. shape: from a size to that of the op. expected: the slope of time that the arithmetic
    says. memory: that of outputs, gradients and scratch; what does not grow beside them (a workspace, the gradient of
    the other operand) makes it less.
    """

    work: Workload
    axis: str
    sizes: tuple[Any, ...]
    shape: Callable[[Any], tuple[int, ...]]
    expected: int = 1
    memory: int = 1

    @property
    def op(self) -> str:
        return self.work.op.split(".")[1]

    def make(self, size: int) -> Step:
        return step_of(self.work, self.shape(size))


def powers(first: int, last: int) -> tuple[int, ...]:
    return tuple(2**i for i in range(first, last + 1))


AXES = (
    Axis(work=TOKEN_LOGPROBS, axis="tokens (V = 8192)", sizes=powers(8, 14), shape=lambda n: (n, 8192)),
    Axis(work=TOKEN_LOGPROBS, axis="V (512 tokens)", sizes=powers(11, 17), shape=lambda v: (512, v)),
    Axis(work=TOKEN_LOGPROBS, axis="batch (T = 64, V = 8192)", sizes=powers(0, 7), shape=lambda b: (b, 64, 8192)),
    Axis(work=LINEAR_NLL, axis="tokens (D = 128, V = 8192)", sizes=powers(8, 14), shape=lambda n: (128, 8192, n)),
    Axis(work=LINEAR_NLL, axis="V (512 tokens, D = 128)", sizes=powers(11, 16), shape=lambda v: (128, v, 512)),
    Axis(work=LINEAR_NLL, axis="D (512 tokens, V = 8192)", sizes=powers(6, 11), shape=lambda d: (d, 8192, 512)),
    Axis(work=LINEAR_NLL, axis="batch (T = 64, D = 128, V = 8192)", sizes=powers(0, 7),
         shape=lambda b: (128, 8192, b, 64)),
    Axis(work=LINEAR_PPO, axis="batch (T = 64, D = 128, V = 8192)", sizes=powers(0, 7),
         shape=lambda b: (128, 8192, b, 64)),
    Axis(work=PPO, axis="tokens", sizes=powers(15, 22), shape=lambda n: (n,)),
    Axis(work=PPO, axis="batch (T = 256)", sizes=powers(0, 14), shape=lambda b: (b, 256)),
    Axis(work=PPO_ADVANTAGES, axis="T (16 rows)", sizes=powers(11, 17), shape=lambda t: (16, t)),
    Axis(work=PPO_ADVANTAGES, axis="batch (T = 256)", sizes=powers(0, 14), shape=lambda b: (b, 256)),
    Axis(work=RANKING, axis="prompts (K = 9)", sizes=powers(10, 17), shape=lambda p: (p, 9)),
    Axis(work=RANKING, axis="K (512 prompts)", sizes=powers(4, 9), expected=2, memory=2, shape=lambda k: (512, k)),
    Axis(work=SAMPLING, axis="batch (V = 8192)", sizes=powers(0, 13), memory=0, shape=lambda b: (b, 8192)),
    Axis(work=SAMPLING, axis="V (64 rows)", sizes=powers(12, 18), memory=0, shape=lambda v: (64, v)),
)  # fmt: skip


# Of (rows, length). The last one has many rows and as many elements as the largest of few.
FEW_ROWS = (
    Axis(work=PPO_ADVANTAGES, axis="T", shape=tuple,
         sizes=(*((b, t) for t in (2**11, 2**14, 2**17) for b in (1, 2, 4, 16)), (2**11, 2**10))),
    Axis(work=TOKEN_LOGPROBS, axis="V", shape=tuple,
         sizes=(*((b, v) for v in (2**17, 2**20, 2**22) for b in (1, 2, 4)), (2**11, 2**13))),
)  # fmt: skip


# Ops whose largest size is looked for, from one that surely fits.
LARGEST = (
    Axis(work=TOKEN_LOGPROBS, axis=f"tokens, V = {V}", sizes=(64,), shape=lambda n: (n, V)),
    Axis(work=LINEAR_LOGPROBS, axis=f"tokens, V = {V}, D = {WIDTH}", sizes=(64,), shape=lambda n: (WIDTH, V, n)),
    Axis(work=LINEAR_PPO, axis=f"tokens, V = {V}, D = {WIDTH}", sizes=(64,), shape=lambda n: (WIDTH, V, n)),
    Axis(work=PPO_ADVANTAGES, axis="rows of 1024 tokens", sizes=(1024,), shape=lambda b: (b, 1024)),
    Axis(work=RANKING, axis="prompts, K = 9", sizes=(2**15,), shape=lambda p: (p, 9)),
)
