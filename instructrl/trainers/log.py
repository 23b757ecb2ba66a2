"""What a run writes while it runs: `metrics.jsonl`, `profile.jsonl`, and progress bars."""

import json
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from instructrl import distributed, durable, progress
from instructrl.profiling import PHASES, Profile
from instructrl.progress import Line
from instructrl.tracking.callbacks import Callback, CheckpointDone, PhaseDone, Sample, StepDone
from instructrl.tracking.masking import masked
from instructrl.trainers.optimization import NotFiniteError

_NO_SECONDS: Mapping[str, float] = MappingProxyType({})


def _no_samples(count: int) -> Sequence[Sample]:
    return ()


class Phase:
    """A part of a run that is being timed. `advance` moves its bar."""

    def __init__(self, line: Line, advance: Callable[..., None]) -> None:
        self._line = line
        self._advance = advance
        self.counts: dict[str, float] = {}
        self.profile = Profile()

    @property
    def units(self) -> float:
        """Those done so far."""
        return self._line.units

    def advance(self, steps: int = 1, *, units: float = 0.0, note: str = "", profile: Profile | None = None) -> None:
        """Count steps done. units: what the rate counts (tokens, episodes). note: a few words beside the bar, the most
        telling first, with two spaces between them. profile: of these steps."""
        self._line.units += units
        notes = note.split("  ") if note else []
        if profile is not None:
            self.profile.add(profile)
            notes += _largest(self.profile)
        self._advance(steps, *notes)


