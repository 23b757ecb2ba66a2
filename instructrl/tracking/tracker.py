"""A tracker as a callback: what of a run goes to a library, what is left out, and what happens where it fails."""

import json
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from instructrl import distributed, durable
from instructrl.tracking.callbacks import Callback, PhaseDone, Sample, StepDone
from instructrl.tracking.masking import masked, masked_values
from instructrl.tracking.rows import Library, Row, results_of, rows_of
from instructrl.tracking.settings import TrackerName, check_tracker

# Of the responses that the policy makes in a step: so many, every so many steps.
NUM_SAMPLES, SAMPLES_EVERY = 4, 10
# Which run in the trackers this folder is.
IDENTITY = "tracking.json"


class Tracker(Callback):
    """Keeps a run in a tracker as `metrics.jsonl` is, whatever became of the processes that wrote it.

    A row that the tracker has is not sent again: the repeated steps of a run that goes on give the same bits. A row
    that it lacks, because a kill came before it was written or another tracker was used, is sent from `metrics.jsonl`.
    Where the library fails, that is told once and nothing more is sent; training goes on.

    Used in a `with`, it closes the run in the tracker behind it.
    """

    def __init__(self, name: str, library: Library | None, folder: Path, warn: Callable[[str], None]) -> None:
        self._name, self._library, self._folder, self._warn = name, library, folder, warn
        self._there: set[int] | None = None

    def after_step(self, done: StepDone) -> None:
        row = Row(number=done.row, phase=done.phase, step=done.step, metrics=done.metrics)
        self._try(lambda library: self._send(library, row, done.samples))

    def after_phase(self, done: PhaseDone) -> None:
        self._try(lambda library: library.profile(done.phase, _numbers(done.profile)))

    def after_results(self, results: Mapping[str, Any]) -> None:
        """What `results.json` says, at the end of a run."""
        self._try(lambda library: self._send_results(library, results))

    def close(self, failed: bool = False) -> None:
        """End the run in the tracker. failed: it did not come to its end."""
        self._try(lambda library: self._complete(library, None))
        self._try(lambda library: library.close(failed))
        self._library = None

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def _try(self, send: Callable[[Library], object]) -> None:
        library = self._library
        if library is None:
            return
        try:
            send(library)
        except library.failures as error:
            self._library = None
            self._warn(
                f"track {self._name}: found {_reason(error)}; training goes on without it. The same command sends what "
                "is missing, where the run is not over"
            )

    def _send(self, library: Library, row: Row, samples: Callable[[int], Sequence[Sample]]) -> None:
        if row.number in self._complete(library, row.number):
            return
        found = samples(NUM_SAMPLES) if row.step % SAMPLES_EVERY == 0 else ()
        library.row(row, [replace(x, prompt=_printable(x.prompt), response=_printable(x.response)) for x in found])

    def _send_results(self, library: Library, results: Mapping[str, Any]) -> None:
        there = self._complete(library, None)
        number = sum(1 for _ in rows_of(self._folder))
        if number not in there:
            library.results(results_of(_printable_values(results)), number)

    def _complete(self, library: Library, end: int | None) -> set[int]:
        """Once: send the rows before number `end` that are not there. Returns those that were."""
        if self._there is None:
            kept = [row for row in rows_of(self._folder) if end is None or row.number < end]
            self._there = library.there(kept)
            for row in kept:
                if row.number not in self._there:
                    library.row(row, [])
        return self._there


def open_tracker(
    name: TrackerName, folder: str | Path, config: Mapping[str, Any], warn: Callable[[str], None] = warnings.warn
) -> Tracker:
    """The tracker of this name, for the run in a folder; one that does nothing for "none", and in every process of a
    job but the main one.

    config: settings to show; credentials in them are masked. warn: is told once where the tracker fails. Raises
    ValueError where its package is not installed or of an unknown version, RuntimeError where it cannot be begun.
    """
    folder = Path(folder)
    if name == "none" or not distributed.is_main():
        return Tracker(name, None, folder, warn)
    check_tracker(name)
    return Tracker(name, _opened(name, folder, masked_values(config)), folder, warn)


def _opened(name: TrackerName, folder: Path, config: dict[str, Any]) -> Library:
    durable.make_folder(folder)
    library = _library(name, folder, config)
    try:
        library.start()
    except library.failures as error:
        raise RuntimeError(f"track {name}: found {_reason(error)}, accepted is {_ACCEPTED[name]}") from error
    return library


def _library(name: TrackerName, folder: Path, config: dict[str, Any]) -> Library:
    if name == "tensorboard":
        from instructrl.tracking.tensorboard_files import TensorBoardFiles

        return TensorBoardFiles(folder, yaml.safe_dump(config, sort_keys=False))
    identity = _identity(folder)
    if name == "wandb":
        from instructrl.tracking.wandb_run import WandbRun

        return WandbRun(folder, identity, config)
    from instructrl.tracking.trackio_run import TrackioRun

    return TrackioRun(f"{folder.resolve().name}-{identity}", config)


_ACCEPTED = {
    "tensorboard": "a folder that can be written to",
    "wandb": "a server that answers to a key (wandb login), or WANDB_MODE=offline",
    "trackio": "a folder of its own that can be written to (TRACKIO_DIR)",
}


def _identity(folder: Path) -> str:
    """Made once for a run. Not of the global random numbers, which belong to whoever trains."""
    path = folder / IDENTITY
    if not path.exists():
        durable.write_text(path, json.dumps({"run": secrets.token_hex(4)}) + "\n")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["run"]
        int(found, 16)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: found it damaged, accepted is the file as it was written, or none") from None
    return found


def _reason(error: Exception) -> str:
    lines = masked(str(error)).splitlines()
    return lines[0] if lines else type(error).__name__


def _numbers(profile: Mapping[str, Any]) -> dict[str, float]:
    """Of a row, what it has under its parts by name."""
    found: dict[str, float] = {}
    for name, value in profile.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{part}": number for part, number in _numbers(value).items()}
        elif isinstance(value, int | float):
            found[name] = value
    return found


def _printable(text: str) -> str:
    """Halves of characters, which a model can sample, are nothing that could be stored."""
    return text.encode("utf-8", "replace").decode()


def _printable_values(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _printable_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable_values(item) for item in value]
    return _printable(value) if isinstance(value, str) else value
