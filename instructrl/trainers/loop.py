"""The loop that every step shares, and the order in which data are visited."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from instructrl import profiling
from instructrl.models.passes import PassConfig
from instructrl.rollout.randomness import keyed_generator
from instructrl.trainers.log import RunLog
from instructrl.trainers.optimization import Update


class Trainer(ABC):
    """A number of steps over networks and their optimisers.

    The state is `step`, the networks, the optimisers, and what `extra_state` names. Everything random is keyed by
    the seed and the step, so there is no generator to save: a trainer at step n does the same whatever came before.

    phase: the name in `metrics.jsonl`. unit: what the progress rate counts. passes: how the networks are run.
    """

    unit = "tokens"

    def __init__(
        self,
        phase: str,
        num_steps: int,
        modules: Mapping[str, nn.Module],
        updates: Mapping[str, Update],
        passes: PassConfig,
    ) -> None:
        self.phase = phase
        self._passes = passes
        self.num_steps = num_steps
        self.step = 0
        self._modules = dict(modules)
        self._updates = dict(updates)

    @abstractmethod
    def train_step(self) -> tuple[dict[str, float], float]:
        """Do step number `self.step`. Returns metrics and the units done."""

    def extra_state(self) -> dict[str, float]:
        """Scalars that belong to the state beside networks and optimisers."""
        return {}

    def load_extra_state(self, state: Mapping[str, float]) -> None:
        """Take back what `extra_state` gave."""
        assert not state, state

    def run(self, log: RunLog, until: int | None = None) -> None:
        """Train up to step `until` (None: to the end), writing the metrics of every step."""
        end = self.num_steps if until is None else min(until, self.num_steps)
        with log.phase(self.phase, end - self.step, self.unit) as progress:
            while self.step < end:
                with profiling.collect() as profile, self._passes.applied(self._modules.values()):
                    metrics, units = self.train_step()
                log.metrics(self.phase, self.step, metrics)
                self.step += 1
                progress.advance(units=units, note=self.headline(metrics), profile=profile)

    def headline(self, metrics: Mapping[str, float]) -> str:
        """A few words beside the progress bar."""
        return f"loss {metrics['loss']:.3f}"

    def state_dict(self) -> dict:
        return {
            "step": self.step,
            "modules": {name: module.state_dict() for name, module in self._modules.items()},
            "updates": {name: update.state_dict() for name, update in self._updates.items()},
            "extra": self.extra_state(),
        }

    def load_state_dict(self, state: Mapping) -> None:
        self.step = state["step"]
        for name, module in self._modules.items():
            module.load_state_dict(state["modules"][name])
        for name, update in self._updates.items():
            update.load_state_dict(state["updates"][name])
        self.load_extra_state(state["extra"])


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
        taken: list[int] = []
        while count > 0:
            epoch, place = divmod(first, self.num_rows)
            part = self._epoch(epoch)[place : place + count].tolist()
            taken += part
            first, count = first + len(part), count - len(part)
        return taken

    def _epoch(self, epoch: int) -> Tensor:
        if epoch != self._cached_epoch:
            self._permutation = torch.randperm(self.num_rows, generator=keyed_generator(self.seed, epoch))
            self._cached_epoch = epoch
        return self._permutation
