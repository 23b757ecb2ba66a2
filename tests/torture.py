"""Kill a run again and again, and compare what it leaves with a run that nobody touched.

    make torture        or        python tests/torture.py [--kills 60] [--seed 0] [--out FILE.md]
                                      [--rank 2] [--processes 2] [--evaluation]

The run is the whole miniature on next to nothing, saved after every step. Each of its lives ends by SIGKILL: half of
them right before one of the calls by which a checkpoint, a model or the journal comes to the disk (a flush, a rename, a
file of tensors), the others some thousandths of a second after one. The places are drawn over the whole run; one that
comes to its end before all kills are spent is followed by another. The last life is left alone, and the files of every
run are compared byte by byte. What a loss of power does to a disk is tried by power.py.

With `--rank`, all steps but the first train adapters. With `--processes`, the run is a job over which the weights are
spread (FSDP2), and what is killed is by turns one of its processes or all of them. With `--evaluation`, every run has
its models, and the kills come while they are evaluated.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tiny_lives import Life, command, config, die_after, myself, of_job

from instructrl.settings import require_positive

COMPARED = ("models/**/*", "config.yaml", "metrics.jsonl", "results.json", "state/steps.json", "state/evaluation/*")
CONFIG = config()


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """kills: lives that ended by SIGKILL. inside: those in the middle of writing a checkpoint. steps: kills by the step
    that was under way. lost_seconds: from what was last saved to the kill, by kill. different: files and bytes that are
    not those of the untouched run. runs: how many the lives made up. exit_code: of a life that failed, else 0.
    """

    kills: int
    inside: int
    steps: dict[str, int]
    lost_seconds: list[float]
    different: dict[str, int]
    runs: int
    exit_code: int

    def table(self) -> str:
        """As Markdown."""
        lost = sorted(self.lost_seconds)
        rows = {
            "kills": self.kills,
            "of them while a checkpoint was being written": self.inside,
            **{f"of them in {name}": count for name, count in self.steps.items()},
            "runs, one after the other, that came to their end": self.runs,
            "seconds lost a kill, median and longest": f"{lost[len(lost) // 2]:.2f}, {lost[-1]:.2f}" if lost else "-",
            "bytes that differ from the untouched run": sum(self.different.values()),
        }
        return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"


def count_writes(life: Life) -> int:
    """The untouched run. Returns how often it writes."""
    counter = life.folder.with_name("writes")

    def before() -> None:
        with counter.open("a") as file:
            file.write("x")

    assert life.live(before) == 0
    return counter.stat().st_size


def torture(
    kills: int, seed: int, folder: Path, *, rank: int | None = None, processes: int = 1, evaluation: bool = False
) -> Figures:
    """An untouched run in `folder`, and others, one after the other, that are killed so often in all."""
    rng = random.Random(seed)
    words = command(folder / "settings", rank, processes)
    untouched, note = folder / "untouched", folder / "note"
    writes = count_writes(Life(folder=untouched, command=words, processes=processes))
    if evaluation:
        writes = 5 * len([*untouched.glob("state/evaluation/*")])
    # Long enough to get past the step that writes most, and short enough that kills spread over all steps.
    most = writes if evaluation else max(60, 2 * writes // kills)
    whom = (0, 1, None)
    runs: list[Path] = []
    steps: Counter[str] = Counter()
    lost, inside, code, goes_on = [], 0, 0, False
    while len(lost) < kills or goes_on:
        if not goes_on:
            runs.append(_new_run(folder / f"killed-{len(runs) + 1}", untouched, evaluation))
        life = Life(folder=runs[-1], command=words, processes=processes)
        if len(lost) == kills:
            code, goes_on = code or life.live(), False
            continue
        delay = rng.uniform(0, 0.03) if len(lost) % 2 else None
        victims = myself if processes == 1 else of_job(whom[len(lost) % len(whom)])
        note.unlink(missing_ok=True)
        found = life.live(die_after(rng.randint(1, most), delay, victims, note))
        goes_on = found != 0
        if not note.exists() or not goes_on:  # it came to its end before its time
            code, goes_on = code or found, False
            continue
        steps[_under_way(runs[-1])] += 1
        inside += bool([*runs[-1].glob("state/*/*writing*")])
        lost.append(time.time() - _last_saved(runs[-1]))
    different = {f"{run.name}/{n}": x for run in runs for n, x in _differences(untouched, run).items()}
    return Figures(
        kills=len(lost),
        inside=inside,
        steps=dict(steps),
        lost_seconds=lost,
        different=different,
        runs=len(runs),
        exit_code=code,
    )


def _new_run(folder: Path, untouched: Path, evaluation: bool) -> Path:
    if evaluation:
        shutil.copytree(untouched, folder)
        shutil.rmtree(folder / "state" / "evaluation")
        for name in ("results.json", "report.html"):
            (folder / name).unlink()
    return folder


def _under_way(run: Path) -> str:
    folders = [path.name for path in run.glob("state/*") if path.is_dir()]
    return folders[0] if folders else "between trained steps"


def _last_saved(run: Path) -> float:
    patterns = ("state/*/step-*/manifest.json", "state/evaluation/*.json", "state/steps.json", "config.yaml")
    saved = [path for pattern in patterns for path in run.glob(pattern)]
    return max((path.stat().st_mtime for path in saved), default=time.time())


def _differences(one: Path, other: Path) -> dict[str, int]:
    names = {
        str(path.relative_to(folder))
        for folder in (one, other)
        for pattern in COMPARED
        for path in folder.glob(pattern)
        if path.is_file()
    }
    assert len(names) > 20, names
    found = {}
    for name in sorted(names):
        first, second = (_content(folder, name) for folder in (one, other))
        count = abs(len(first) - len(second)) + sum(a != b for a, b in zip(first, second, strict=False))
        if count:
            found[name] = count
    return found


def _content(folder: Path, name: str) -> bytes:
    """Without where the run lies: adapters name their base."""
    path = folder / name
    return path.read_bytes().replace(str(folder).encode(), b"RUN") if path.exists() else b""


def _without_out(words: list[str]) -> list[str]:
    at = words.index("--out") if "--out" in words else len(words)
    return words[:at] + words[at + 2 :]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, help="of adapters")
    parser.add_argument("--processes", type=int, default=1, help="of a job")
    parser.add_argument("--evaluation", action="store_true", help="kill while models are evaluated, at no other time")
    parser.add_argument("--out", type=Path, help="a file for the table")
    arguments = parser.parse_args()
    require_positive(arguments, "kills", "processes")
    made_by = " ".join(["python tests/torture.py", *_without_out(sys.argv[1:])])
    with tempfile.TemporaryDirectory() as folder:
        figures = torture(
            arguments.kills,
            arguments.seed,
            Path(folder),
            rank=arguments.rank,
            processes=arguments.processes,
            evaluation=arguments.evaluation,
        )
    print(figures.table(), end="")
    for name, count in figures.different.items():
        print(f"{name}: {count} bytes differ", file=sys.stderr)
    if arguments.out is not None:
        arguments.out.write_text(f"{figures.table()}\nMade by `{made_by}`.\n", encoding="utf-8")
    return int(bool(figures.different) or figures.exit_code != 0)


if __name__ == "__main__":
    sys.exit(main())
