"""What TRL's trainers have in common: `train`, going on with a checkpoint, and saving."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from instructrl import distributed
from instructrl.integrations.trl.arguments import _Arguments
from instructrl.models.adapters import adapter_of, check_targets
from instructrl.models.roles import RoleT, learner, network_of, on_shared_base
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
        found = self._checkpoint(wanted) if wanted else None  # first: where there is none, nothing is written
        log = RunLog(folder, continued=found is not None)
        checkpoints = Checkpoints(folder / "checkpoints", self.args.checkpoints, log.warn)
        if found is None:
            checkpoints.clear()
        else:
            self.resume(found)
            distributed.from_main(lambda: log.rewind(found.metrics_bytes))
        every = self.args.save_every(self.num_steps)
        saves = self.args.save_strategy != "no"
        while self.step < self.num_steps:
            until = min((self.step // every + 1) * every, self.num_steps)
            self.run(log, until, checkpoints if saves else None)
            if saves:
                self.save(checkpoints, log)

    def _checkpoint(self, wanted: str | bool) -> Checkpoint:
        newest = isinstance(wanted, bool) or wanted in ("True", "true")
        folder = self.args.folder / "checkpoints" if newest else Path(str(wanted)).parent
        there = Checkpoints(folder, self.args.checkpoints, RunLog(None).warn)
        found = there.newest() if newest else there.named(Path(str(wanted)).name)
        if found is None:
            raise ValueError(f"resume_from_checkpoint: found none in {folder}, accepted is a run that has saved one")
        return found

    def write(self, name: str, folder: Path, **given: Any) -> None:
        """One of the networks as a transformers folder, or that of an adapter. given: more that its `save` takes."""
        with unsharded(self._modules[name]) as network:
            if distributed.is_main():
                network.save(folder, self.processing_class, **given)  # pyright: ignore[reportCallIssue]


def check_network(name: str, network: Any) -> None:
    """Raise TypeError for another module than a transformers network, such as peft's around one."""
    if isinstance(network, nn.Module) and not isinstance(network, PreTrainedModel):
        raise TypeError(
            f"{name}: found {type(network).__name__}, accepted is a transformers network: of peft's model what "
            "`merge_and_unload()` gives, with peft_config for an adapter that is to learn"
        )


def adapted(role: RoleT, peft_config: Any, seed: int) -> RoleT:
    """A role whose adapter learns, on the role's weights. Raises ValueError for what adapters here do not have."""
    adapter = adapter_of(network_of(role), peft_config)
    check_targets(network_of(role), adapter)
    on_shared_base(role, adapter)
    return learner(role, adapter, seed)
