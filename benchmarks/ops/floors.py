"""The CPU floors: each op beside eager PyTorch and torch.compile of it, interleaved, in one run.

    OMP_NUM_THREADS=2 python -m benchmarks.ops.floors [--out FILE.json] [--rounds 9] [--only NAME]

How each row is measured is said in core/runner.py. The share is that of the time which reading, filling fresh memory,
or for a linear head its product take in the same rounds. Exit code 1 where a floor is missed.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.core import workloads
from benchmarks.core.report import missed, run
from benchmarks.core.rows import EAGER, NATIVE, Provider, Row, V, beside, faster
from benchmarks.core.tables import command
from benchmarks.core.workloads import BOTH, FORWARD, Inputs, Run
from instructrl import kernels
from instructrl.ops import logprobs


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


def multinomial(x: Inputs) -> list[Tensor]:
    return [torch.multinomial(torch.softmax(x["logits"], dim=-1), 1).squeeze(1)]


def over_a_copy(**x: Tensor) -> Callable[[], Tensor]:
    """The backward in place, which means over what a model just made."""
    return partial(logprobs.token_logprobs, **x, inplace_backward=True)


LOGITS, TOKENS, PRODUCT = 1024 * V * 4, 512 * 1024, 2 * 2048 * 256 * V
# What formulas of others return: without the metrics.
ADVANTAGES = replace(workloads.PPO_ADVANTAGES, call=lambda **x: workloads.PPO_ADVANTAGES.call(**x)[:3])
PER_LOGIT = {"work": workloads.TOKEN_LOGPROBS, "shape": (1024, V), "tiny": (5, 67)}
HEAD = {"shape": (256, V, 2048), "tiny": (8, 67, 6)}
ROWS = (
    Row(name="pairwise ranking 64x9, fwd+bwd", work=workloads.RANKING, shape=(64, 9), tiny=(6, 5),
        targets=faster(eager=1.7, compile=2.5)),
    Row(name="pairwise ranking 4096x9, fwd+bwd", work=workloads.RANKING, shape=(4096, 9), tiny=(6, 5),
        targets=faster(eager=5.0, compile=5.0)),
    # Three tensors and a mask in, three tensors out. The reference is a scan that doubles its steps.
    Row(name="ppo_advantages 512x1024", work=ADVANTAGES, shape=(512, 1024), tiny=(4, 1024), compile=False,
        counts=workloads.prefixes(0.5), limit=lambda x: {"read": 25 * TOKENS},
        targets=faster(time_loop=20.0, matrix_product=5.0, eager=5.0),
        others={"time loop": Provider(run=time_loop), "matrix product": Provider(run=matrix_product(1024))}),
    Row(name="ppo_loss 512x1024, fwd+bwd", work=workloads.PPO, shape=(512, 1024), tiny=(4, 37),
        counts=workloads.scattered(0.8), limit=lambda x: {"read": (25 + 8 + 16) * TOKENS},
        targets=faster(eager=12.0, compile=2.0)),
    Row(name=f"token_logprobs 1024x{V} float32, fwd", part=FORWARD, gradients=False, **PER_LOGIT,
        limit=lambda x: {"read": LOGITS}, targets=faster(eager=10.0, compile=2.0)),
    Row(name=f"token_logprobs 1024x{V}, fwd+bwd", **PER_LOGIT, limit=lambda x: {"read": 2 * LOGITS, "fresh": LOGITS},
        targets=faster(eager=2.5, compile=2.0)),
    Row(name=f"token_logprobs 1024x{V}, fwd+bwd, inplace_backward", **PER_LOGIT,
        limit=lambda x: {"read": 3 * LOGITS}, targets=faster(eager=8.0, compile=5.0),
        others={NATIVE: beside(over_a_copy, ("logits",), BOTH, True, NATIVE)}),
    # Most logits are made twice: per-token gradients are not known in the forward.
    Row(name=f"linear_token_logprobs 2048x256 -> {V}, fwd+bwd", work=workloads.LINEAR_LOGPROBS, **HEAD,
        limit=lambda x: {"head product": 4 * PRODUCT}, targets=faster(eager=1.3, compile=1.0)),
    Row(name=f"linear_ppo_loss 2048x256 -> {V}, fwd+bwd", work=workloads.LINEAR_PPO, **HEAD,
        limit=lambda x: {"head product": 3 * PRODUCT}, targets=faster(eager=1.6, compile=1.2)),
    Row(name=f"sample_tokens 64x{V}", work=workloads.SAMPLING, shape=(64, V), tiny=(3, 67), compile=False,
        limit=lambda x: {"read": 64 * V * 4}, others={EAGER: Provider(run=multinomial)}, targets=faster(eager=20.0)),
)  # fmt: skip


def main() -> int:
    arguments = command(__doc__, rounds=9, only="", out=Path)
    if kernels.why_missing(NATIVE):
        print(f"floors: {kernels.why_missing(NATIVE)}", file=sys.stderr)
        return 2
    found = run(__spec__.name, ROWS, arguments, memory=lambda name: name in (NATIVE, EAGER))
    return 1 if missed(found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
