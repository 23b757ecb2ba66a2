"""The tracker that a command was asked for, beside the files of its run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from instructrl.tracking.settings import TrackerName
from instructrl.tracking.tracker import Tracker, open_tracker
from instructrl.trainers.log import RunLog


@contextmanager
def tracked(name: TrackerName, log: RunLog, folder: Path, config: Any) -> Iterator[Tracker]:
    """Inside, a tracker is told what the log of a run is told. config: a dataclass, which the tracker shows."""
    with open_tracker(name, folder, asdict(config), log.warn) as tracker, log.calling([tracker]):
        yield tracker
