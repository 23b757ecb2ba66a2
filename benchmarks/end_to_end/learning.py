"""Whether both trainers learn the same: a small task, the same number of iterations, the score at the end.

    python -m benchmarks.end_to_end.learning --peer PYTHON_WITH_TRL_1.12 [--iterations 40] [--seeds 3] [--out FILE.json]

A network of 2 layers learns to please a reward model that was drawn at random; seeds differ in what is sampled.
"""

import os
import statistics
import tempfile
from pathlib import Path

from benchmarks.core.tables import command, write_json
from benchmarks.core.turns import Worker
from benchmarks.end_to_end import task as given
from benchmarks.end_to_end.compare import commands

TASK = given.Task(
    layers=2, width=64, vocabulary=200, prompt_tokens=8, response_tokens=16, learning_rate=3e-4, score_scale=1.0
)
LAST = 10


def main() -> None:
    asked = command(__doc__, peer=True, iterations=40, seeds=3, out=Path)
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    results: dict[str, list[list[dict]]] = {"ours": [], "trl": []}
    with tempfile.TemporaryDirectory() as folder:
        given.write(TASK, Path(folder))
        for seed in range(asked.seeds):
            for name, process in commands("ppo", folder, asked.peer).items():
                worker = Worker([*process, str(seed)])
                results[name].append([worker.turn() for _ in range(asked.iterations)])
                worker.end()
    for name, runs in results.items():
        first = statistics.mean(run[0]["score"] for run in runs)
        last, kl = ([statistics.mean(row[x] for row in run[-LAST:]) for run in runs] for x in ("score", "kl"))
        spread = statistics.stdev(last) if len(last) > 1 else 0.0
        print(
            f"{name:<5} score {first:+.2f} at the start, {statistics.mean(last):+.2f} +- {spread:.2f} over the last "
            f"{LAST} iterations (mean and deviation over seeds), kl {statistics.mean(kl):.2f}"
        )
    if asked.out:
        write_json(asked.out, results)


if __name__ == "__main__":
    main()
