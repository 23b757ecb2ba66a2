"""Trackio: a run in its database, which `trackio show` draws. TRACKIO_DIR says where that is.

The row of `metrics.jsonl` is the step. Trackio catches what fails inside it, and warns of it once.
"""

import contextlib
import importlib
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from instructrl.tracking.callbacks import Sample
from instructrl.tracking.rows import Results, Row

PROJECT = "instructrl"


class TrackioRun:
    """name: of the run in the tracker, the same whenever it goes on."""

    failures: tuple[type[Exception], ...] = (OSError, sqlite3.Error)

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self._trackio, self._name, self._config = importlib.import_module("trackio"), name, dict(config)

    def start(self) -> None:
        # Its measurements of the machine go on in threads, of which a short run has more rows than of its own.
        options: dict[str, Any] = dict.fromkeys(("auto_log_gpu", "auto_log_cpu", "embed"), False)
        options |= {"project": PROJECT, "name": self._name, "config": self._config, "resume": "allow"}
        with contextlib.redirect_stdout(sys.stderr):
            self._run = self._trackio.init(**options)

    def there(self, kept: Sequence[Row]) -> set[int]:
        storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
        return {row["step"] for row in storage.get_logs(PROJECT, self._name, run_id=self._run.id)}

    def row(self, row: Row, samples: Sequence[Sample]) -> None:
        values: dict[str, Any] = {f"{row.phase}/{name}": value for name, value in row.metrics.items()}
        values[f"{row.phase}/step"] = row.step
        if samples:
            lines = [[x.prompt, x.response, x.score] for x in samples]
            values[f"{row.phase}/samples"] = self._table(["prompt", "response", "score"], lines)
        self._run.log(values, step=row.number)

    def profile(self, phase: str, values: Mapping[str, float]) -> None:
        self._run.log_system({f"profile/{phase}/{name}": value for name, value in values.items()})

    def results(self, results: Results, number: int) -> None:
        values: dict[str, Any] = {f"results/{name}": value for name, value in results.numbers.items()}
        lines = [list(line) for line in zip(results.prompts, *results.responses.values(), strict=True)]
        values["results/samples"] = self._table(["prompt", *results.responses], lines)
        self._run.log(values, step=number)

    def close(self, failed: bool) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._trackio.finish()

    def _table(self, columns: list[str], lines: list[list[Any]]) -> Any:
        return self._trackio.Table(columns=columns, data=lines)
