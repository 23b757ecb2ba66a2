"""Checkpoints of a trainer: each is whole or is not there, and a damaged one gives way to the one before it.

A checkpoint is written aside, flushed to the disk and renamed:

    FOLDER/step-00000012/tensors.safetensors, state.json     the state; step-00000012-0001 where it is saved once more
                         manifest.json                       step, data, and the checksum of each file

Of a state in parts, each process of a job writes its rows: tensors-00001-of-00002.safetensors and so on.
"""

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor

from instructrl import distributed, durable, progress, threads
from instructrl.models.base import content_of
from instructrl.trainers.settings import CheckpointConfig
from instructrl.trainers.state_files import STRUCTURE, file_of_part, read_state, state_bytes, write_state
from instructrl.types import Conversation

MANIFEST = "manifest.json"
_FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A state that was read back. metrics_bytes: how much of `metrics.jsonl` belongs to it. inputs: identifies what the
    trainer learns from; given: what the step was given. rounding: as `rounding` gives it."""

    folder: Path
    step: int
    metrics_bytes: int
    inputs: str
    given: str
    rounding: Mapping[str, Any]
    state: Mapping[str, Any]


class Checkpoints:
    """Those of one trainer.

    folder: theirs alone. warn: told of damaged checkpoints that are passed over. given: see `Checkpoint`.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, warn: Callable[[str], None], *, given: str = "") -> None:
        self.folder, self._config, self._warn, self._given = folder, config, warn, given
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for another one."""
        return time.monotonic() - self._saved_at >= self._config.every_seconds

    def save(self, state: Mapping[str, Any], *, step: int, metrics_bytes: int, inputs: str) -> int:
        """Write a checkpoint, then remove the oldest beyond those that are kept. Returns its bytes.

        Every process of a job calls it, and writes its part of a state in parts. Raises OSError with what to do where
        it cannot be written; earlier checkpoints stay as they are.
        """
        aside, final = self.folder / f"writing-{step:08d}", self._free(step)
        facts = {"step": step, "metrics_bytes": metrics_bytes, "inputs": inputs, "given": self._given}
        facts["rounding"] = rounding()
        (size,) = distributed.total([state_bytes(state)])
        try:
            distributed.from_main(lambda: self._begin(aside, size))
            parts = distributed.from_each(lambda: _write(aside, state))
            files = {name: entry for part in parts for name, entry in part.items()}
            distributed.from_main(lambda: _finish(aside, final, {**facts, "files": files}))
        except OSError as error:
            if distributed.is_main():
                shutil.rmtree(aside, ignore_errors=True)
            left = ", ".join(path.name for path in self._folders()) or "none"
            reason = error.strerror or str(error)
            raise OSError(
                f"{final}: found {reason.lower()}, accepted is a folder with room for a checkpoint; intact before it: "
                f"{left}. The same command continues from there"
            ) from error
        distributed.from_main(lambda: self._remove_older(final))
        self._saved_at = time.monotonic()
        return sum(entry["bytes"] for entry in files.values())

    def _begin(self, aside: Path, size: float) -> None:
        durable.make_folder(self.folder)
        for left in self.folder.glob("writing-*"):  # by a kill, at whatever step
            durable.remove(left)
        self._require_space(size)
        aside.mkdir()

    def _remove_older(self, final: Path) -> None:
        there = self._folders()
        behind = [folder for folder in there if folder.name > final.name]  # damaged: the run went on from before them
        for old in [*behind, *[folder for folder in there if folder not in behind][self._config.keep :]]:
            durable.remove(old)

    def newest(self) -> Checkpoint | None:
        """The newest good checkpoint, None where there is none at all; every process of a job reads the same one.

        Raises ValueError where there are some and all of them are damaged, and where this process sees other files than
        the main one.
        """
        there, reasons = distributed.from_each(lambda: [folder.name for folder in self._folders()]), []
        for number, names in enumerate(there):
            if names != there[0]:
                raise ValueError(
                    f"{self.folder}: found other checkpoints in process {number} than in the first, accepted is a "
                    "folder that all processes share"
                )
        with progress.wait("reading checkpoints"):
            for name in there[0]:
                try:
                    found = _read(self.folder / name)
                except (ValueError, OSError) as error:
                    reasons.append(f"{name} ({error})")
                    continue
                if reasons:
                    self._warn(f"{self.folder}: damaged: {'; '.join(reasons)}. Going on from {name}")
                return found
        if reasons:
            raise ValueError(
                f"{self.folder}: found damaged checkpoints alone: {'; '.join(reasons)}; accepted is a good one. Remove "
                "the folder to start this step anew"
            )
        return None

    def named(self, name: str) -> Checkpoint:
        """The one of a folder. Raises ValueError where there is none that is good."""
        try:
            return _read(self.folder / name)
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.folder / name}: {error}, accepted is a checkpoint's folder") from None

    def latest(self) -> Path:
        """Where the one that was written last is."""
        return self._folders()[0]

    def clear(self) -> None:
        """Remove all of them: the main process does."""
        if not distributed.is_main():
            return
        shutil.rmtree(self.folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        """The newest first."""
        if not self.folder.is_dir():
            return []
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _free(self, step: int) -> Path:
        """A name for a checkpoint of this step behind those that are there: what it replaces stays until it is done."""
        taken = {folder.name for folder in self._folders()}
        names = (f"step-{step:08d}" + (f"-{again:04d}" if again else "") for again in range(10_000))
        return self.folder / next(name for name in names if name not in taken)

    def _require_space(self, size: float) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise OSError(errno.ENOSPC, f"{free / 1e6:.1f} MB free where {size / 1e6:.1f} MB are needed")


def rounding() -> dict[str, Any]:
    """What decides in which order numbers are added up: with all of it the same, a run gives the same bits."""
    here = distributed.device()
    names = {"cuda": lambda: torch.cuda.get_device_name(here), "mps": lambda: "mps"}
    named = names.get("cpu" if here is None else here.type, lambda: f"CPU {torch.backends.cpu.get_cpu_capability()}")
    return {
        "torch": torch.__version__,
        "processes": distributed.size_of_job(),
        "threads": threads.rounding(),
        "device": named(),
    }


def _write(folder: Path, state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """This process's files, on the disk when this returns. Returns the bytes and the checksum of each."""
    try:
        names = write_state(folder, state)
    except SafetensorError as error:  # its own for what the system says
        raise OSError(errno.EIO, str(error)) from error
    for name in names:
        durable.sync(folder / name)
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)} for name in names}


