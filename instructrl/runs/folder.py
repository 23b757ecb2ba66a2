"""The folder of a run: what may be written into, and the configuration that is kept there."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
import yaml

from instructrl import distributed, durable
from instructrl.models.passes import settled
from instructrl.models.settings import PassConfig, Precision
from instructrl.runs.journal import STATE
from instructrl.tracking.masking import masked_values

# Marks a folder as a run's.
CONFIG_FILE = "config.yaml"
_ASIDE = durable.aside_of(Path(CONFIG_FILE)).name
_held: dict[Path, int] = {}
# The journal goes first: what it says is done has to be there. The settings are replaced at the end.
_FOLDERS = (STATE, "models", "judges", "sizes", "points", "measured", "tensorboard", "wandb")
_FILES = ("results.json", "study.json", "figure.svg", "report.html", "metrics.jsonl", "profile.jsonl", "tracking.json")
# Settings that change no step: a run may go on with others, and may have been moved. Other sizes are steps more; of
# public test sets, what was asked before is not asked again.
_NO_RESULT = ("checkpoints", "out", "track", "device", "sizes", "suites", "suite")
# And by their last name: where weights lie, which like the number of processes changes rounding alone.
_ROUNDING = "spread"


def open_folder(folder: Path, config: Any, *, fresh: bool = False) -> Path:
    """A new folder for a run, or that of an earlier run with the same configuration, which is continued.

    config: a dataclass; `instructrl ... --config FILE` takes the file back. fresh: remove the files of an earlier run
    first; what stands there as a link is removed, never followed. Raises ValueError for a folder that holds other
    things or that another process works in, and without `fresh` for a run with another configuration, naming what
    differs.
    """
    distributed.from_main(lambda: _open(folder, config, fresh=fresh))
    return folder


def _open(folder: Path, config: Any, *, fresh: bool) -> None:
    _check(folder, config, fresh=fresh)
    durable.make_folder(folder)
    _hold(folder)
    if not fresh and (folder / CONFIG_FILE).exists():
        durable.sync(folder)  # whoever wrote it may have been killed right before
        return
    for name in _FOLDERS:
        durable.remove(folder / name)
    for path in [*folder.glob("failed-*.json"), *(folder / name for name in _FILES)]:
        path.unlink(missing_ok=True)
    durable.write_text(folder / CONFIG_FILE, yaml.safe_dump(_kept(config), sort_keys=False))


def _hold(folder: Path) -> None:
    """Keep other processes out until this one ends, however it does. Raises ValueError where another one is in."""
    place = folder.resolve()
    if place in _held:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(
            f"{folder}: found a run that another process is carrying out, accepted is another --out"
        ) from None
    _held[place] = handle


def settled_config(config: Any, folder: Path, *, fresh: bool = False) -> Any:
    """The configuration with what its passes leave to the device decided: as the run in the folder has it, else by the
    device. What a run began with on a GPU it goes on with on a CPU."""
    recorded = {} if fresh else distributed.from_main(lambda: _recorded_weights(folder))
    device = distributed.device() or torch.device("cpu")

    def decided(value: Any, place: str) -> Any:
        if isinstance(value, PassConfig):
            return settled(replace(value, weights=value.weights or recorded.get(f"{place}weights")), device)
        inner = {field.name: getattr(value, field.name) for field in fields(value)}
        parts = {name: decided(part, f"{place}{name}.") for name, part in inner.items() if is_dataclass(part)}
        return replace(value, **parts) if parts else value

    return decided(config, "")


def _recorded_weights(folder: Path) -> dict[str, Any]:
    """By dotted name; none of a file that `check_folder` refuses."""
    try:
        found = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    named = _flat(found) if isinstance(found, Mapping) else {}
    return {name: value for name, value in named.items() if name.endswith("weights") and value in get_args(Precision)}


def check_folder(folder: Path, config: Any, *, fresh: bool = False) -> None:
    """Raise ValueError where `open_folder` may not write, or would remove a model that `config` names."""
    distributed.from_main(lambda: _check(folder, config, fresh=fresh))


def _check(folder: Path, config: Any, *, fresh: bool) -> None:
    solid = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if solid.exists() and not solid.is_dir():
        raise ValueError(f"{folder}: found the file {solid}, accepted is a folder")
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if there - {_ASIDE} and not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder}: found a folder that is no run, accepted is a new one or one of an earlier run")
    removed = (folder / "models").resolve()
    for text in _texts(asdict(config)):
        if Path(text).exists() and removed in (Path(text).resolve(), *Path(text).resolve().parents):
            raise ValueError(f"{folder}: found {text} among the models that are removed from it, accepted is another")
    if not fresh and (folder / CONFIG_FILE).is_file():
        _require_no_links(folder)
        _require_same(folder, config)


def _require_no_links(folder: Path) -> None:
    """A run that goes on writes into what is there: through a link it would write elsewhere. wandb leaves one behind in
    the folder of each of its runs, which nobody writes to again."""
    links = (path for path in folder.rglob("*") if path.is_symlink() and not path.match("wandb/*/logs/debug-core.log"))
    link = next(links, None)
    if link is not None:
        raise ValueError(f"{link}: found a link, accepted are files and folders; the folder of the run may be one")


def _require_same(folder: Path, config: Any) -> None:
    path = folder / CONFIG_FILE
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path}: found no settings ({type(error).__name__}), accepted is the file as written"
        ) from None
    old, new = (_flat(x if isinstance(x, Mapping) else {}) for x in (before, _kept(config)))
    absent = "absent"
    changed = [
        f"{name} was {old.get(name, absent)}, is {new.get(name, absent)}"
        for name in {**new, **old}
        if old.get(name, absent) != new.get(name, absent)
        and name.split(".")[0] not in _NO_RESULT
        and name.split(".")[-1] != _ROUNDING
    ]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ValueError(
            f"{folder}: found a run with other settings ({'; '.join(changed[:5])}{more}); accepted are the same ones, "
            "another --out, or --fresh to remove that run and start over"
        )


def _flat(value: Mapping, prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted name."""
    found = {}
    for name, item in value.items():
        found |= _flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {f"{prefix}{name}": item}
    return found


def _kept(config: Any) -> dict[str, Any]:
    """What stands in the file, without credentials. `fresh` was a wish for one time."""
    return {name: value for name, value in masked_values(asdict(config)).items() if name != "fresh"}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
