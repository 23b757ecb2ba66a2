"""Stand-ins for TensorBoard, wandb and Trackio: of each what the trackers call, with its signatures and its files.

What matters about the real ones was found by trying them, and is kept: wandb's and Trackio's writing is done elsewhere
and later, so that a kill loses what was sent last; wandb leaves a link behind; Trackio swallows its errors.
"""

import contextlib
import json
import os
import sqlite3
import struct
import sys
import time
import types
import uuid
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from instructrl.tracking import settings

VERSIONS = {"tensorboard": "2.21.0", "wandb": "0.31.0", "trackio": "0.43.0"}


def install(patch) -> None:
    """In place of what is installed. patch: as pytest's monkeypatch."""
    for name, members in _MODULES.items():
        module = types.ModuleType(name)
        module.__dict__.update(members)
        patch.setitem(sys.modules, name, module)
    for name in _MODULES:  # `import a.b` looks for b in a
        parent, _, child = name.rpartition(".")
        if parent in _MODULES:
            setattr(sys.modules[parent], child, sys.modules[name])
    real = settings.importlib.metadata.version
    patch.setattr(settings.importlib.metadata, "version", lambda name: VERSIONS.get(name) or real(name))


# ---- TensorBoard: protocol buffers as JSON, a line each


class _Message:
    """Of fields by name; one that was not given is made when it is asked for."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.__dict__[name] = _Repeated() if name in ("dim", "string_val", "value") else _Message()
        return self.__dict__[name]

    def __str__(self) -> str:
        return json.dumps(_plain(self))

    def HasField(self, name: str) -> bool:  # noqa: N802
        return name in self.__dict__

    def SerializeToString(self) -> bytes:  # noqa: N802
        return json.dumps(_plain(self)).encode()


class _Repeated(list):
    def add(self, **fields: Any) -> _Message:
        self.append(_Message(**fields))
        return self[-1]


class Event(_Message):
    pass


class SessionLog(_Message):
    START = 1


class Summary(_Message):
    class Value(_Message):
        def __init__(self, **fields: Any) -> None:
            if "simple_value" in fields:
                fields["simple_value"] = float(np.float32(fields["simple_value"]))
            super().__init__(**fields)


def _plain(value: Any) -> Any:
    if isinstance(value, _Message):
        return {name: _plain(field) for name, field in value.__dict__.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


def _message(value: Any) -> Any:
    if isinstance(value, dict):
        return _Message(**{name: _message(field) for name, field in value.items()})
    return _Repeated(map(_message, value)) if isinstance(value, list) else value


class RecordWriter:
    def __init__(self, writer) -> None:
        self._writer = writer

    def write(self, data: bytes) -> None:
        self._writer.write(data + b"\n")

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class LegacyEventFileLoader:
    def __init__(self, file_path: str) -> None:
        self._path = file_path

    def Load(self):  # noqa: N802
        for line in Path(self._path).read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):  # else it was cut short
                yield _message(json.loads(line))


class EventAccumulator:
    """As TensorBoard reads a folder: a start of a session drops what was there from its step on."""

    def __init__(self, path: str, size_guidance=None, purge_orphaned_data: bool = True) -> None:
        self._path, self._events = Path(path), []

    def Reload(self):  # noqa: N802
        for path in sorted(self._path.glob("*tfevents*")):
            for event in LegacyEventFileLoader(str(path)).Load():
                if event.HasField("session_log"):
                    self._events = [other for other in self._events if other.step < event.step]
                elif event.HasField("summary"):
                    self._events.append(event)
        return self

    def Tags(self) -> dict[str, list[str]]:  # noqa: N802
        tags: dict[str, dict[str, None]] = {"scalars": {}, "tensors": {}}
        for event in self._events:
            for value in event.summary.value:
                tags["scalars" if value.HasField("simple_value") else "tensors"][value.tag] = None
        return {kind: list(names) for kind, names in tags.items()}

    def _values(self, tag: str):
        return [(e.step, value) for e in self._events for value in e.summary.value if value.tag == tag]

    def Scalars(self, tag: str):  # noqa: N802
        return [types.SimpleNamespace(step=step, value=value.simple_value) for step, value in self._values(tag)]

    def Tensors(self, tag: str):  # noqa: N802
        found = [(step, [text.encode() for text in value.tensor.string_val]) for step, value in self._values(tag)]
        return [types.SimpleNamespace(step=step, tensor_proto=_Message(string_val=texts)) for step, texts in found]


# ---- wandb: records as JSON in a log of blocks, which come to the disk now and then


class Error(Exception):
    pass


class HandleAbandonedError(Exception):
    pass


class MailboxClosedError(Exception):
    pass


class Settings:
    def __init__(self, **settings: Any) -> None:
        self.settings = settings


class WandbTable:
    def __init__(self, columns=None, data=None) -> None:
        self.columns, self.data = columns, data


class Record:
    @staticmethod
    def FromString(content: bytes) -> _Message:  # noqa: N802
        return _message(json.loads(content))


class _Log:
    """Appends records in parts that end with a block, each with its checksum."""

    def __init__(self, path: Path) -> None:
        self._file, self._place = path.open("wb"), 7
        self._file.write(b":W&B\xe1\xbe\x00")
        self._file.flush()

    def add(self, record: dict) -> None:
        content, first = json.dumps(record).encode(), True
        while content or first:
            left = 32768 - self._place % 32768
            if left < 7:
                self._file.write(bytes(left))
                self._place += left
                continue
            part, content = content[: left - 7], content[left - 7 :]
            kind = (1 if first else 4) if not content else (2 if first else 3)
            checksum = zlib.crc32(part, zlib.crc32(bytes([kind])))
            self._file.write(struct.pack("<IHB", checksum, len(part), kind) + part)
            self._place, first = self._place + 7 + len(part), False

    def flush(self) -> None:
        self._file.flush()


class WandbRun:
    KEPT = 3  # records that are in memory alone

    def __init__(self, folder: Path, identity: str, config: dict) -> None:
        self.offline, self.step, self.summary = True, 0, self
        place = folder / "wandb" / f"offline-run-{time.time_ns()}-{identity}"
        (place / "files" / "media").mkdir(parents=True)
        (place / "logs").mkdir()
        (place / "logs" / "debug-core.log").symlink_to("/nowhere/core-debug.log")
        self._log, self._media, self._last = _Log(place / f"run-{identity}.wandb"), place / "files" / "media", -1
        self._log.add({"run": {"run_id": identity, "config": config}})
        self._waiting: list[dict] = []

    def define_metric(self, name: str, step_metric=None, step_sync=None, hidden=None, summary=None) -> None:
        self._send({"metric": {"name": name, "step_metric": step_metric}})

    def log(self, data: dict, step: int | None = None, commit: bool | None = None) -> None:
        assert step is not None
        assert step > self._last, "wandb drops a step that is not later than the one before"
        self._last, items = step, []
        for name, value in data.items():
            if isinstance(value, WandbTable):
                path = self._media / f"{name.replace('/', '_')}_{step}.table.json"
                path.write_text(json.dumps({"columns": value.columns, "data": value.data}))
                value = {"path": f"media/{path.name}"}
            items.append({"nested_key": [name], "value_json": json.dumps(value)})
        self._send({"history": {"step": {"num": step}, "item": items}})

    def update(self, data: dict) -> None:
        updates = [{"key": name, "value_json": json.dumps(value)} for name, value in data.items()]
        self._send({"summary": {"update": updates}})

    def finish(self, exit_code: int | None = None) -> None:
        self._send({"exit": {"exit_code": exit_code}}, keep=0)

    def _send(self, record: dict, keep: int = KEPT) -> None:
        self._waiting.append(record)
        while len(self._waiting) > keep:
            self._log.add(self._waiting.pop(0))
        self._log.flush()


def wandb_init(
    project=None, dir=None, id=None, name=None, config=None, allow_val_change=None, resume=None, settings=None
) -> WandbRun:
    return WandbRun(Path(dir), id, config)


# ---- Trackio: a database, which gets rows some at a time


class TrackioTable:
    def __init__(self, columns=None, data=None) -> None:
        self.rows = [dict(zip(columns, line, strict=True)) for line in data]


class TrackioRun:
    def __init__(self, project: str, name: str, config: dict) -> None:
        self.name = name
        found = _database(project).execute("SELECT run_id FROM metrics WHERE run_name = ?", (name,)).fetchone()
        self.id = found[0] if found else uuid.uuid4().hex
        self._project, self._config, self._waiting = project, config, []

    def log(self, metrics: dict, step: int | None = None) -> None:
        plain = {
            name: {"_type": "trackio.table", "_value": value.rows} if isinstance(value, TrackioTable) else value
            for name, value in metrics.items()
        }
        line = (self.id, "", self.name, step, json.dumps(plain), uuid.uuid4().hex, None)
        self._waiting.append(("INSERT INTO metrics VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", line))
        if len(self._waiting) > 3:
            self.flush()

    def log_system(self, metrics: dict) -> None:
        line = (self.id, "", self.name, json.dumps(metrics), uuid.uuid4().hex, None)
        self._waiting.append(("INSERT INTO system_metrics VALUES (NULL, ?, ?, ?, ?, ?, ?)", line))

    def flush(self) -> None:
        config = (self.id, self.name, json.dumps(self._config), "")
        with contextlib.suppress(sqlite3.Error), _database(self._project) as database:
            database.execute("INSERT OR REPLACE INTO configs VALUES (NULL, ?, ?, ?, ?)", config)
            for statement, line in self._waiting:
                database.execute(statement, line)
        self._waiting = []


def _database(project: str) -> sqlite3.Connection:
    folder = Path(os.environ["TRACKIO_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(folder / f"{project}.db")
    ids = "id INTEGER PRIMARY KEY, run_id TEXT"
    database.execute(
        f"CREATE TABLE IF NOT EXISTS metrics ({ids}, timestamp TEXT, run_name TEXT, step INTEGER, metrics TEXT, "
        "log_id TEXT, space_id TEXT)"
    )
    database.execute(
        f"CREATE TABLE IF NOT EXISTS configs ({ids}, run_name TEXT, config TEXT, created_at TEXT, UNIQUE(run_id))"
    )
    database.execute(
        f"CREATE TABLE IF NOT EXISTS system_metrics ({ids}, timestamp TEXT, run_name TEXT, metrics TEXT, log_id TEXT, "
        "space_id TEXT)"
    )
    return database


_current: list[TrackioRun] = []


def trackio_init(
    project, name=None, config=None, resume="never", embed=True, auto_log_gpu=None, auto_log_cpu=None
) -> TrackioRun:
    print(f"* Trackio project initialized: {project}")
    assert resume == "allow"
    _current[:] = [TrackioRun(project, name, config)]
    return _current[0]


def trackio_finish() -> None:
    print("* Run finished. Uploading logs to Trackio (please wait...)")
    _current[0].flush()


class SQLiteStorage:
    @staticmethod
    def get_logs(project: str, run: str | None = None, max_points=None, run_id: str | None = None) -> list[dict]:
        found = _database(project).execute("SELECT step FROM metrics WHERE run_id = ? ORDER BY id", (run_id,))
        return [{"step": step} for (step,) in found]


_MODULES: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("tensorboard", "tensorboard.compat", "tensorboard.compat.proto", "tensorboard.plugins")},
    **{name: {} for name in ("tensorboard.plugins.text", "tensorboard.summary", "tensorboard.summary.writer")},
    **{name: {} for name in ("tensorboard.backend", "tensorboard.backend.event_processing")},
    "tensorboard.compat.proto.event_pb2": {"Event": Event, "SessionLog": SessionLog},
    "tensorboard.compat.proto.summary_pb2": {"Summary": Summary},
    "tensorboard.plugins.text.metadata": {
        "create_summary_metadata": lambda display_name, description: _Message(display_name=display_name)
    },
    "tensorboard.summary.writer.record_writer": {"RecordWriter": RecordWriter},
    "tensorboard.backend.event_processing.event_file_loader": {"LegacyEventFileLoader": LegacyEventFileLoader},
    "tensorboard.backend.event_processing.event_accumulator": {"EventAccumulator": EventAccumulator},
    "wandb": {"init": wandb_init, "Settings": Settings, "Table": WandbTable, "Error": Error},
    "wandb.sdk": {},
    "wandb.sdk.mailbox": {"HandleAbandonedError": HandleAbandonedError, "MailboxClosedError": MailboxClosedError},
    "wandb.proto": {},
    "wandb.proto.wandb_internal_pb2": {"Record": Record},
    "trackio": {"init": trackio_init, "finish": trackio_finish, "Table": TrackioTable},
    "trackio.sqlite_storage": {"SQLiteStorage": SQLiteStorage},
}
