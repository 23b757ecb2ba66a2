"""Weights & Biases: one run on its server, or files in the folder of the run for `wandb sync`.

The row of `metrics.jsonl` is wandb's step, which has to grow over all phases; each phase's curves are drawn over its
own `PHASE/step`. The variables of the environment that wandb reads hold as everywhere: WANDB_MODE, WANDB_PROJECT,
WANDB_ENTITY, WANDB_NAME.
"""

import importlib
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructrl.tracking.callbacks import Sample
from instructrl.tracking.rows import Results, Row

PROJECT = "instructrl"


class WandbRun:
    """folder: of the run. identity: of the run in the tracker, the same whenever it goes on."""

    def __init__(self, folder: Path, identity: str, config: Mapping[str, Any]) -> None:
        self._wandb = importlib.import_module("wandb")
        mailbox = importlib.import_module("wandb.sdk.mailbox")
        # Its process is gone, or does not answer; what it cannot send it keeps and tries again by itself.
        self.failures: tuple[type[Exception], ...] = (
            self._wandb.Error,
            OSError,
            mailbox.HandleAbandonedError,
            mailbox.MailboxClosedError,
        )
        self._folder, self._identity, self._config = folder, identity, dict(config)
        self._phases: set[str] = set()

    def start(self) -> None:
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", self._folder.resolve().name),
            id=self._identity,
            dir=str(self._folder),
            config=self._config,
            allow_val_change=True,
            resume="allow",
            settings=self._wandb.Settings(
                # A command line, an address of a git repository and what is printed may hold what is nobody's affair.
                **dict.fromkeys(("x_disable_meta", "x_disable_machine_info", "disable_git", "disable_code"), True),
                **dict.fromkeys(("x_save_requirements", "save_code", "symlink"), False),
                console="off",
                silent=True,
            ),
        )

    def there(self, kept: Sequence[Row]) -> set[int]:
        if not self._run.offline:
            return set(range(self._run.step))  # of the next one, as the server has it
        pattern = f"wandb/offline-run-*-{self._identity}/run-{self._identity}.wandb"
        records = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
        found: set[int] = set()
        for path in sorted(self._folder.glob(pattern)):
            for content in log_records(path.read_bytes()):
                record = records.FromString(content)
                if record.HasField("history"):
                    found.add(record.history.step.num)
        return found

    def row(self, row: Row, samples: Sequence[Sample]) -> None:
        if row.phase not in self._phases:
            self._phases.add(row.phase)
            self._run.define_metric(f"{row.phase}/step", hidden=True)
            self._run.define_metric(f"{row.phase}/*", step_metric=f"{row.phase}/step")
        values: dict[str, Any] = {f"{row.phase}/{name}": value for name, value in row.metrics.items()}
        values[f"{row.phase}/step"] = row.step
        if samples:
            lines = [[x.prompt, x.response, x.score] for x in samples]
            values[f"{row.phase}/samples"] = self._wandb.Table(columns=["prompt", "response", "score"], data=lines)
        self._run.log(values, step=row.number, commit=True)

    def profile(self, phase: str, values: Mapping[str, float]) -> None:
        self._run.summary.update({f"profile/{phase}/{name}": value for name, value in values.items()})

    def results(self, results: Results, number: int) -> None:
        self._run.summary.update({f"results/{name}": value for name, value in results.numbers.items()})
        lines = [list(line) for line in zip(results.prompts, *results.responses.values(), strict=True)]
        table = self._wandb.Table(columns=["prompt", *results.responses], data=lines)
        self._run.log({"results/samples": table}, step=number, commit=True)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


_HEADER, _BLOCK = 7, 32768
_WHOLE, _FIRST, _LAST = 1, 2, 4


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of wandb's file of a run; of a file that was cut short or damaged those before.

    Behind a header of its own, the file is in LevelDB's log format (doc/log_format.md of google/leveldb): blocks of
    32 KiB, in them parts with checksum, length and kind, and a record is one whole part, or a first and others up to a
    last.
    """
    place, record = _HEADER, b""
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, place)
        part = data[place + _HEADER : place + _HEADER + length]
        if len(part) < length or checksum != zlib.crc32(part, zlib.crc32(bytes([kind]))):
            return
        place += _HEADER + length
        record = part if kind in (_WHOLE, _FIRST) else record + part
        if kind in (_WHOLE, _LAST):
            yield record