class RunLog:
    """Metrics that the run determines go to `metrics.jsonl`; times and memory, which it does not, to `profile.jsonl`.

    folder: where both are written, by the main process alone; None writes nothing. continued: files that are there are
    added to, not replaced.
    """

    def __init__(self, folder: Path | None, console: Console | None = None, *, continued: bool = False) -> None:
        self._console = console or progress.console() or Console(stderr=True, quiet=not distributed.is_main())
        self._folder = folder
        self._writes = folder is not None and distributed.is_main()
        self._warned: set[str] = set()
        self._callbacks: tuple[Callback, ...] = ()
        if folder is not None and self._writes:
            durable.make_folder(folder)
            for name in ("metrics.jsonl", "profile.jsonl"):
                with (folder / name).open("a" if continued else "w", encoding="utf-8"):
                    pass
            durable.sync(folder)
            _mend(folder / "profile.jsonl")
        self._num_rows = self._rows_there()

    @contextmanager
    def calling(self, callbacks: Sequence[Callback]) -> Iterator[None]:
        """Inside, these too are told what is done. Raises TypeError for an object that is no callback."""
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks: found {type(callback).__name__}, accepted is what derives from Callback")
        before, self._callbacks = self._callbacks, (*self._callbacks, *callbacks)
        try:
            yield
        finally:
            self._callbacks = before

    def _told(self) -> Sequence[Callback]:
        return self._callbacks if distributed.is_main() else ()

    def metrics(
        self,
        phase: str,
        step: int,
        values: Mapping[str, float],
        *,
        seconds: Mapping[str, float] = _NO_SECONDS,
        samples: Callable[[int], Sequence[Sample]] = _no_samples,
    ) -> None:
        """One row of `metrics.jsonl`, of which callbacks are told. seconds, samples: see `StepDone`.

        Raises NotFiniteError for a number that is not finite.
        """
        for name, value in values.items():
            if value != value or value in (float("inf"), float("-inf")):
                raise NotFiniteError(f"{phase}, step {step}: {name} is {value}; lower the learning rate of this phase")
        self._append("metrics.jsonl", {"phase": phase, "step": step, **values})
        row, self._num_rows = self._num_rows, self._num_rows + 1
        for callback in self._told():
            done = StepDone(
                phase=phase,
                step=step,
                row=row,
                metrics=MappingProxyType(dict(values)),
                seconds=MappingProxyType(dict(seconds)),
                samples=samples,
            )
            callback.after_step(done)

    def saved(self, phase: str, step: int, folder: Path) -> None:
        """Tell callbacks of a checkpoint."""
        for callback in self._told():
            callback.after_checkpoint(CheckpointDone(phase=phase, step=step, folder=folder))

    def _rows_there(self) -> int:
        """The rows of `metrics.jsonl`."""
        if self._folder is None or not self._writes:
            return 0
        with (self._folder / "metrics.jsonl").open("rb") as file:
            return sum(1 for _ in file)

    def synced_bytes(self) -> int:
        """The length of `metrics.jsonl`, all of which is on the disk."""
        if self._folder is None or not self._writes:
            return 0
        path = self._folder / "metrics.jsonl"
        durable.sync(path)
        return path.stat().st_size

    def require(self, metrics_bytes: int) -> None:
        """Raise ValueError where the metrics are shorter than `synced_bytes` said they are."""
        found = self.synced_bytes()
        if self._folder is not None and self._writes and found < metrics_bytes:
            raise ValueError(
                f"{self._folder / 'metrics.jsonl'}: found {found} bytes, the run had written {metrics_bytes}; accepted "
                "is the file as it was, or --fresh to start over"
            )

    def rewind(self, metrics_bytes: int) -> None:
        """Forget the metrics behind a length that `synced_bytes` gave. Raises ValueError where they are shorter."""
        self.require(metrics_bytes)
        if self._folder is not None and self._writes:
            os.truncate(self._folder / "metrics.jsonl", metrics_bytes)
            self._num_rows = self._rows_there()

    def keep(self, name: str, content: object) -> Path | None:
        """Write something for a person to look at. Returns where."""
        if self._folder is None:
            return None
        path = self._folder / name
        if self._writes:
            durable.write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return path

    def say(self, text: str) -> None:
        """A line for whoever watches."""
        self._console.print(masked(text), markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """A warning, once however often it is given."""
        if text not in self._warned:
            self._warned.add(text)
            self.say(f"warning: {text}")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows of `metrics.jsonl` so far; none in a process that does not write."""
        if self._folder is None or not self._writes:
            return []
        return [json.loads(line) for line in (self._folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    @contextmanager
    def phase(self, name: str, total: int, unit: str = "steps") -> Iterator[Phase]:
        """Show a bar for a part of the run, and write a row of `profile.jsonl` when it ends.

        total: steps to do. unit: what `Phase.advance(units=...)` counts.
        """
        start = time.perf_counter()
        line = Line(name, total, lasting=True, unit=unit)
        with progress.shown_on(self._console) as display, display.of(line) as advance:
            phase = Phase(line, advance)
            finished = False
            try:
                yield phase
                finished = True
            finally:  # the time of what is broken off was spent too; why it was is not to be hidden by a full disk
                with nullcontext() if finished else suppress(OSError):
                    self._profile(name, unit, phase, time.perf_counter() - start)

    def _profile(self, name: str, unit: str, phase: Phase, seconds: float) -> None:
        row = {"phase": name, "seconds": round(seconds, 3), **phase.counts}
        if distributed.size_of_job() > 1:
            row["processes"] = distributed.size_of_job()
        if phase.units:
            row[unit] = phase.units
            row[f"{unit}_per_second"] = round(phase.units / seconds, 1)
        row |= _as_row(phase.profile, seconds)
        row["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._append("profile.jsonl", row)
        for callback in self._told():
            callback.after_phase(PhaseDone(phase=name, profile=MappingProxyType(dict(row))))

    def _append(self, name: str, row: Mapping[str, object]) -> None:
        if self._folder is not None and self._writes:
            path = self._folder / name
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            except OSError as error:
                raise OSError(f"{path}: found {error.strerror}, accepted is a file that can be written to") from error


def _mend(path: Path) -> None:
    """Take rows away that are none. Nothing waits for these rows to be on the disk: a loss of power may leave half of
    one, or zeros."""
    content = path.read_bytes()
    rows = b"".join(line for line in content.splitlines(keepends=True) if _is_row(line))
    if rows != content:
        durable.write_bytes(path, rows)


def _is_row(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _largest(profile: Profile) -> list[str]:
    """The two phases that take most of the time, with their shares."""
    total = sum(profile.seconds.values())
    order = sorted(profile.seconds, key=lambda name: profile.seconds[name], reverse=True)
    return [f"{name} {profile.seconds[name] / total:.0%}" for name in order[:2] if total > 0]


def _as_row(profile: Profile, seconds: float) -> dict[str, object]:
    """What a profile adds to a row of `profile.jsonl` about so many seconds."""
    row: dict[str, object] = {}
    if profile.seconds:
        row["parts"] = {name: round(profile.seconds[name], 3) for name in PHASES if name in profile.seconds}
    if profile.computed:
        tokens = profile.tokens
        row["network_tokens"] = tokens
        row["network_tokens_per_second"] = round(tokens / seconds, 1)
        row["padding"] = round(1 - tokens / profile.computed, 4)
    return row
