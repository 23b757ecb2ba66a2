"""A run of two phases with validation, as the steps of the paper are one, whose network is three numbers: a life of it
takes milliseconds, so that it can be killed everywhere."""

import io
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from instructrl.models.passes import settled
from instructrl.models.settings import PassConfig
from instructrl.rollout.randomness import keyed_generator
from instructrl.runs.journal import Journal
from instructrl.tracking.callbacks import Sample
from instructrl.tracking.tracker import open_tracker
from instructrl.trainers.log import RunLog
from instructrl.trainers.loop import Trainer
from instructrl.trainers.optimization import Update
from instructrl.trainers.settings import AdamConfig, CheckpointConfig

EPOCHS, STEPS = 2, 3
ROWS = 2 * EPOCHS * (STEPS + 1)


class SmallTrainer(Trainer):
    def __init__(self, phase: str, num_steps: int = EPOCHS * STEPS) -> None:
        self.network = nn.Linear(3, 1, bias=False)
        nn.init.ones_(self.network.weight)
        self.update = Update(self.network, AdamConfig(lr=0.1)).cosine(num_steps)
        modules, updates = {"network": self.network}, {"network": self.update}
        self.validated = 0
        super().__init__(phase, num_steps, modules, updates, settled(PassConfig(), torch.device("cpu")), (num_steps,))

    def batch(self) -> dict[str, Any]:
        return {}

    def extra_state(self) -> dict[str, Any]:
        return {"validated": self.validated}

    def load_extra_state(self, state) -> None:
        self.validated = state["validated"]

    def samples(self, count: int) -> list[Sample]:
        return [Sample(prompt=f"why {self.step}\ud800?", response="| *so* |", score=0.5)][:count]

    def _train_step(self) -> tuple[dict[str, float], float]:
        inputs = torch.randn(4, 3, generator=keyed_generator(len(self.phase), self.step))
        loss = self.network(inputs).square().mean()
        loss.backward()
        lr, norm = self.update.lr, self.update.step(float(loss.detach()))
        self.update.advance_schedule()
        return {"loss": float(loss.detach()), "lr": lr, "gradient_norm": norm}, 4


def quiet_log(folder: Path | None, console: Console | None = None) -> RunLog:
    return RunLog(folder, console or Console(file=io.StringIO()), continued=True)


def run(folder: Path, track: str, console: Console | None = None) -> None:
    """All of it, from wherever it stands."""
    log = quiet_log(folder, console)
    journal = Journal(folder, log, CheckpointConfig())
    with open_tracker(track, folder, {"lr": 0.1}, log.warn) as tracker, log.calling([tracker]):
        for phase in ("first", "second"):
            journal.once(phase, lambda checkpoints, found, phase=phase: _phase(log, phase, checkpoints, found))


def _phase(log: RunLog, phase: str, checkpoints, found) -> dict[str, Any]:
    trainer = SmallTrainer(phase)
    if found is not None:
        trainer.resume(found)
    for epoch in range(trainer.validated, EPOCHS):
        trainer.run(log, until=(epoch + 1) * STEPS, checkpoints=checkpoints)
        log.metrics(phase, trainer.step - 1, {"validation_loss": float(trainer.network.weight.detach().sum())})
        trainer.validated += 1
        trainer.save(checkpoints, log)
    return {"state": trainer.digest()}
