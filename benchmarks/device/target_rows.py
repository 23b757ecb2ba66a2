"""What targets.py measures, and what is asked for."""

import torch

from benchmarks.core import workloads
from benchmarks.core.peers import DEVICE_PEERS
from benchmarks.core.rows import BACKENDS, Row, Target
from benchmarks.core.workloads import (
    BACKWARD,
    BOTH,
    FORWARD,
    GAE,
    LINEAR_LOGPROBS,
    LINEAR_PPO,
    PPO,
    PPO_ADVANTAGES,
    RANKING,
    TOKEN_LOGPROBS,
    Inputs,
    Workload,
)

Targets = tuple[Target, ...]


def share(least: float) -> Targets:
    return (Target(text=f"at least {least:g}% of the copy rate", measure="share_pct", bound=least, at_least=True),)


def wall_us(bound: float) -> Targets:
    return (Target(text=f"at most {bound:g} us wall", measure="wall_us", bound=bound),)


def device_ms(bound: float) -> Targets:
    return (Target(text=f"at most {bound:g} ms", measure="device_us", bound=1e3 * bound),)


WORKSPACE = Target(text="at most 1 GiB (1024 MiB) beside the results", measure="workspace_mib", bound=1024.0)


def counts(x: Inputs) -> tuple[int, int]:
    """Positions that count, and all of them."""
    return int(x["mask"].sum()), x["mask"].numel()


def ranking_row(part: str, targets: Targets) -> Row:
    def limit(x: Inputs) -> dict[str, int]:
        return {"copy": (1 if part == FORWARD else 2) * x["scores"].nbytes + x["preferred"].nbytes}

    return Row(name=f"ranking {part}, 1024 x 9", work=RANKING, shape=(1024, 9), tiny=(5, 9), part=part, limit=limit,
               targets=targets, graph=True, limit_s=40, backends=BACKENDS)  # fmt: skip


def advantages_row(rows: int, length: int, targets: Targets, fused: bool = False) -> Row:
    """fused: with the KL penalty and the score in front."""
    work, name = (PPO_ADVANTAGES, "ppo") if fused else (GAE, "generalized")

    def limit(x: Inputs) -> dict[str, int]:
        counted, total = counts(x)
        return {"copy": 12 * counted + 13 * total if fused else 8 * counted + 9 * total}

    return Row(name=f"{name}_advantages {rows} x {length}", work=work, shape=(rows, length), tiny=(3, 37), limit=limit,
               counts=workloads.prefixes(0.875), targets=targets, graph=True, limit_s=40,
               backends=BACKENDS)  # fmt: skip


def ppo_row(tokens: str, shape: tuple[int, int], part: str, targets: Targets) -> Row:
    """part: "forward", which makes the gradients, or "forward + backward", which scales and returns them."""

    def limit(x: Inputs) -> dict[str, int]:
        counted, total = counts(x)
        # Six tensors and the mask are read, two gradients written; the backward reads and writes those again.
        return {"copy": 24 * counted + 9 * total + (0 if part == FORWARD else 16 * total)}

    return Row(name=f"ppo_loss {part}, {tokens} tokens", work=PPO, shape=shape, tiny=(3, 37), part=part, limit=limit,
               counts=workloads.prefixes(0.875), targets=targets, graph=shape[0] * shape[1] <= 2**20,
               backends=BACKENDS)  # fmt: skip


def logits_row(classes: int, part: str, targets: Targets) -> Row:
    """8192 rows of bfloat16 logits."""

    def limit(x: Inputs) -> dict[str, int]:
        small = {FORWARD: 12, BACKWARD: 20, BOTH: 16}[part] * x["tokens"].numel()
        return {"copy": (1 if part == FORWARD else 2) * x["logits"].nbytes + small}

    return Row(name=f"token_logprobs {part}, 8192 x {classes} bfloat16", work=TOKEN_LOGPROBS, shape=(8192, classes),
               tiny=(16, 67 if classes % 8 else 64), dtype=torch.bfloat16, upstream=True, gradients=part != FORWARD,
               part=part, limit=limit, targets=targets, backends=BACKENDS,
               peers=DEVICE_PEERS[TOKEN_LOGPROBS.op])  # fmt: skip


def head_row(work: Workload, part: str, targets: Targets) -> Row:
    """4 sequences of 1024 tokens, D 4096, V 128256, in bfloat16."""
    linear = work is LINEAR_LOGPROBS

    def limit(x: Inputs) -> dict[str, int]:
        return {"bfloat16 product": (2 if part == FORWARD else 6) * x["hidden"].numel() * x["weight"].shape[0]}

    return Row(name=f"{work.op.split('.')[1]} {part}, 4096 tokens, D 4096, V 128256 bfloat16", work=work,
               shape=(4096, 128256, *((4096,) if linear else (4, 1024))),
               tiny=(16, 67, *((12,) if linear else (2, 6))), dtype=torch.bfloat16, upstream=linear, part=part,
               counts=workloads.prefixes(0.875), gradients=part != FORWARD, limit=limit, targets=targets, limit_s=70,
               backends=BACKENDS, peers=DEVICE_PEERS[work.op])  # fmt: skip


ROWS: tuple[Row, ...] = (
    logits_row(128256, FORWARD, share(90)),
    logits_row(50257, FORWARD, share(80)),
    logits_row(128256, BACKWARD, share(88)),
    head_row(LINEAR_LOGPROBS, FORWARD, device_ms(7.8)),
    head_row(LINEAR_LOGPROBS, BOTH, (*device_ms(29), WORKSPACE)),
    head_row(LINEAR_PPO, BOTH, device_ms(21)),
    ppo_row("16M", (16384, 1024), FORWARD, share(75)),
    ppo_row("16M", (16384, 1024), BOTH, share(75)),
    ppo_row("1M", (1024, 1024), BOTH, wall_us(60)),
    ranking_row(FORWARD, (Target(text="at most 4 us device", measure="device_us", bound=4.0),)),
    advantages_row(512, 2048, wall_us(10)),
    advantages_row(64, 1024, wall_us(10)),
    advantages_row(8192, 2048, share(70)),
    advantages_row(16, 131072, wall_us(30)),
    advantages_row(512, 2048, wall_us(10), fused=True),
    advantages_row(8192, 2048, share(70), fused=True),
    ranking_row(BOTH, ()),
    logits_row(128256, BOTH, ()),
)
