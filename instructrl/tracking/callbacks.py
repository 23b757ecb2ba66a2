"""What a trainer tells while it trains, and whom: the records and the protocol of callbacks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A response of the policy. score: what the reward gave it."""

    prompt: str
    response: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """A row of `metrics.jsonl`.

    phase, step: which step this is; in each phase steps count from 0. row: the row's number, from 0; a run that goes on
    repeats the rows behind its last checkpoint. metrics: the numbers of the row. seconds: by part of the step, as
    `profiling.PHASES` names them. samples: (at most so many) -> responses of this step, where the policy made any; to
    be asked before `after_step` returns.
    """

    phase: str
    step: int
    row: int
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    samples: Callable[[int], Sequence[Sample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointDone:
    """A checkpoint that is whole and on the disk. step: how many steps are in it. folder: where it is."""

    phase: str
    step: int
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseDone:
    """A part of a run that is over or was broken off. profile: its row of `profile.jsonl`."""

    phase: str
    profile: Mapping[str, Any]


@runtime_checkable
class Callback(Protocol):
    """Is told of what was done, in the main process of a job alone. A class that derives from this one needs those of
    the methods that it wants something from: the others do nothing.

    What a callback raises ends the training there. Checkpoints are written before or after a call, never during one:
    the last one is whole, and the run can go on from it.
    """

    def after_step(self, done: StepDone) -> None:
        """After every row of `metrics.jsonl`, which is written then; a checkpoint of this step comes later."""

    def after_checkpoint(self, done: CheckpointDone) -> None:
        """After every checkpoint."""

    def after_phase(self, done: PhaseDone) -> None:
        """After every row of `profile.jsonl`."""
