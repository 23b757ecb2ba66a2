"""The loop that every step shares, and the order in which data are visited."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from instructrl import distributed, interruption, profiling, progress
from instructrl.models.base import base_of
from instructrl.models.masters import in_float32, round_masters
from instructrl.models.passes import applied
from instructrl.models.settings import PassConfig
from instructrl.models.spread import placed_like
from instructrl.rollout.randomness import keyed_generator
from instructrl.tracking.callbacks import Callback, Sample
from instructrl.trainers.checkpoints import Checkpoint, Checkpoints, fingerprint
from instructrl.trainers.log import Phase, RunLog
from instructrl.trainers.optimization import NotFiniteError, Update
from instructrl.trainers.settings import CheckpointConfig
from instructrl.trainers.state_files import differences


class Trainer(ABC):
    """A number of steps over networks and their optimisers.

    The state is `step`, the networks, the optimisers, and what `extra_state` names. Random numbers depend on the seed
    and the step alone, so there is no generator to save, and a resumed trainer repeats them.

    phase: the name in `metrics.jsonl`. unit: what the progress rate counts. passes: how the networks are
    run, settled. inputs: the data and what else is fixed but no setting; a checkpoint is continued with the same ones
    only.
    """

    unit = "tokens"

    def __init__(
        self,
        phase: str,
        num_steps: int,
        modules: Mapping[str, nn.Module],
        updates: Mapping[str, Update],
        passes: PassConfig,
        inputs: Sequence[Any],
    ) -> None:
        self.phase = phase
        self._passes, self._inputs, self._fingerprint = passes, inputs, ""
        self.num_steps = num_steps
        self.step = 0
        self._modules = dict(modules)
        self._learned = {name: in_float32(module) for name, module in modules.items()}
        self._updates = dict(updates)

    def train_step(self) -> tuple[dict[str, float], float]:
        """Do the next step, number `self.step`, and count it. Returns metrics and the units done."""
        found = self._train_step()
        self.step += 1
        return found

    @abstractmethod
    def _train_step(self) -> tuple[dict[str, float], float]:
        """What a kind of trainer does in step number `self.step`; whoever calls counts it."""

    @abstractmethod
    def batch(self) -> dict[str, Any]:
        """What step number `self.step` learns from, as JSON has it: for inspection."""

    def extra_state(self) -> dict[str, Any]:
        """Numbers that belong to the state beside networks and optimisers, nested as `state_files` takes them."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `extra_state` gave."""
        assert not state, state

    def concerns(self) -> list[str]:
        """What in the settings a person should know before the first step."""
        return []

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """What in a step's metrics a person should know, and what to do about it."""
        return []

    def samples(self, count: int) -> list[Sample]:
        """Up to `count` responses that the last step made, for people to read."""
        return []

    def run(
        self,
        log: RunLog | str | Path | None = None,
        until: int | None = None,
        checkpoints: Checkpoints | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Train up to step `until` (None: to the end), writing the metrics of every step.

        log: a folder for metrics and checkpoints, where what an earlier call left is gone on with, to the same bits; or
        a `RunLog`; None shows the progress and writes nothing. checkpoints: where the state is saved when it is time,
        and when a signal asks to leave. callbacks: told of every step, checkpoint and phase; what one of them raises
        ends the training. Raises RuntimeError where a number is not finite or memory does not suffice,
        `Interrupted` after a signal.
        """
        if not isinstance(log, RunLog):
            self._run_in(None if log is None else Path(log), until, callbacks)
            return
        end = self.num_steps if until is None else min(until, self.num_steps)
        for text in self.concerns():
            log.warn(f"{self.phase}: {text}")
        phase = log.phase(self.phase, end - self.step, self.unit)
        with log.calling(callbacks), phase as shown, interruption.finishing():
            while self.step < end:
                with profiling.collect() as profile:
                    step = self.step
                    metrics, units = self._step_or_reason(log, profile)
                    log.metrics(self.phase, step, metrics, seconds=profile.seconds, samples=self.samples)
                    leaving = distributed.wished()  # asked once: a signal after it waits for the next step
                    # By the clock of the main process: those of the others differ.
                    due = distributed.largest(distributed.is_main() and checkpoints is not None and checkpoints.due())
                    if checkpoints is not None and (due or leaving):
                        self.save(checkpoints, log, shown)
                for text in self.warnings(metrics):
                    log.warn(f"{self.phase}: {text}")
                shown.advance(units=units, note=self.headline(metrics), profile=profile)
                if leaving:
                    raise interruption.Interrupted(leaving)

    def _run_in(self, folder: Path | None, until: int | None, callbacks: Sequence[Callback]) -> None:
        log = RunLog(folder, continued=True)
        if folder is None:
            self.run(log, until, callbacks=callbacks)
            return
        checkpoints = Checkpoints(folder / "checkpoints", CheckpointConfig(), log.warn)
        if (found := checkpoints.newest()) is not None:
            self.resume(found)
        distributed.from_main(lambda: log.rewind(0 if found is None else found.metrics_bytes))
        first = self.step
        with log.calling(callbacks):
            self.run(log, until, checkpoints)
            if self.step > first:
                self.save(checkpoints, log)

    def save(self, checkpoints: Checkpoints, log: RunLog, shown: Phase | None = None) -> None:
        """Write a checkpoint of the state as it is."""
        with profiling.phase("checkpoint"), progress.wait("saving a checkpoint"):
            metrics_bytes = distributed.from_main(log.synced_bytes)
            size = checkpoints.save(
                self.state_dict(), step=self.step, metrics_bytes=metrics_bytes, inputs=self.fingerprint()
            )
        if shown is not None:
            shown.counts["checkpoints"] = shown.counts.get("checkpoints", 0) + 1
            shown.counts["checkpoint_bytes"] = size
        if distributed.is_main():
            log.saved(self.phase, self.step, checkpoints.latest())

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint. Raises ValueError for one of other data or of another model."""
        if checkpoint.inputs != self.fingerprint():
            raise ValueError(
                f"{checkpoint.folder}: found a checkpoint of other data, accepted is one of the same data; --fresh "
                "starts over"
            )
        state, own = checkpoint.state, self.state_dict()
        _check_bases(checkpoint.folder, state.get("bases", {}), own.get("bases", {}))
        if (found := state.get("weights", "float32")) != own["weights"]:
            raise ValueError(
                f"{checkpoint.folder}: found a checkpoint of {found} weights, accepted is one of {own['weights']} "
                "weights, or passes.weights as it was begun with"
            )
        if other := differences(state.get("modules"), own["modules"]):
            raise ValueError(f"{checkpoint.folder}: found a checkpoint of another model ({other.lstrip('/')})")
        self.load_state_dict(state)

    def digest(self) -> str:
        """Of the state: where two runs agree on it, they agree on every bit."""
        with progress.wait("a digest of the state"):
            return fingerprint(self.state_dict())

    def fingerprint(self) -> str:
        """Of the inputs."""
        self._fingerprint = self._fingerprint or fingerprint(self.phase, self.num_steps, *self._inputs)
        return self._fingerprint

    def _step_or_reason(self, log: RunLog, profile: profiling.Profile) -> tuple[dict[str, float], float]:
        where = f"{self.phase}, step {self.step}"
        try:
            with applied(self._passes, self._modules.values()):
                return self.train_step()
        except NotFiniteError as error:
            kept = log.keep(f"failed-{self.phase}-{self.step:08d}.json", self.batch())
            raise NotFiniteError(
                f"{where}: {error}; nothing of this step is saved. The batch is in {kept}; look at it, or lower the "
                "learning rate of this phase"
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            found = (str(error) or type(error).__name__).splitlines()[0]
            raise RuntimeError(
                f"{where}: found no more memory in {profile.failed_in or 'the update'} ({found}); "
                "lower microbatch or the limits of the lengths, or set passes.checkpoint_activations"
            ) from error

    def headline(self, metrics: Mapping[str, float]) -> str:
        """A few words beside the progress bar."""
        return f"loss {metrics['loss']:.3f}"

    def state_dict(self) -> dict:
        bases = {name: base.digest for name, module in self._modules.items() if (base := base_of(module)) is not None}
        return {
            **({"bases": bases} if bases else {}),
            "step": self.step,
            "weights": self._passes.weights,
            "modules": {name: module.state_dict() for name, module in self._learned.items()},
            "updates": {name: update.state_dict() for name, update in self._updates.items()},
            "extra": self.extra_state(),
        }

    def load_state_dict(self, state: Mapping) -> None:
        self.step = state["step"]
        for name, module in self._learned.items():
            module.load_state_dict(placed_like(state["modules"][name], module.state_dict()))
            round_masters(self._modules[name])
        for name, update in self._updates.items():
            update.load_state_dict(state["updates"][name])
        self.load_extra_state(state["extra"])


def _check_bases(folder: Path, found: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Raise ValueError where what a checkpoint holds are weights of other kinds, or adapters of another base."""
    if found == own:
        return
    kinds = {True: "adapters", False: "full weights"}
    there, wanted = kinds[bool(found)], f"one of {kinds[bool(own)]}"
    if found.keys() == own.keys():
        there, wanted = f"{there} on another base", "one on the same base"
    raise ValueError(f"{folder}: found a checkpoint of {there}, accepted is {wanted}; --fresh starts over")


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


class DataOrder:
    """A new random order of `num_rows` rows every epoch, as a function of (seed, epoch).

    `batch(step)` is the step-th batch; an epoch's last batch may be smaller.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        if num_rows < 1 or batch_size < 1:
            raise ValueError(f"data: found {num_rows} rows in batches of {batch_size}, accepted are positive counts")
        self.num_rows = num_rows
        self.batch_size = min(batch_size, num_rows)
        self.seed = seed
        self.steps_per_epoch = -(-num_rows // self.batch_size)
        self._cached_epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> list[int]:
        """Row numbers of a batch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[place * self.batch_size : (place + 1) * self.batch_size].tolist()

    def rows(self, first: int, count: int) -> list[int]:
        """`count` row numbers from the endless sequence of epochs, starting at its element `first`."""
        numbers: list[int] = []
        while count > 0:
            epoch, place = divmod(first, self.num_rows)
            part = self._epoch(epoch)[place : place + count].tolist()
            numbers += part
            first, count = first + len(part), count - len(part)
        return numbers

    def _epoch(self, epoch: int) -> Tensor:
        if epoch != self._cached_epoch:
            self._permutation = torch.randperm(self.num_rows, generator=keyed_generator(self.seed, epoch))
            self._cached_epoch = epoch
        return self._permutation