def _finish(aside: Path, final: Path, facts: Mapping[str, Any]) -> None:
    """The manifest of what all processes have written, and the folder's name."""
    manifest = {"format": _FORMAT, **facts}
    text = json.dumps({"manifest": manifest, "sha256": json_digest(manifest)}, indent=1)
    (aside / MANIFEST).write_text(text + "\n", encoding="utf-8")
    durable.sync(aside / MANIFEST)
    durable.sync(aside)
    durable.rename(aside, final)


def _read(folder: Path) -> Checkpoint:
    """Raises ValueError or OSError, in every process the same, for one that is not as it was written."""
    manifest = distributed.from_main(lambda: _read_manifest(folder))
    # Each process looks at some of the files, for all of them.
    own = distributed.own_rows(sorted(manifest["files"]))
    distributed.from_each(lambda: _check_files(folder, {name: manifest["files"][name] for name in own}))
    return Checkpoint(
        folder=folder,
        step=manifest["step"],
        metrics_bytes=manifest["metrics_bytes"],
        inputs=manifest["inputs"],
        given=manifest["given"],
        rounding=manifest["rounding"],
        state=read_state(folder),
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    if folder.is_symlink():
        raise ValueError("found a link, accepted is a folder")
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest = content["manifest"]
        good = content["sha256"] == json_digest(manifest) and manifest["format"] == _FORMAT
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read ({type(error).__name__})") from None
    if not good:
        raise ValueError(f"{MANIFEST} was changed")
    names = set(manifest["files"])
    if names != {STRUCTURE, *(file_of_part(n, len(names) - 1) for n in range(len(names) - 1))}:
        raise ValueError(f"{MANIFEST} names other files")
    beside = {path.name for path in folder.iterdir()} - names - {MANIFEST}
    if beside:
        raise ValueError(f"{sorted(beside)[0]} does not belong to it")
    return manifest


def _check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError for the first of them that is not as it was written."""
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or path.is_symlink():
            raise ValueError(f"{name} is missing")
        if (size := path.stat().st_size) != expected["bytes"]:
            raise ValueError(f"{name} has {size} bytes of {expected['bytes']}")
        if _digest(path) != expected["sha256"]:
            raise ValueError(f"{name} was changed")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def json_digest(value: Any) -> str:
    """Of what JSON holds."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def fingerprint(*parts: Any) -> str:
    """A digest of records, texts, numbers, tensors and networks that is the same wherever they are the same."""
    digest = hashlib.sha256()
    for part in parts:
        _add(digest, part)
    return digest.hexdigest()[:32]


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, DTensor):  # of which every process has a part
        _add(digest, value.full_tensor())
    elif isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{list(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Conversation):
        _add(digest, [str.__str__(value), value.messages, value.tools])
    elif isinstance(value, str):
        digest.update(f"{len(value)}:".encode() + value.encode("utf-8", "surrogatepass"))
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            _add(digest, getattr(value, name))
    elif isinstance(value, torch.nn.Module):
        _add(digest, content_of(value))
    elif isinstance(value, Mapping):
        _add(digest, [*value.items()])
    elif isinstance(value, frozenset):
        _add(digest, sorted(value))
    elif isinstance(value, list | tuple) or hasattr(value, "__getitem__"):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _add(digest, item)
    else:
        digest.update(f"{value!r};".encode())
