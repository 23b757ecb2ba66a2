"""Kill a run again and again, and compare what it leaves with a run that nobody touched.

    make torture        or        python tests/torture.py [--kills 60] [--seed 0] [--rank 2] [--out FILE.md]

The run is the whole miniature on next to nothing, saved after every step. Each of its lives ends by SIGKILL: half of
them right before one of the calls by which a checkpoint, a model or the journal comes to the disk (a flush, a rename, a
file of tensors), the others some thousandths of a second after one. The places are drawn over the whole run; one that
comes to its end before all kills are spent is followed by another. The last life is left alone, and the files of every
run are compared byte by byte. What a loss of power does to a disk is not tried here. With `--rank`, all steps but the
first train adapters.
"""

import argparse
import contextlib
import importlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
from tiny_runs import MINIATURE

from instructrl import cli
from instructrl.models.settings import AdapterConfig
from instructrl.runs.folder import open_folder
from instructrl.settings import require_positive
from instructrl.trainers import checkpoints, state_files
from instructrl.trainers.settings import CheckpointConfig

# Once, and not in every life.
for _module in ("instructrl.commands.run", "instructrl.runs.miniature", "instructrl.evaluation.report"):
    importlib.import_module(_module)
COMPARED = ("models/**/*", "metrics.jsonl", "results.json", "state/steps.json")
_recipe = MINIATURE.recipe
_ppo = dict(num_episodes=40, rollout_batch=8)
CONFIG = replace(
    MINIATURE,
    checkpoints=CheckpointConfig(every_seconds=0),
    recipe=replace(
        _recipe,
        sft=replace(_recipe.sft, batch_size=3),
        ppo_start=replace(_recipe.ppo_start, batch_size=3),
        reward_model=replace(_recipe.reward_model, batch_size=2),
        ppo=replace(_recipe.ppo, **_ppo),
        ppo_ptx=replace(_recipe.ppo_ptx, **_ppo),
    ),
)


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


def life(folder: Path, config: Path, before_write: Callable[[], None], said: str | Path = os.devnull) -> int:
    """The run in a process of its own, from wherever it stands. Returns its exit status as `os.waitpid` gives it.

    before_write: called in that process before everything that brings a file to the disk. said: a file for what it
    says on standard error.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        _interpose(before_write)
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            open(said, "w", encoding="utf-8") as sys.stderr,
            contextlib.redirect_stdout(nowhere),
        ):
            code = cli.main(["run", "miniature", "--config", str(config), "--out", str(folder)])
    finally:
        os._exit(code)


def _interpose(before: Callable[[], None]) -> None:
    def preceded(function):
        def call(*args, **kwargs):
            before()
            return function(*args, **kwargs)

        return call

    os.fsync = preceded(os.fsync)
    Path.rename = preceded(Path.rename)
    Path.replace = preceded(Path.replace)
    state_files.save_file = preceded(safetensors.torch.save_file)
    checkpoints.json_digest = preceded(checkpoints.json_digest)


def die_after(events: int, delay: float | None) -> Callable[[], None]:
    """Kills its process before the write of that number, or a while after it."""
    count = 0

    def before() -> None:
        nonlocal count
        count += 1
        if count == events:
            if delay is None:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    return before


def count_writes(folder: Path, config: Path) -> int:
    """The untouched run. Returns how often it writes."""
    counter = folder.with_name("writes")

    def before() -> None:
        with counter.open("a") as file:
            file.write("x")

    assert life(folder, config, before) == 0
    return counter.stat().st_size


def torture(kills: int, seed: int, folder: Path, adapter: AdapterConfig = CONFIG.recipe.adapter) -> Figures:
    """An untouched run in `folder`, and others, one after the other, that are killed so often in all."""
    rng = random.Random(seed)
    settings = replace(CONFIG, recipe=replace(CONFIG.recipe, adapter=adapter))
    config = open_folder(folder / "settings", settings) / "config.yaml"
    writes = count_writes(folder / "untouched", config)
    runs = [folder / "killed-1"]
    steps: Counter[str] = Counter()
    lost, inside, code = [], 0, 0
    while len(lost) < kills:
        delay = rng.uniform(0, 0.03) if len(lost) % 2 else None
        # Long enough to get past the step that writes most, and short enough that kills spread over all steps.
        status = life(runs[-1], config, die_after(rng.randint(1, max(60, 2 * writes // kills)), delay))
        if not os.WIFSIGNALED(status):  # it came to its end before its time
            code = code or os.waitstatus_to_exitcode(status)
            runs.append(folder / f"killed-{len(runs) + 1}")
            continue
        steps[_under_way(runs[-1])] += 1
        inside += bool([*runs[-1].glob("state/*/writing-*")])
        lost.append(time.time() - _last_saved(runs[-1]))
    code = code or os.waitstatus_to_exitcode(life(runs[-1], config, lambda: None))
    different = {f"{run.name}/{n}": x for run in runs for n, x in _differences(folder / "untouched", run).items()}
    return Figures(
        kills=len(lost),
        inside=inside,
        steps=dict(steps),
        lost_seconds=lost,
        different=different,
        runs=len(runs),
        exit_code=code,
    )


def _under_way(run: Path) -> str:
    folders = [path.name for path in run.glob("state/*") if path.is_dir()]
    return folders[0] if folders else "between trained steps"


def _last_saved(run: Path) -> float:
    saved = [*run.glob("state/*/step-*/manifest.json"), *run.glob("state/steps.json"), *run.glob("config.yaml")]
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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, help="of adapters")
    parser.add_argument("--out", type=Path, help="a file for the table")
    arguments = parser.parse_args()
    require_positive(arguments, "kills")
    with tempfile.TemporaryDirectory() as folder:
        figures = torture(arguments.kills, arguments.seed, Path(folder), AdapterConfig(rank=arguments.rank))
    print(figures.table(), end="")
    for name, count in figures.different.items():
        print(f"{name}: {count} bytes differ", file=sys.stderr)
    if arguments.out is not None:
        arguments.out.write_text(figures.table(), encoding="utf-8")
    return int(bool(figures.different) or figures.exit_code != 0)


if __name__ == "__main__":
    sys.exit(main())
