"""TensorBoard: event files in the folder of the run, written here record by record, without a thread.

    FOLDER/tensorboard/PHASE      a run in TensorBoard's sense: the curves of a phase by its steps, samples as text
                       config     the settings as text
                       profile    what each part took, by the number of times that it was begun
                       results    win rates and scores, and the responses side by side

A file is a sequence of records (length, checksum, content, checksum), each an `Event`. All numbers of a row are one
event, so a row is there or is not. Where a run goes on, an event says from which step on this phase is written anew;
TensorBoard drops what it read of those steps before.
"""

import importlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from instructrl.tracking.callbacks import Sample
from instructrl.tracking.rows import Results, Row

FOLDER = "tensorboard"
_ROOMS = ("config", "profile", "results")


class TensorBoardFiles:
    """folder: of the run. config: as text."""

    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, folder: Path, config: str) -> None:
        events = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._events, self._summaries = events, importlib.import_module("tensorboard.compat.proto.summary_pb2")
        self._texts = importlib.import_module("tensorboard.plugins.text.metadata")
        self._record = importlib.import_module("tensorboard.summary.writer.record_writer").RecordWriter
        self._loader = importlib.import_module("tensorboard.backend.event_processing.event_file_loader")
        self._folder, self._config = folder / FOLDER, config
        self._files: dict[str, Any] = {}

    def start(self) -> None:
        self._restart("config", 0)
        self._write("config", 0, [self._text("config", _indented(self._config))])

    def there(self, kept: Sequence[Row]) -> set[int]:
        found: set[int] = set()
        phases = {path.name for path in self._folder.iterdir()} - {*_ROOMS} if self._folder.exists() else set()
        for phase in sorted(phases):
            own = [row for row in kept if _room(row.phase) == phase]
            steps = self._steps(phase)
            if len(steps) > len(own):
                first = min(steps[len(own) :])
                self._restart(phase, first)
                # Validation may have given another row to a step that is not repeated: it is dropped and written again.
                found |= {row.number for row in own if row.step < first}
            else:
                found |= {row.number for row in own[: len(steps)]}
        return found

    def row(self, row: Row, samples: Sequence[Sample]) -> None:
        values = [self._number(name, value) for name, value in row.metrics.items()]
        if samples:
            blocks = [f"**score {x.score:+.3f}**\n\n{_indented(x.prompt)}\n\n{_indented(x.response)}" for x in samples]
            values.append(self._text("samples", "\n\n---\n\n".join(blocks)))
        self._write(_room(row.phase), row.step, values)

    def profile(self, phase: str, values: Mapping[str, float]) -> None:
        times = sum(f"{phase}/seconds" in event for event in self._tags("profile"))
        self._write("profile", times, [self._number(f"{phase}/{name}", value) for name, value in values.items()])

    def results(self, results: Results, number: int) -> None:
        values = [self._number(name, value) for name, value in results.numbers.items()]
        blocks = []
        for i, prompt in enumerate(results.prompts):
            said = [f"**{name}**\n\n{_indented(texts[i])}" for name, texts in results.responses.items()]
            blocks.append("\n\n".join([_indented(prompt), *said]))
        self._restart("results", 0)
        self._write("results", 0, [*values, self._text("samples", "\n\n---\n\n".join(blocks))])

    def close(self, failed: bool) -> None:
        for file in self._files.values():
            file.close()

    def _steps(self, phase: str) -> list[int]:
        """The steps of the rows of a phase that are shown, in their order."""
        steps: list[int] = []
        for event in self._read(phase):
            if event.HasField("session_log"):
                steps = [step for step in steps if step < event.step]
            elif event.HasField("summary"):
                steps.append(event.step)
        return steps

    def _tags(self, room: str) -> list[set[str]]:
        return [{value.tag for value in event.summary.value} for event in self._read(room) if event.HasField("summary")]

    def _read(self, room: str) -> list[Any]:
        """Events of all files. What a kill or a full disk has cut short is left out, as TensorBoard does."""
        paths = sorted((self._folder / room).glob("*tfevents*"))
        return [event for path in paths for event in self._loader.LegacyEventFileLoader(str(path)).Load()]

    def _restart(self, room: str, step: int) -> None:
        log = self._events.SessionLog(status=self._events.SessionLog.START)
        self._add(room, self._events.Event(wall_time=time.time(), step=step, session_log=log))

    def _write(self, room: str, step: int, values: Sequence[Any]) -> None:
        summary = self._summaries.Summary(value=values)
        self._add(room, self._events.Event(wall_time=time.time(), step=step, summary=summary))

    def _add(self, room: str, event: Any) -> None:
        if room not in self._files:
            self._files[room] = self._record(self._new_file(room))
            self._add(room, self._events.Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._files[room].write(event.SerializeToString())
        self._files[room].flush()

    def _new_file(self, room: str) -> BinaryIO:
        """Behind those that are there: TensorBoard reads files in the order of their names."""
        folder = self._folder / room
        folder.mkdir(parents=True, exist_ok=True)
        count = len([*folder.glob("*tfevents*")])
        return (folder / f"events.out.tfevents.{count:010d}.instructrl").open("xb")

    def _number(self, tag: str, value: float) -> Any:
        return self._summaries.Summary.Value(tag=tag, simple_value=value)

    def _text(self, tag: str, text: str) -> Any:
        value = self._summaries.Summary.Value(tag=tag, metadata=self._texts.create_summary_metadata(tag, ""))
        value.tensor.dtype = 7  # DT_STRING of TensorFlow's types.proto
        value.tensor.tensor_shape.dim.add(size=1)
        value.tensor.string_val.append(text.encode())
        return value


def _room(phase: str) -> str:
    """A folder's name. No phase is called as one of the others."""
    return f"phase {phase}" if phase in _ROOMS else phase.replace("/", "_")


def _indented(text: str) -> str:
    """Markdown that shows a text as it is."""
    return "\n".join(f"    {line}" for line in text.split("\n"))
