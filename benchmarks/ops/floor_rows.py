"""What floors.py measures: each op, those it is compared with, and the least ratio that is asked for."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.core import workloads
from benchmarks.core.workloads import COMPILE, EAGER, FORWARD, Draw, Inputs, Provider, Run, Workload
from instructrl.ops import linear

V = 50257
OURS, BARE, WITHOUT = "ours", "bare", "without"
"""Names among the times of a row; the last one computes something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Of this machine, in this run. fresh: memory that the process has not had before: page faults are most of it."""

    read_bytes_per_s: float
    fresh_bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    floors: the least ratio that is asked for, by provider. others: formulas beside eager and torch.compile. counts: the
    masks of the inputs. compared: whether the results of all providers must agree. num_bytes: that a call must move;
    num_fresh: of those, what goes to a result as large as the inputs, which is made anew at each call. bare: a step
    that does only what no version can leave out, timed beside the providers. memory: the provider that ours is
    compared with.
    """

    name: str
    work: Workload
    shape: tuple[int, ...]
    floors: dict[str, float]
    part: str = workloads.BOTH
    others: dict[str, Run] = field(default_factory=dict)
    counts: Callable[..., Tensor] = workloads.whole
    inplace: bool = False
    compared: bool = True
    num_bytes: int = 0
    num_fresh: int = 0
    bare: Callable[[Inputs], Callable[[], object]] | None = None
    memory: str = ""

    def inputs(self) -> Inputs:
        draw = Draw(generator=torch.Generator().manual_seed(0), counts=self.counts)
        return self.work.inputs(draw, *self.shape, gradients=self.part != FORWARD)

    def ours(self) -> Provider:
        return Provider(run=over_a_copy(self.work) if self.inplace else self.work.run(self.part), backend="native")

    def providers(self) -> dict[str, Provider]:
        """Ours and those that floors name."""
        known = {
            EAGER: self.work.plain_run(self.part),
            COMPILE: workloads.running(torch.compile(self.work.plain or self.work.call), self.work.leaves, self.part),
            **self.others,
        }
        return {OURS: self.ours(), **{name: Provider(run=known[name]) for name in self.floors}}

    def limit(self, found: Rates) -> tuple[float, str] | None:
        """Seconds that no version can beat, and what they are."""
        if not self.num_bytes:
            return None
        text = f"{self.num_bytes / 1e6:.0f} MB at read bandwidth"
        text += f", {self.num_fresh / 1e6:.0f} MB fresh" if self.num_fresh else ""
        return self.num_bytes / found.read_bytes_per_s + self.num_fresh / found.fresh_bytes_per_s, text


def over_a_copy(work: Workload) -> Run:
    """The backward in place, which means over what a model just made; the copy that stands for it is made at the first
    call, outside of the timing. A second run starts from the first one's gradient, so only the first is compared."""
    run, copies = workloads.running(partial(work.call, inplace_backward=True), work.leaves), {}

    def over(x: Inputs) -> list[Tensor]:
        if not copies:
            copies.update(x, logits=x["logits"].detach().clone().requires_grad_())
        return run(copies)

    return over


