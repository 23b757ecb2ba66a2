"""Take the power away at many points of a run, and compare what becomes of it with a run that nobody touched.

    make power        or        python tests/power.py [--points 200] [--seed 0] [--rank 2] [--out FILE.md]

One run is recorded (recorded_writes.c), every call that changes a file. At each point the folder is made as the disk
may have it after the power went (recorded_disk.py): all that an fsync covers, and of the rest nothing, everything, or
some of it in no order. Then the same command goes on there, and in the end every file has to be, byte for byte, that of
the recorded run; `profile.jsonl` and `report.html`, in which times stand, have to be whole. The points are drawn half
from all calls, half from those that write a certain file. `--folder` keeps what was done, and goes on with it.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from recorded_disk import LOSSES, Call, Disk, Recorder, State, calls, of_folder, write_out
from tiny_lives import Life, command

from instructrl.settings import require_positive

# What has times in it.
UNLIKE = ("run/profile.jsonl", "run/report.html")
# What is being written, by what stands in the path.
WINDOWS = {
    "config.yaml": "run/config.yaml",
    "a checkpoint": "/step-",
    "a checkpoint, aside": "/writing-0",
    "steps.json": "state/steps.json",
    "the evaluation": "state/evaluation/",
    "a model": "run/models/",
    "metrics.jsonl or profile.jsonl": ".jsonl",
    "results.json": "results.json",
    "report.html": "report.html",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The power goes after so many calls. loss: a name in LOSSES. window: what the last call was about."""

    number: int
    after: int
    loss: str
    window: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """files: how many were there when the power was back. lost: how many of them, or of those that were missing, were
    not as programs had seen them. different: bytes that differ in the end, by file. said: the last line of a run that
    did not come to its end."""

    point: Point
    files: int
    lost: int
    different: dict[str, int]
    exit_code: int
    said: str

    @property
    def good(self) -> bool:
        return self.exit_code == 0 and not self.different


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A run in `root`/run that came to its end. left: its files."""

    root: Path
    command: Sequence[str]
    calls: Sequence[Call]
    left: State


def record(folder: Path, command: Sequence[str]) -> Recording:
    """The run that nobody touches; what an earlier call recorded in this folder is used again."""
    root, log, aside = folder / "disk", folder / "calls", folder / "calls.writing"
    if not log.exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        recorder = Recorder.compiled(folder, root, aside)
        assert Life(folder=root / "run", command=command).live(recorder=recorder) == 0
        found = of_folder(root)
        aside.replace(log)
    else:
        found = None
    disk, recorded = Disk(root), calls(log)
    for call in recorded:
        disk.apply(call)
    assert found in (None, disk.seen()), "the record and the folder differ"
    return Recording(root=root, command=command, calls=recorded, left=disk.seen())


def window_of(call: Call) -> str:
    return next((name for name, part in WINDOWS.items() if part in call.words[-1]), "folders")


def points(recorded: Sequence[Call], count: int, seed: int) -> list[Point]:
    """Half of them anywhere, the others in the windows by turns; the kinds of loss by turns."""
    rng = random.Random(seed)
    windows: dict[str, list[int]] = {}
    for i, call in enumerate(recorded):
        windows.setdefault(window_of(call), []).append(i)
    names = [name for name in WINDOWS if name in windows]
    found = []
    for number in range(count):
        after = rng.randrange(len(recorded)) if number % 2 else rng.choice(windows[names[number // 2 % len(names)]])
        loss = [*LOSSES][number // 2 % len(LOSSES)] if number % 2 else rng.choice([*LOSSES])
        found.append(Point(number=number, after=after + 1, loss=loss, window=window_of(recorded[after])))
    return found


def outcome(recording: Recording, point: Point, seed: int) -> Outcome:
    """Without power after a point, and on with the same command."""
    disk = Disk(recording.root)
    for call in recording.calls[: point.after]:
        disk.apply(call)
    there, seen = disk.after_power(LOSSES[point.loss], random.Random(seed + point.number)), disk.seen()
    shutil.rmtree(recording.root)
    write_out(there, recording.root)
    said = recording.root.parent / "said"
    code = Life(folder=recording.root / "run", command=recording.command, said=said).live()
    lines = said.read_text(encoding="utf-8").splitlines()
    return Outcome(
        point=point,
        files=len(there),
        lost=sum(there.get(name, 0) != seen.get(name, 0) for name in {**there, **seen}),
        different=differences(recording.left, of_folder(recording.root)),
        exit_code=code,
        said=lines[-1] if code and lines else "",
    )


def differences(wanted: State, found: State) -> dict[str, int]:
    """Bytes that differ, by file; one for a file or folder that is not there in both."""
    different = {}
    for name in sorted({**wanted, **found}):
        one, other = wanted.get(name, 0), found.get(name, 0)
        if name in UNLIKE:
            different |= {} if _whole(name, other) else {name: 1}
        elif one != other:
            pair = [x if isinstance(x, bytes) else b"" for x in (one, other)]
            count = abs(len(pair[0]) - len(pair[1])) + sum(a != b for a, b in zip(*pair, strict=False))
            different[name] = max(count, 1)
    return different


def _whole(name: str, content: bytes | int | None) -> bool:
    if not isinstance(content, bytes):
        return False
    if name.endswith(".html"):
        return content.rstrip().endswith(b"</html>")
    try:
        return not content or (content.endswith(b"\n") and all(json.loads(line) for line in content.splitlines()))
    except ValueError:
        return False


def campaign(count: int, seed: int, folder: Path, rank: int | None = None) -> list[Outcome]:
    """All points; those that an earlier call did in this folder are not done again."""
    settings = folder / "settings"
    shutil.rmtree(settings, ignore_errors=True)
    recording = record(folder, command(settings, rank))
    done, kept = [], folder / f"outcomes-{count}-{seed}.jsonl"
    if kept.exists():
        rows = map(json.loads, kept.read_text(encoding="utf-8").splitlines())
        done = [Outcome(**{**row, "point": Point(**row["point"])}) for row in rows]
    for point in points(recording.calls, count, seed)[len(done) :]:
        found = outcome(recording, point, seed)
        done.append(found)
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(found)) + "\n")
        if not found.good:
            first = [*found.different.items()][:3]
            print(f"{point}: exit code {found.exit_code}, {found.said} {first}", file=sys.stderr)
    return done


def table(outcomes: Sequence[Outcome], num_calls: int) -> str:
    """As Markdown."""
    refused = sum(found.exit_code != 0 for found in outcomes)
    rows: Mapping[str, object] = {
        "points at which the power went, in one run": len(outcomes),
        "calls of that run that change files": num_calls,
        **_counted("the last call before it was about", [found.point.window for found in outcomes]),
        **_counted("of what no flush covers, there was", [found.point.loss for found in outcomes]),
        "points at which the disk was not as the run had seen it": sum(found.lost > 0 for found in outcomes),
        "points from which the same command did not go on": refused,
        "bytes that differ from the untouched run": sum(sum(found.different.values()) for found in outcomes),
    }
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"


def _counted(what: str, names: Sequence[str]) -> dict[str, int]:
    return {f"{what}: {name}": count for name, count in Counter(names).most_common()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, help="of adapters")
    parser.add_argument("--folder", type=Path, help="keeps what was done, and goes on with it")
    parser.add_argument("--out", type=Path, help="a file for the table")
    arguments = parser.parse_args()
    require_positive(arguments, "points")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found = campaign(arguments.points, arguments.seed, folder, arguments.rank)
        written = table(found, len(calls(folder / "calls")))
    print(written, end="")
    if arguments.out is not None:
        arguments.out.write_text(written, encoding="utf-8")
    return int(not all(one.good for one in found))


if __name__ == "__main__":
    sys.exit(main())
