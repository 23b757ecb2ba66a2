"""The folder of a run: what may be written into, and the configuration that is kept there."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

# Marks a folder as a run's.
CONFIG_FILE = "config.yaml"


def open_folder(folder: Path, config: Any) -> Path:
    """A new folder for a run, or that of an earlier run, whose files are removed; the configuration is written first.

    config: a dataclass; `instructrl ... --config FILE` takes the file back. Raises ValueError for a folder that holds
    other things.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder}: found a folder that is no run, accepted is a new one or one of an earlier run")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "report.html", "metrics.jsonl", "profile.jsonl"):
        (folder / name).unlink(missing_ok=True)
    if (folder / "models").is_dir():
        shutil.rmtree(folder / "models")
    text = yaml.safe_dump(_plain(asdict(config)), sort_keys=False)
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    return folder


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