def _deltas(x: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """One-step errors, values and rewards, 0 where the mask is False."""
    mask, scores = x["mask"], x["scores"].unsqueeze(1)
    rewards = torch.where(mask, -x["kl_coef"] * (x["logprobs"] - x["ref_logprobs"]), 0.0)
    rewards = rewards.scatter_add_(1, mask.sum(1, keepdim=True) - 1, scores)
    counted = torch.where(mask, x["values"], 0.0)
    following = torch.cat([counted[:, 1:], counted.new_zeros(len(mask), 1)], dim=1)
    return rewards + following - counted, counted, rewards


def _found(x: Inputs, found: Tensor, counted: Tensor, rewards: Tensor) -> list[Tensor]:
    found = torch.where(x["mask"], found, 0.0)
    return [found, torch.where(x["mask"], found + counted, 0.0), rewards]


def time_loop(x: Inputs) -> list[Tensor]:
    delta, counted, rewards = _deltas(x)
    found, running = torch.empty_like(delta), delta.new_zeros(len(delta))
    for t in range(delta.shape[1] - 1, -1, -1):
        running = delta[:, t] + 0.95 * running
        found[:, t] = running
    return _found(x, found, counted, rewards)


def matrix_product(length: int) -> Run:
    steps = torch.arange(length)
    weights = torch.tril(torch.full((length, length), 0.95).pow((steps.unsqueeze(1) - steps).clamp(0)))

    def run(x: Inputs) -> list[Tensor]:
        delta, counted, rewards = _deltas(x)
        return _found(x, delta @ weights, counted, rewards)

    return run


def matrix_products(cpu_workspace: int, forward_too: bool) -> Callable[[Inputs], Callable[[], object]]:
    """The library's matrix products of a linear op, in chunks as its workspace allows, into memory that is there.

    forward_too: the logits once more, but for the last chunk: per-token gradients are not known in the forward.
    """

    def make(x: Inputs) -> Callable[[], object]:
        hidden, weight = x["hidden"].detach(), x["weight"].detach()
        padded = -(-V // 64) * 64
        parts = hidden.tensor_split(-(-hidden.shape[0] // (cpu_workspace // (4 * padded))))
        space = torch.zeros(len(parts[0]), padded)
        by_hidden, by_weight = torch.zeros_like(hidden).split([len(x) for x in parts]), torch.zeros_like(weight)

        def step() -> None:
            for part in parts[:-1] if forward_too else ():
                torch.mm(part, weight.t(), out=space[: len(part), :V])
            for part, gradient in zip(parts, by_hidden, strict=True):
                logits = space[: len(part), :V]
                torch.mm(part, weight.t(), out=logits)
                torch.mm(logits, weight, out=gradient)
                by_weight.addmm_(logits.t(), part, beta=0.0 if part is parts[0] else 1.0)

        return step

    return make


def multinomial(x: Inputs) -> list[Tensor]:
    return [torch.multinomial(torch.softmax(x["logits"], dim=-1), 1).squeeze(1)]


LOGITS, TOKENS = 1024 * V * 4, 512 * 1024
# What formulas of others return: without the metrics.
ADVANTAGES = replace(workloads.PPO_ADVANTAGES, call=lambda **x: workloads.PPO_ADVANTAGES.call(**x)[:3])
ROWS = (
    Row(name="pairwise ranking 64x9, fwd+bwd", work=workloads.RANKING, shape=(64, 9),
        floors={EAGER: 1.7, COMPILE: 2.5}),
    Row(name="pairwise ranking 4096x9, fwd+bwd", work=workloads.RANKING, shape=(4096, 9),
        floors={EAGER: 5.0, COMPILE: 5.0}),
    # Three tensors and a mask in, three tensors out.
    Row(name="ppo_advantages 512x1024", work=ADVANTAGES, shape=(512, 1024),
        counts=workloads.prefixes(0.5), num_bytes=25 * TOKENS,
        floors={"time loop": 20.0, "matrix product": 5.0, "doubling scan": 5.0},
        others={"time loop": time_loop, "matrix product": matrix_product(1024),
                "doubling scan": ADVANTAGES.run()}),
    Row(name="ppo_loss 512x1024, fwd+bwd", work=workloads.PPO, shape=(512, 1024), counts=workloads.scattered(0.8),
        floors={EAGER: 12.0, COMPILE: 2.0}, num_bytes=(25 + 8 + 16) * TOKENS),
    Row(name=f"token_logprobs 1024x{V} float32, fwd", work=workloads.TOKEN_LOGPROBS, shape=(1024, V), part=FORWARD,
        floors={EAGER: 10.0, COMPILE: 2.0}, num_bytes=LOGITS, memory=EAGER),
    Row(name=f"token_logprobs 1024x{V}, fwd+bwd", work=workloads.TOKEN_LOGPROBS, shape=(1024, V),
        floors={EAGER: 2.5, COMPILE: 2.0}, num_bytes=2 * LOGITS, num_fresh=LOGITS),
    Row(name=f"token_logprobs 1024x{V}, fwd+bwd, inplace_backward", work=workloads.TOKEN_LOGPROBS, shape=(1024, V),
        floors={EAGER: 8.0, COMPILE: 5.0}, num_bytes=3 * LOGITS, inplace=True),
    Row(name=f"linear_token_logprobs 2048x256 -> {V}, fwd+bwd", work=workloads.LINEAR_LOGPROBS, shape=(256, V, 2048),
        floors={EAGER: 1.3, COMPILE: 1.0}, memory=EAGER,
        bare=matrix_products(linear.CPU_WORKSPACE_BYTES, forward_too=True)),
    Row(name=f"linear_ppo_loss 2048x256 -> {V}, fwd+bwd", work=workloads.LINEAR_PPO, shape=(256, V, 2048),
        floors={EAGER: 1.6, COMPILE: 1.2}, memory=EAGER,
        bare=matrix_products(linear.CPU_LOSS_WORKSPACE_BYTES, forward_too=False)),
    Row(name=f"sample_tokens 64x{V}", work=workloads.SAMPLING, shape=(64, V), compared=False,
        floors={EAGER: 20.0}, others={EAGER: multinomial}, num_bytes=64 * V * 4),
)  # fmt: skip
