"""Which trackers there are, and whether one can be used here. Nothing is imported to find out."""

import importlib.metadata
from collections.abc import Mapping
from typing import Literal

TrackerName = Literal["tensorboard", "wandb", "trackio", "none"]
# The first version of a package that is known, and the first that is not.
VERSIONS: Mapping[str, tuple[str, str]] = {
    "tensorboard": ("2.20", "3"),
    "wandb": ("0.31", "0.32"),
    "trackio": ("0.43", "0.44"),
}


def check_tracker(name: TrackerName) -> None:
    """Raise ValueError where a tracker's package is not installed, or of a version that is not known."""
    if name == "none":
        return
    if name not in VERSIONS:
        raise ValueError(f"track: found {name!r}, accepted are {', '.join(VERSIONS)} and none")
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"track: found no package {name}, accepted is pip install 'instructrl[{name}]', or another tracker"
        ) from None
    first, last = VERSIONS[name]
    if not _numbers(first) <= _numbers(found) < _numbers(last):
        raise ValueError(
            f"track: found {name} {found}, accepted is {first} or later before {last}: pip install 'instructrl[{name}]'"
        )


def _numbers(version: str) -> tuple[int, ...]:
    """Of a release: 2.21.0rc1 -> (2, 21)."""
    numbers = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)
