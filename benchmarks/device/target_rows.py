"""What targets.py measures, and what is asked for."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.core import workloads as ops
from benchmarks.core.peers import DEVICE_PEERS
from benchmarks.core.rows import BACKENDS, Row, Target
from benchmarks.core.workloads import BACKWARD, BOTH, FORWARD, Inputs, Workload

Targets = tuple[Target, ...]


def share(least: float) -> Targets:
    return (Target(text=f"at least {least:g}% of the copy rate", measure="share_pct", bound=least, at_least=True),)


def wall_us(bound: float) -> Targets:
    return (Target(text=f"at most {bound:g} us wall", measure="wall_us", bound=bound),)


def device_ms(bound: float) -> Targets:
    return (Target(text=f"at most {bound:g} ms", measure="device_us", bound=1e3 * bound),)


WORKSPACE = Target(text="at most 1 GiB (1024 MiB) beside the results", measure="workspace_mib", bound=1024.0)
PASSES = {FORWARD: 1, BACKWARD: 2, BOTH: 2}
# By op, the least that a step must move, from inputs, positions that count, all of them, and the part. Of PPO's loss
# six tensors and the mask are read and two gradients written; the backward reads and writes those again.
MOVED: dict[str, Callable[[Inputs, int, int, str], int]] = {
    ops.RANKING.op: lambda x, n, total, part: PASSES[part] * x["scores"].nbytes + x["preferred"].nbytes,
    ops.PPO_ADVANTAGES.op: lambda x, n, total, part: 12 * n + 13 * total,
    ops.GAE.op: lambda x, n, total, part: 8 * n + 9 * total,
    ops.PPO.op: lambda x, n, total, part: 24 * n + 9 * total + (0 if part == FORWARD else 16 * total),
    ops.TOKEN_LOGPROBS.op: lambda x, n, total, part: (
        PASSES[part] * x["logits"].nbytes + {FORWARD: 12, BACKWARD: 20, BOTH: 16}[part] * x["tokens"].numel()
    ),
}


def limit(op: str, part: str, x: Inputs) -> dict[str, int]:
    if "weight" in x:
        return {"bfloat16 product": (2 if part == FORWARD else 6) * x["hidden"].numel() * x["weight"].shape[0]}
    counted, total = (int(x["mask"].sum()), x["mask"].numel()) if "mask" in x else (0, 0)
    return {"copy": MOVED[op](x, counted, total, part)}


def row(work: Workload, name: str, shape: tuple[int, ...], tiny: tuple[int, ...], part: str, targets: Targets,
        **more: Any) -> Row:  # fmt: skip
    return Row(name=name, work=work, shape=shape, tiny=tiny, part=part, targets=targets, backends=BACKENDS,
               limit=partial(limit, work.op, part), counts=ops.prefixes(0.875), peers=DEVICE_PEERS.get(work.op, {}),
               **more)  # fmt: skip


def ranking(part: str, targets: Targets) -> Row:
    return row(ops.RANKING, f"ranking {part}, 1024 x 9", (1024, 9), (5, 9), part, targets, graph=True, limit_s=40)


def advantages(rows: int, length: int, targets: Targets, fused: bool = False) -> Row:
    """fused: with the KL penalty and the score in front."""
    work, name = (ops.PPO_ADVANTAGES, "ppo") if fused else (ops.GAE, "generalized")
    name = f"{name}_advantages {rows} x {length}"
    return row(work, name, (rows, length), (3, 37), BOTH, targets, graph=True, limit_s=40)


def ppo(tokens: str, rows: int, part: str, targets: Targets) -> Row:
    """part: "forward", which makes the gradients, or "forward + backward", which scales and returns them."""
    return row(ops.PPO, f"ppo_loss {part}, {tokens} tokens", (rows, 1024), (3, 37), part, targets, graph=rows <= 1024)


def logits(classes: int, part: str, targets: Targets) -> Row:
    """8192 rows of bfloat16 logits."""
    tiny = (16, 67 if classes % 8 else 64)
    return row(ops.TOKEN_LOGPROBS, f"token_logprobs {part}, 8192 x {classes} bfloat16", (8192, classes), tiny, part,
               targets, dtype=torch.bfloat16, upstream=True, gradients=part != FORWARD)  # fmt: skip


def head(work: Workload, part: str, targets: Targets) -> Row:
    """4 sequences of 1024 tokens, D 4096, V 128256, in bfloat16."""
    linear = work is ops.LINEAR_LOGPROBS
    name = f"{work.op.split('.')[1]} {part}, 4096 tokens, D 4096, V 128256 bfloat16"
    full, tiny = ((4096,), (12,)) if linear else ((4, 1024), (2, 6))
    return row(work, name, (4096, 128256, *full), (16, 67, *tiny), part, targets, dtype=torch.bfloat16,
               upstream=linear, gradients=part != FORWARD, limit_s=70)  # fmt: skip


ROWS: tuple[Row, ...] = (
    logits(128256, FORWARD, share(90)),
    logits(50257, FORWARD, share(80)),
    logits(128256, BACKWARD, share(88)),
    head(ops.LINEAR_LOGPROBS, FORWARD, device_ms(7.8)),
    head(ops.LINEAR_LOGPROBS, BOTH, (*device_ms(29), WORKSPACE)),
    head(ops.LINEAR_PPO, BOTH, device_ms(21)),
    ppo("16M", 16384, FORWARD, share(75)),
    ppo("16M", 16384, BOTH, share(75)),
    ppo("1M", 1024, BOTH, wall_us(60)),
    ranking(FORWARD, (Target(text="at most 4 us device", measure="device_us", bound=4.0),)),
    advantages(512, 2048, wall_us(10)),
    advantages(64, 1024, wall_us(10)),
    advantages(8192, 2048, share(70)),
    advantages(16, 131072, wall_us(30)),
    advantages(512, 2048, wall_us(10), fused=True),
    advantages(8192, 2048, share(70), fused=True),
    ranking(BOTH, ()),
    logits(128256, BOTH, ()),
)
