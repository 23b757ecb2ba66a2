"""What TRL's trainers have in common: `train`, going on with a checkpoint, and saving."""

from pathlib import Path
from typing import Any

from instructrl import distributed
from instructrl.integrations.trl.arguments import _Arguments
from instructrl.models.spread import unsharded
from instructrl.trainers.checkpoints import Checkpoint, Checkpoints
from instructrl.trainers.log import RunLog
from instructrl.trainers.loop import Trainer


class Runs(Trainer):
    """A trainer that a `_Arguments` runs in its folder."""

    args: _Arguments
    processing_class: Any

    def train(self, resume_from_checkpoint: str | bool | None = None) -> None:
        """Train to the end, with checkpoints and metrics in `args.output_dir`.

        resume_from_checkpoint: True goes on with the newest checkpoint of the folder, a path with that one, to the same
        bits as without the break; None does what the arguments say, and False starts over, which removes checkpoints
        that are there. Raises ValueError where there is none, or one of another run.
        """
        wanted = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        folder = self.args.folder
        log = RunLog(folder, continued=bool(wanted))
        checkpoints = Checkpoints(folder / "checkpoints", self.args.checkpoints, log.warn)
        if wanted:
            found = self._checkpoint(wanted, checkpoints, log)
            self.resume(found)
            distributed.from_main(lambda: log.rewind(found.metrics_bytes))
        else:
            checkpoints.clear()
        every = self.args.save_every(self.num_steps)
        saves = self.args.save_strategy != "no"
        while self.step < self.num_steps:
            until = min((self.step // every + 1) * every, self.num_steps)
            self.run(log, until, checkpoints if saves else None)
            if saves:
                self.save(checkpoints, log)

    def _checkpoint(self, wanted: str | bool, checkpoints: Checkpoints, log: RunLog) -> Checkpoint:
        if isinstance(wanted, bool) or wanted in ("True", "true"):
            found = checkpoints.newest()
            where = checkpoints.folder
        else:
            where = Path(wanted)
            found = Checkpoints(where.parent, self.args.checkpoints, log.warn).named(where.name)
        if found is None:
            raise ValueError(f"resume_from_checkpoint: found none in {where}, accepted is a run that has saved one")
        return found

    def write(self, name: str, folder: Path) -> None:
        """One of the networks as a transformers folder."""
        with unsharded(self._modules[name]) as network:
            if distributed.is_main():
                network.save(folder, self.processing_class)  # pyright: ignore[reportCallIssue]
