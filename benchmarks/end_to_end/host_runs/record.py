"""What a run of a host's trainer is told by, and how two are compared. Imports nothing of ours but the adapter."""

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.core.machine import ROOT
from benchmarks.core.memory import peak_bytes

CHECKPOINTS = 64
"""Numbers of the weights that are looked at: sums of so many slices."""


@dataclass(kw_only=True)
class Record:
    """losses, gradient_norms, seconds: a number a step. weights: sums of slices of what was trained."""

    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    replaced: list[str] = field(default_factory=list)
    _last: float = 0.0

    def start(self) -> None:
        self._last = time.perf_counter()

    def step(self, loss: float, gradient_norm: float) -> None:
        """A step is over."""
        self.losses.append(float(loss))
        self.gradient_norms.append(float(gradient_norm))
        self.seconds.append(time.perf_counter() - self._last)
        self.start()

    def end(self, parameters: Iterable[torch.Tensor]) -> None:
        flat = torch.cat([x.detach().double().flatten() for x in parameters])
        self.weights = [float(part.sum()) for part in flat.chunk(CHECKPOINTS)]
        self.peak_bytes = peak_bytes()


def main(host: str, trainers: dict[str, Callable[[Record, int], None]]) -> None:
    """The command of a host's module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("trainer", choices=list(trainers))
    parser.add_argument("--adapter", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    record = Record()
    if given.adapter:
        module = importlib.import_module(f"instructrl.integrations.{host}")
        record.replaced = [row.name for row in module.install(strict=True).rows]
    torch.manual_seed(0)
    record.start()
    trainers[given.trainer](record, given.steps)
    found = asdict(record)
    print("@" + json.dumps({name: value for name, value in found.items() if not name.startswith("_")}), flush=True)


def run(host: str, trainer: str, *, adapter: bool, steps: int = 10, python: str = sys.executable) -> dict[str, Any]:
    """A run in a process of its own. Raises RuntimeError with the end of what it said where it fails."""
    command = [python, "-m", f"benchmarks.end_to_end.host_runs.{host}", trainer, "--steps", str(steps)]
    done = subprocess.run([*command, *(["--adapter"] if adapter else [])], capture_output=True, text=True, cwd=ROOT)
    lines = [line for line in done.stdout.splitlines() if line.startswith("@")]
    if done.returncode or not lines:
        raise RuntimeError(f"{host} {trainer}: ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(lines[-1][1:])


def largest_gaps(with_adapter: dict[str, Any], without: dict[str, Any]) -> dict[str, float]:
    """By what is compared: the largest difference, relative to the largest number, at least 1."""
    gaps = {}
    for name in ("losses", "gradient_norms", "weights"):
        ours, theirs = (torch.tensor(run[name], dtype=torch.float64) for run in (with_adapter, without))
        if ours.shape != theirs.shape or not len(theirs):
            raise RuntimeError(f"{name}: found {len(ours)} and {len(theirs)} numbers, accepted is the same number")
        # Losses of advantages are near 0, and what they are sums of is not.
        gaps[name] = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))
    return gaps
