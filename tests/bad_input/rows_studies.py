"""`instructrl study`: names, base runs and folders."""

from pathlib import Path

from table import Row
from tiny_runs import MINIATURE

from instructrl.runs.folder import open_folder
from instructrl.runs.settings import PUBLIC


def _begun() -> None:
    """A run that has done nothing yet."""
    open_folder(Path("run"), MINIATURE)


ROWS = [
    Row(
        what="unknown study",
        options="study pxt",
        message="study: found the name 'pxt', did you mean 'ptx'?",
    ),
    Row(
        what="study of no run",
        options="study ptx",
        message="instructrl study ptx: the following arguments are required: --run",
    ),
    Row(
        what="a folder that is no run",
        options="study ptx --run splits --out study",
        message="run: found no config.yaml in splits, accepted is the folder of a run of the miniature",
    ),
    Row(
        what="a run of another kind",
        options="study ptx --run run --out study",
        make=lambda: open_folder(Path("run"), PUBLIC),
        message="run: found another run than one of the miniature (…)… accepted is one of `instructrl run miniature`",
    ),
    Row(
        what="no seeds",
        options="study ptx --run run --seeds 0",
        make=_begun,
        message="seeds: found 0, accepted are positive numbers…",
    ),
    Row(
        what="a study inside its run",
        options="study ptx --run run --out run/study",
        make=_begun,
        message="out: found run/study in the folder of the base run, accepted is another one",
    ),
    Row(
        what="a study in a folder that is no study",
        options="study ptx --run run --out splits",
        make=_begun,
        message="splits: found a folder that is no run, accepted is a new one or one of an earlier run",
    ),
]
