"""What a tracker shows of a run, read back as its own readers do."""

import importlib
import inspect
import json
import sqlite3
import struct
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import stand_ins


@dataclass
class Shown:
    """curves: (phase, name) -> (step, value) in the order in which they are kept. texts: of samples, by place. runs: as
    many as the tracker takes it for."""

    curves: dict[tuple[str, str], list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    texts: dict[str, str] = field(default_factory=dict)
    config: str = ""
    profile: dict[str, float] = field(default_factory=dict)
    results: dict[str, float] = field(default_factory=dict)
    runs: int = 1

    def add(self, values: dict[str, Any]) -> None:
        """A row whose names are PHASE/NAME."""
        for name, value in values.items():
            phase, _, metric = name.partition("/")
            if phase == "results" or metric == "samples":
                self.texts[name if phase == "results" else f"{phase} {values[f'{phase}/step']}"] = json.dumps(value)
            elif phase.startswith("_") or metric == "step":
                continue
            else:
                self.curves[phase, metric].append((values[f"{phase}/step"], value))


def tensorboard(folder: Path) -> Shown:
    accumulators = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    found = Shown()
    for place in sorted((folder / "tensorboard").iterdir()):
        events = accumulators.EventAccumulator(str(place), size_guidance={"scalars": 0, "tensors": 0}).Reload()
        tags = events.Tags()
        for tag in tags["scalars"]:
            points = [(point.step, point.value) for point in events.Scalars(tag)]
            if place.name in ("profile", "results"):
                getattr(found, place.name)[tag] = points[-1][1]
            else:
                found.curves[place.name, tag] = points
        for tag in tags["tensors"]:
            for point in events.Tensors(tag):
                text = b"".join(point.tensor_proto.string_val).decode()
                if place.name == "config":
                    found.config = text
                else:
                    found.texts["results/samples" if place.name == "results" else f"{place.name} {point.step}"] = text
    return found


def wandb(folder: Path) -> Shown:
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    found, identities = Shown(), set()
    for path in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        identities.add(path.name)
        for content in _checked_records(path):
            x = record.FromString(content)
            if x.HasField("run"):
                found.config = str(x.run.config)
            if x.HasField("summary"):
                # What is not logged in rows.
                values = {u.key: json.loads(u.value_json) for u in x.summary.update if u.key}
                found.profile |= {n.removeprefix("profile/"): v for n, v in values.items() if n.startswith("profile/")}
                found.results |= {n.removeprefix("results/"): v for n, v in values.items() if n.startswith("results/")}
            if x.HasField("history"):
                nested = {tuple(i.nested_key): json.loads(i.value_json) for i in x.history.item}
                row = {name[0]: value for name, value in nested.items() if len(name) == 1}
                row |= {name[0]: value for name, value in nested.items() if name[1:] == ("path",)}
                found.add({name: _media(path.parent, value) for name, value in row.items()})
    found.runs = len(identities)
    return found


def _media(folder: Path, value: Any) -> Any:
    """The table that a row names."""
    name = value.get("path") if isinstance(value, dict) else value
    if isinstance(name, str) and name.endswith(".table.json"):
        return json.loads((folder / "files" / name).read_text(encoding="utf-8"))
    return value


def _checked_records(path: Path) -> list[bytes]:
    """All records, each part by its checksum. Fails for a file that was cut short."""
    data, place, record, found = path.read_bytes(), 7, b"", []
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, place)
        part = data[place + 7 : place + 7 + length]
        if len(part) < length:
            break
        assert checksum == zlib.crc32(part, zlib.crc32(bytes([kind])))
        record = part if kind in (1, 2) else record + part
        found += [record] if kind in (1, 4) else []
        place += 7 + length
    return found


def trackio(folder: Path) -> Shown:
    """folder: TRACKIO_DIR."""
    found = Shown()
    (path,) = folder.glob("*.db")
    database = sqlite3.connect(path)
    for (text,) in database.execute("SELECT metrics FROM metrics ORDER BY step, id"):
        values = json.loads(text)
        found.results |= {
            name.removeprefix("results/"): value
            for name, value in values.items()
            if name.startswith("results/") and isinstance(value, float)
        }
        found.add({name: value for name, value in values.items() if name not in found.results})
    for (text,) in database.execute("SELECT metrics FROM system_metrics ORDER BY id"):
        found.profile |= {name.removeprefix("profile/"): value for name, value in json.loads(text).items()}
    found.config = "\n".join(str(json.loads(text)) for (text,) in database.execute("SELECT config FROM configs"))
    found.runs = len({*database.execute("SELECT DISTINCT run_id FROM metrics")})
    return found


def of_run(name: str, folder: Path, databases: Path) -> Shown:
    """folder: of the run. databases: Trackio's."""
    return {"tensorboard": lambda: tensorboard(folder), "wandb": lambda: wandb(folder)}.get(
        name, lambda: trackio(databases)
    )()


def curves_of(metrics: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Of `metrics.jsonl`."""
    found = defaultdict(list)
    for line in metrics.read_text().splitlines():
        row = json.loads(line)
        phase, step = row.pop("phase"), row.pop("step")
        for name, value in row.items():
            found[phase, name].append((step, value))
    return found


def assert_shows(name: str, folder: Path) -> Shown:
    """Every curve is that of `metrics.jsonl`, point by point: none lacks, none stands twice, and it is one run."""
    found, expected = of_run(name, folder, Path("trackio")), curves_of(folder / "metrics.jsonl")
    if name == "tensorboard":  # which has float32
        expected = {key: [(step, float(np.float32(x))) for step, x in points] for key, points in expected.items()}
    assert dict(found.curves) == dict(expected)
    assert found.runs == 1
    return found


# Of each library what is called, and of the stand-in what answers.
_SIGNATURES = {
    "tensorboard": [
        ("tensorboard.plugins.text.metadata", "create_summary_metadata", None),
        ("tensorboard.summary.writer.record_writer", "RecordWriter.__init__", stand_ins.RecordWriter.__init__),
        ("tensorboard.summary.writer.record_writer", "RecordWriter.write", stand_ins.RecordWriter.write),
    ],
    "wandb": [
        ("wandb", "init", stand_ins.wandb_init),
        ("wandb", "Run.log", stand_ins.WandbRun.log),
        ("wandb", "Run.define_metric", stand_ins.WandbRun.define_metric),
        ("wandb", "Run.finish", stand_ins.WandbRun.finish),
        ("wandb", "Table.__init__", stand_ins.WandbTable.__init__),
    ],
    "trackio": [
        ("trackio", "init", stand_ins.trackio_init),
        ("trackio", "Run.log", stand_ins.TrackioRun.log),
        ("trackio", "Run.log_system", stand_ins.TrackioRun.log_system),
        ("trackio", "Table.__init__", stand_ins.TrackioTable.__init__),
        ("trackio.sqlite_storage", "SQLiteStorage.get_logs", stand_ins.SQLiteStorage.get_logs),
    ],
}


def assert_signatures(name: str) -> None:
    """What the stand-in takes, the real one takes by the same name."""
    for module, path, own in _SIGNATURES[name]:
        real: Any = importlib.import_module(module)
        for part in path.split("."):
            real = getattr(real, part)
        found = inspect.signature(real).parameters
        wanted = inspect.signature(own).parameters if own else ["display_name", "description"]
        assert set(wanted) - {"self"} <= set(found), path
