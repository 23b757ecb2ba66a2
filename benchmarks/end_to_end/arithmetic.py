"""What PPO-ptx at the paper's sizes costs on H100 and H200 machines, by arithmetic alone.

    python -m benchmarks.end_to_end.arithmetic

Nothing here is measured. Assumed: `LENGTH` tokens of prompt and of response, 2 FLOPs a weight and token forward and 4
backward, `SHARE` of peak in passes over whole sequences, decoding that reads all weights once a token of a batch of
`ROWS` rows a rank; a 6B reward model and value function as in the paper; Adam in float32 with a master copy (16 bytes a
trained weight), 4 bytes for the average, 2 for each network that only reads.
"""

from typing import NamedTuple

from benchmarks.core.tables import markdown

LENGTH, SHARE, ROWS = 256, 0.4, 64
BLOCK, BLOCKS = 2048, 8
SCORER = 6e9


class Device(NamedTuple):
    flops_per_s: float
    bytes_per_s: float
    memory_bytes: float


DEVICES = {"H100 80 GB": Device(989e12, 3.35e12, 80e9), "H200 141 GB": Device(989e12, 4.8e12, 141e9)}
POLICIES = {"1.3B": (1.3e9, 8), "6B": (6e9, 16), "175B": (175e9, 256)}
"""Weights, and the ranks that are looked at."""


def flops_per_episode(policy: float, scorer: float, tokens: int, epochs: int = 1) -> dict[str, float]:
    """Of one episode of PPO, by part. policy, scorer: weights; policy and reference, value function and reward model
    are of the same size. tokens: of prompt and response."""
    return {
        "generate": 2 * tokens * policy,
        "score": 2 * tokens * (2 * policy + 2 * scorer),
        "update": 6 * tokens * (policy + scorer) * epochs,
    }


def seconds_per_episode(weights: float, ranks: int, device: Device) -> dict[str, float]:
    """Of one episode on all ranks together, by part."""
    rate = SHARE * device.flops_per_s * ranks
    found = {name: flops / rate for name, flops in flops_per_episode(weights, SCORER, 2 * LENGTH).items()}
    # Every decoding step of a rank's rows reads the weights (gathered, in bf16) once.
    step = max(2 * weights / device.bytes_per_s, 2 * weights * ROWS / (SHARE * device.flops_per_s))
    return {**found, "generate": LENGTH * step / (ROWS * ranks), "pretraining": 6 * BLOCK * BLOCKS * weights / rate}


def bytes_per_rank(weights: float, ranks: int) -> float:
    """Under FSDP: policy and value function with their optimisers, the average, reference and reward model."""
    return (18 * (weights + SCORER) + 4 * weights) / ranks


def main() -> None:
    parts, rows = ("generate", "score", "update", "pretraining"), []
    for name, (weights, ranks) in POLICIES.items():
        for machine, device in DEVICES.items():
            found, memory = seconds_per_episode(weights, ranks, device), bytes_per_rank(weights, ranks)
            total = sum(found.values())
            fits = "" if memory < device.memory_bytes else " (does not fit)"
            rates = f"{1 / (total - found['pretraining']):.2g}", f"{1 / total:.2g}"
            shares = (f"{100 * found[part] / total:.0f}%" for part in parts)
            rows.append([name, machine, str(ranks), f"{memory / 1e9:.0f}{fits}", *shares, *rates])
    columns = ("policy", "machine", "ranks", "GB a rank", *parts, "episodes/s, PPO", "PPO-ptx")
    print(markdown(columns, rows), end="")


if __name__ == "__main__":
    main()
