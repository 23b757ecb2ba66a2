"""How far jobs end from a single process, what each process of them holds, and how long a killed one takes to end.

    python tests/jobs/figures.py [--kills 6] [--out FILE.md]

Differences are the largest of any weight, moment or counter at the end, divided by the largest element of its tensor
where that is above 1; weights are in float64 where nothing else is said. Beside them stands what rounding does to one
process whose forward passes are cut in other ways.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import test_commands
import test_training
import torture
import worker
from launch import torchrun

from instructrl.runs.folder import open_folder

END = "end.safetensors"
JOBS = (("ddp", 2), ("fsdp", 2), ("ddp", 3), ("fsdp", 3))


def compared(folder: Path) -> list[str]:
    """Rows of a table, one a job."""
    alone = folder / "alone"
    worker.job("ddp", alone / "2")
    for microbatch in test_training.OTHER_CUTS:
        worker.job("ddp", alone / str(microbatch), microbatch=microbatch)
    yardstick = [f"{test_training.rounding(alone, name):.0e}" for name in worker.TRAINERS]
    rows = ["| one process, cut otherwise | " + " | ".join([*yardstick, "", "1"]) + " |"]
    for how, count in JOBS:
        own = folder / f"{how}-{count}"
        found = torchrun(count, worker.__file__, how, str(own), str(alone / "2"))
        assert found.returncode == 0, found.stderr
        ends, continued = (
            [test_training.distance(alone / "2" / name / END, own / name / file) for name in worker.TRAINERS]
            for file in (END, "continued.safetensors")
        )
        held = [json.loads((place / "ppo" / "held.json").read_text()) for place in (own, alone / "2")]
        cells = [*(f"{x:.0e}" for x in ends), f"{continued[-1]:.0e}", f"{held[0] / held[1]:.2f}"]
        rows.append(f"| {count} processes, {how} | {' | '.join(cells)} |")
    return rows


def seconds_to_the_end(kills: int, folder: Path) -> list[float]:
    """From the SIGKILL of a process to the end of its job of two; the processes and the steps take turns."""
    config = str(open_folder(folder / "settings", torture.CONFIG) / "config.yaml")
    found = []
    for number in range(kills):
        phase = ("pretraining", "reward_model", "ppo")[number % 3]
        job = test_commands.begun(folder / str(number), config, phase)
        killed = time.monotonic()
        os.kill(test_commands.process(job, number % 2), signal.SIGKILL)
        _, error = job.communicate(timeout=120)
        found.append(time.monotonic() - killed)
        assert "another process of the job is gone" in error
    return found


def table(kills: int) -> str:
    """As Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        rows = compared(Path(folder) / "compared")
        seconds = seconds_to_the_end(kills, Path(folder) / "killed")
    return "\n".join(
        [
            "| | SFT | SFT, bfloat16 | reward model | PPO-ptx, bfloat16 weights | PPO-ptx | PPO-ptx, gone on from one "
            "| held by a process |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            f"{kills} kills of a process of a job of two: it ended {statistics.median(seconds):.1f} s later in the",
            f"median, {max(seconds):.1f} s at most, each time with the message that says how to go on.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    text = table(given.kills)
    print(text)
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
