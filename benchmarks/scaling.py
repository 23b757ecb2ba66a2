"""How the time of the ops grows along each axis.

    OMP_NUM_THREADS=2 python benchmarks/scaling.py [--out FILE.json] [--rounds 5]

With --out the table goes beside the file as Markdown, and the times as a plot on log axes.

Forward and backward on the fastest backend that is here. The slope is that of log time over log size, fitted to the
larger half of the sizes: 1 is linear. Sizes are visited in turn, a round at a time.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from instructrl.ops import advantages, likelihood, logprobs, ppo, ranking, sampling

Step = Callable[[], object]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def whole(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def tokens(num_rows: int, num_classes: int) -> Tensor:
    return torch.randint(0, num_classes, (num_rows,), generator=torch.Generator().manual_seed(0))


def token_logprobs(num_rows: int, num_classes: int) -> Step:
    logits, ids = draw(num_rows, num_classes).requires_grad_(), tokens(num_rows, num_classes)
    return lambda: torch.autograd.grad(logprobs.token_logprobs(logits, ids).sum(), logits)


def linear_nll(num_rows: int, width: int, num_classes: int) -> Step:
    hidden, weight = draw(num_rows, width).requires_grad_(), (0.1 * draw(num_classes, width)).requires_grad_()
    ids, mask = tokens(num_rows, num_classes), whole(num_rows)
    return lambda: torch.autograd.grad(likelihood.linear_nll_loss(hidden, weight, ids, mask), (hidden, weight))


def ppo_loss(num_tokens: int) -> Step:
    x = [draw(num_tokens) for _ in range(6)]
    new, values = x[0].requires_grad_(), x[3].requires_grad_()
    mask = whole(num_tokens)
    return lambda: torch.autograd.grad(ppo.ppo_loss(new, x[1], x[2], values, x[4], x[5], mask).loss, (new, values))


def ppo_advantages(num_rows: int, length: int) -> Step:
    x, scores, mask = [draw(num_rows, length) for _ in range(3)], draw(num_rows), whole(num_rows, length)
    return lambda: advantages.ppo_advantages(*x, scores, mask, kl_coef=0.02)


def ranking_loss(num_prompts: int, num_responses: int) -> Step:
    scores = draw(num_prompts, num_responses).requires_grad_()
    preferred = draw(num_prompts, num_responses, 1) < draw(num_prompts, 1, num_responses)
    return lambda: torch.autograd.grad(ranking.pairwise_ranking_loss(scores, preferred).loss_sum.sum(), scores)


def sample(num_rows: int, num_classes: int) -> Step:
    logits, uniforms = draw(num_rows, num_classes), torch.rand(num_rows)
    return lambda: sampling.sample_tokens(logits, uniforms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """make: from a size to a step. expected: the slope that the arithmetic says."""

    op: str
    axis: str
    sizes: tuple[int, ...]
    make: Callable[[int], Step]
    expected: int = 1


def powers(first: int, last: int) -> tuple[int, ...]:
    return tuple(2**i for i in range(first, last + 1))


AXES = (
    Axis(op="token_logprobs", axis="tokens (V = 8192)", sizes=powers(8, 14), make=lambda n: token_logprobs(n, 8192)),
    Axis(op="token_logprobs", axis="V (512 tokens)", sizes=powers(11, 17), make=lambda v: token_logprobs(512, v)),
    Axis(op="linear_nll_loss", axis="tokens (D = 128, V = 8192)", sizes=powers(8, 14),
         make=lambda n: linear_nll(n, 128, 8192)),
    Axis(op="linear_nll_loss", axis="V (512 tokens, D = 128)", sizes=powers(11, 16),
         make=lambda v: linear_nll(512, 128, v)),
    Axis(op="linear_nll_loss", axis="D (512 tokens, V = 8192)", sizes=powers(6, 11),
         make=lambda d: linear_nll(512, d, 8192)),
    Axis(op="ppo_loss", axis="tokens", sizes=powers(15, 22), make=ppo_loss),
    Axis(op="ppo_advantages", axis="T (16 rows)", sizes=powers(11, 17), make=lambda t: ppo_advantages(16, t)),
    Axis(op="ppo_advantages", axis="rows (T = 256)", sizes=powers(7, 14), make=lambda b: ppo_advantages(b, 256)),
    Axis(op="pairwise_ranking_loss", axis="prompts (K = 9)", sizes=powers(10, 17), make=lambda p: ranking_loss(p, 9)),
    Axis(op="pairwise_ranking_loss", axis="K (512 prompts)", sizes=powers(4, 9), expected=2,
         make=lambda k: ranking_loss(512, k)),
    Axis(op="sample_tokens", axis="rows (V = 8192)", sizes=powers(7, 13), make=lambda b: sample(b, 8192)),
    Axis(op="sample_tokens", axis="V (64 rows)", sizes=powers(12, 18), make=lambda v: sample(64, v)),
)  # fmt: skip


def seconds(step: Step) -> float:
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < 0.01:
        step()
        count += 1
    return (time.perf_counter() - start) / count


def measure(axis: Axis, rounds: int) -> list[float]:
    """Median seconds of each size."""
    steps = [axis.make(size) for size in axis.sizes]
    for step in steps:
        step()
    times = [[seconds(step) for step in steps] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def slope(sizes: tuple[int, ...], times: list[float]) -> float:
    """Of log time over log size, by least squares over the larger half."""
    half = len(sizes) // 2
    x, y = [math.log(size) for size in sizes[half:]], [math.log(value) for value in times[half:]]
    return statistics.linear_regression(x, y).slope


def plot(results: list[dict], path: Path) -> None:
    """A panel an op, a line an axis."""
    ops = list(dict.fromkeys(row["op"] for row in results))
    figure = Figure(figsize=(10, 6), layout="constrained")
    for panel, op in zip(figure.subplots(2, -(-len(ops) // 2)).flat, ops, strict=False):
        for row in results:
            if row["op"] == op:
                label = f"{row['axis']}: slope {row['slope']:.2f}"
                panel.loglog(row["sizes"], [1e3 * x for x in row["seconds"]], marker="o", markersize=3, label=label)
        panel.set(title=op, xlabel="size", ylabel="ms")
        panel.legend(fontsize=7, frameon=False)
        panel.grid(alpha=0.3)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results, lines = [], ["| op | along | sizes | expected slope | slope |", "| --- | --- | --- | --- | --- |"]
    for axis in AXES:
        times = measure(axis, arguments.rounds)
        found = slope(axis.sizes, times)
        sizes = f"{axis.sizes[0]} to {axis.sizes[-1]}"
        lines.append(f"| {axis.op} | {axis.axis} | {sizes} | {axis.expected} | {found:.2f} |")
        print(lines[-1], flush=True)
        results.append({"op": axis.op, "axis": axis.axis, "sizes": axis.sizes, "seconds": times, "slope": found})
    if arguments.out:
        arguments.out.write_text(json.dumps(results) + "\n", encoding="utf-8")
        arguments.out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        plot(results, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
