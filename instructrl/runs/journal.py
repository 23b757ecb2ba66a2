"""What a run has done: the results of its finished steps, and the checkpoints of the one that is under way.

    FOLDER/state/steps.json          finished steps in their order, with what they gave
    FOLDER/state/NAME/step-00000012  a checkpoint of the step NAME

A step's result is always what was read back, so a run that was stopped and one that was not work with the same bits.
Of a job of several processes, all carry out the steps, and the main one reads and writes the journal.
"""

import gc
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from instructrl import distributed, durable, progress
from instructrl.trainers.checkpoints import Checkpoint, Checkpoints, fingerprint, json_digest, rounding
from instructrl.trainers.log import RunLog
from instructrl.trainers.settings import CheckpointConfig

STATE = "state"
_FILE = "steps.json"
NOTHING: Mapping[str, Any] = MappingProxyType({})
NO_SOURCES: Mapping[str, str | None] = MappingProxyType({})


class Journal:
    """folder: of the run. log: whose metrics are cut back to where the run goes on. sources: where what steps are given
    comes from, by the name that they give it: a file or a folder, for messages.

    Raises ValueError where the journal, or the metrics that belong to it, are not as they were written.
    """

    def __init__(
        self, folder: Path, log: RunLog, config: CheckpointConfig, sources: Mapping[str, str | None] = NO_SOURCES
    ) -> None:
        self._folder, self._log, self._config, self._sources = folder / STATE, log, config, sources
        self._found, self._carried_out = False, False
        self._steps = distributed.from_main(self._read)

    def once(
        self, name: str, step: Callable[[Checkpoints, Checkpoint | None], Any], given: Mapping[str, Any] = NOTHING
    ) -> Any:
        """The result of a step, carried out where it is not there yet.

        name: of the step, a folder's name. step: (where its checkpoints go, the one to go on from) -> its result, which
        JSON can hold; files that it writes are on the disk when it returns. given: the data and the networks that the
        step works with by name, as `fingerprint` takes them.
        Raises ValueError where the step was done or begun with others, and where all its checkpoints are damaged.
        """
        with progress.wait(f"{name}: a digest of data and models", len(given)) as advance:
            with_what = json.dumps({what: _digest(value, advance) for what, value in given.items()})
        checkpoints = Checkpoints(self._folder / name, self._config, self._log.warn, given=with_what)
        for entry in self._steps:
            if entry["name"] == name:
                self._require_same(name, entry["given"], with_what)
                checkpoints.clear()  # a kill may have come right before
                self._found = True
                return entry["result"]
        distributed.leave_if_wished()
        self._carried_out = True
        found = checkpoints.newest()
        before = self._steps[-1]["metrics_bytes"] if self._steps else 0
        if found is not None:
            self._require_same(name, found.given, with_what)
            self._log.say(f"{name}: going on from step {found.step}")
            now = rounding()
            if changed := [
                f"{key} {found.rounding.get(key)}, now {now[key]}" for key in now if found.rounding.get(key) != now[key]
            ]:
                self._log.warn(f"{name}: begun with {'; '.join(changed)}: from here on not the same bits")
        distributed.from_main(lambda: self._log.rewind(before if found is None else found.metrics_bytes))
        result = step(checkpoints, found)
        if distributed.size_of_job() > 1:
            gc.collect()  # networks that are spread refer to themselves, and would stay where they are
        metrics_bytes = distributed.from_main(self._log.synced_bytes)
        entry = {"name": name, "given": with_what, "result": result, "metrics_bytes": metrics_bytes}
        self._steps.append(json.loads(json.dumps(entry, allow_nan=False)))
        distributed.from_main(self._write)
        checkpoints.clear()
        return self._steps[-1]["result"]

    def _require_same(self, name: str, before: str, now: str) -> None:
        old, new = (json.loads(text) if text.startswith("{") else {} for text in (before, now))
        changed = [self._named(what) for what in new if old.get(what) != new[what]]
        if before != now:
            raise ValueError(
                f"{self._folder.parent}: found the step {name} of a run with other content of "
                f"{' and '.join(changed) or 'its input'}; accepted is what it was, another --out, or --fresh to start "
                "over"
            )

    def _named(self, what: str) -> str:
        source = self._sources.get(what)
        return f"the {what}" if source is None else f"the {what} ({source})"

    def tell_if_done(self) -> None:
        """Say so where every step so far was done by an earlier call."""
        if self._found and not self._carried_out:
            self._log.say(
                f"{self._folder.parent}: all steps were done before with the same settings and data, so that nothing "
                "was trained; --fresh starts over"
            )

    def _read(self) -> list[dict[str, Any]]:
        steps = _read(self._folder / _FILE)
        if steps:
            self._log.require(steps[-1]["metrics_bytes"])
        return steps

    def _write(self) -> None:
        content = {"steps": self._steps, "sha256": json_digest(self._steps)}
        durable.make_folder(self._folder)
        durable.write_text(self._folder / _FILE, json.dumps(content, indent=1) + "\n")


class FinishedSteps(Journal):
    """The journal of a run that is only read: what its steps gave, and nothing is carried out or written.

    folder: of the run. Raises ValueError where its journal is not as it was written.
    """

    def __init__(self, folder: Path) -> None:
        self._run = folder
        self._steps = _read(folder / STATE / _FILE)

    @property
    def names(self) -> list[str]:
        """Of the steps that the run has done, in their order."""
        return [entry["name"] for entry in self._steps]

    def once(
        self, name: str, step: Callable[[Checkpoints, Checkpoint | None], Any], given: Mapping[str, Any] = NOTHING
    ) -> Any:
        """The result of a step that the run has done with what is given here.

        Raises ValueError where it has not, or with other data or networks.
        """
        entry = next((entry for entry in self._steps if entry["name"] == name), None)
        if entry is None:
            raise ValueError(
                f"{self._run}: found a run that has not done the step {name}, accepted is one that has; the command "
                "that began it goes on with it"
            )
        before, now = json.loads(entry["given"]), {what: fingerprint(value) for what, value in given.items()}
        if before != now:
            changed = [what for what in {**before, **now} if before.get(what) != now.get(what)]
            raise ValueError(
                f"{self._run}: found other content of the {' and the '.join(changed)} than its step {name} was carried "
                "out with, accepted is the run as it was left, and read by the program that made it"
            )
        return entry["result"]


def _digest(value: Any, advance: Callable[[], None]) -> str:
    digest = fingerprint(value)
    advance()
    return digest


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        steps = content["steps"]
        good = content["sha256"] == json_digest(steps)
    except (ValueError, KeyError, TypeError):
        good, steps = False, []
    if not good:
        raise ValueError(f"{path}: found it damaged, accepted is the file as it was written, or --fresh to start over")
    return steps
