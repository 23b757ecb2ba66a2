"""What a run has done: the results of its finished steps, and the checkpoints of the one that is under way.

    FOLDER/state/steps.json          finished steps in their order, with what they gave
    FOLDER/state/NAME/step-00000012  a checkpoint of the step NAME

A step's result is always what was read back, so a run that was stopped and one that was not work with the same bits.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instructrl import interruption
from instructrl.trainers.checkpoints import Checkpoint, CheckpointConfig, Checkpoints, sync
from instructrl.trainers.log import RunLog

STATE = "state"


class Journal:
    """folder: of the run. log: whose metrics are cut back to where the run goes on."""

    def __init__(self, folder: Path, log: RunLog, config: CheckpointConfig) -> None:
        self._folder, self._log, self._config = folder / STATE, log, config
        self._steps = _read(self._folder / "steps.json")

    def once(self, name: str, step: Callable[[Checkpoints, Checkpoint | None], Any]) -> Any:
        """The result of a step, carried out where it is not there yet.

        name: of the step, a folder's name. step: (where its checkpoints go, the one to go on from) -> its result, which
        JSON can hold; files that it writes are on the disk when it returns.
        Raises ValueError where all checkpoints of the step are damaged.
        """
        checkpoints = Checkpoints(self._folder / name, self._config, self._log.warn)
        for entry in self._steps:
            if entry["name"] == name:
                checkpoints.clear()  # a kill may have come right before
                return entry["result"]
        interruption.leave_if_wished()
        found = checkpoints.newest()
        before = self._steps[-1]["metrics_bytes"] if self._steps else 0
        self._log.rewind(before if found is None else found.metrics_bytes)
        if found is not None:
            self._log.say(f"{name}: going on from step {found.step}")
        result = step(checkpoints, found)
        entry = {"name": name, "result": result, "metrics_bytes": self._log.synced_bytes()}
        self._steps.append(json.loads(json.dumps(entry, allow_nan=False)))
        self._write()
        checkpoints.clear()
        return self._steps[-1]["result"]

    def _write(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        aside = self._folder / "steps.json.writing"
        aside.write_text(json.dumps(self._steps, indent=1) + "\n", encoding="utf-8")
        sync(aside)
        aside.replace(self._folder / "steps.json")
        sync(self._folder)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        steps = json.loads(path.read_text(encoding="utf-8"))
        good = isinstance(steps, list) and all({"name", "result", "metrics_bytes"} <= step.keys() for step in steps)
    except (ValueError, AttributeError, TypeError):
        good, steps = False, []
    if not good:
        raise ValueError(f"{path}: found no list of steps, accepted is the file as it was written, or --fresh")
    return steps
