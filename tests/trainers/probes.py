"""What the tests of the trainers look at: gradients before they are spent, states, and the metrics of a run."""

import copy
import io
import json
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from instructrl.trainers.log import RunLog
from instructrl.trainers.loop import Trainer
from instructrl.trainers.optimization import Update

EPS = torch.finfo(torch.float32).eps


def quiet_log(folder: Path | None = None) -> RunLog:
    return RunLog(folder, Console(file=io.StringIO()))


class SpentGradients:
    """The gradients of every optimiser step of one update, flattened. The steps are still taken."""

    def __init__(self, update: Update, monkeypatch) -> None:
        self.rows: list[torch.Tensor] = []
        take = update.step

        def step(*losses: float) -> float:
            self.rows.append(flat_gradient(update.parameters))
            return take(*losses)

        monkeypatch.setattr(update, "step", step)


def flat_gradient(parameters) -> torch.Tensor:
    return torch.cat([p.grad.detach().flatten().double() for p in parameters if p.grad is not None])


def assert_same_gradient(found: torch.Tensor, expected: torch.Tensor, scale: float | None = None) -> None:
    """Equal up to the order of some hundred float32 additions. scale: the norm of what was added up, where parts of
    it cancel."""
    bound = 200 * EPS * float(expected.norm() if scale is None else scale)
    assert float(expected.norm()) > 0
    assert float((found - expected).norm()) <= bound


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def flattened(state, prefix: str = "") -> dict[str, object]:
    """A nested state as path -> leaf."""
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, (list, tuple)):
        items = enumerate(state)
    else:
        return {prefix: state}
    return {name: leaf for key, value in items for name, leaf in flattened(value, f"{prefix}/{key}").items()}


def assert_same_state(first: Trainer, second: Trainer) -> None:
    """Bit for bit: step, weights, averages, moments, schedules and what else belongs to the state."""
    states = [flattened(trainer.state_dict()) for trainer in (first, second)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        other = states[1][name]
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other), name
        else:
            assert value == other, name


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_continues_exactly(make, steps: int, interrupted_at: int, folder: Path) -> tuple[Trainer, Trainer]:
    """`steps` at once, and the same steps in two trainers with a saved state between them. make: () -> a fresh one.

    Returns the trainer that was not interrupted and the one that continued.
    """
    whole = make()
    whole.run(quiet_log(folder / "whole"), until=steps)
    first = make()
    first.run(quiet_log(folder / "first"), until=interrupted_at)
    state = copy.deepcopy(first.state_dict())
    first.run(quiet_log())  # what the old trainer still does is nothing to the saved state
    second = make()
    second.load_state_dict(state)
    second.run(quiet_log(folder / "second"), until=steps)
    assert_same_state(whole, second)
    rows = metrics_of(folder / "first") + metrics_of(folder / "second")
    assert rows == metrics_of(folder / "whole")
    assert [row["step"] for row in rows] == list(range(steps))
    return whole, second
