"""PPO end to end beside TRL: the same models, prompts, batches, epochs and dtype, an iteration of each in turn.

    python benchmarks/end_to_end/compare.py --peer PYTHON_WITH_TRL [--rounds 5] [--out FILE.json]

Figures are medians over rounds, after one round that is not counted; ratios are medians of the rounds' own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import task as given

HERE = Path(__file__).parent
TASKS = {"full length": given.Task(), "random length": given.Task(mean_response_tokens=24.0)}
WORKERS = ("ours", "trl")


class Worker:
    """A trainer in a process of its own."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hear()

    def hear(self) -> dict:
        """The next message; what a library prints in between is dropped."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError(f"{self._process.args}: ended with exit code {self._process.wait()}")

    def turn(self) -> dict:
        """One iteration."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self.hear()

    def end(self) -> dict:
        """Its last message."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        found = self.hear()
        self._process.wait()
        return found


def measure(task: given.Task, peer: str, rounds: int) -> dict[str, list[dict]]:
    """What each worker says, by worker: an entry a round, and the last one with its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        given.write(task, Path(folder))
        scripts = {"ours": [sys.executable, str(HERE / "our_ppo.py")], "trl": [peer, str(HERE / "trl_ppo.py")]}
        workers = {name: Worker([*command, folder]) for name, command in scripts.items()}
        for worker in workers.values():
            worker.turn()
        found: dict[str, list[dict]] = {name: [] for name in workers}
        for _ in range(rounds):
            for name, worker in workers.items():
                found[name].append(worker.turn())
        for name, worker in workers.items():
            found[name].append(worker.end())
    return found


def middle(values: list[float]) -> str:
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"


def report(name: str, task: given.Task, found: dict[str, list[dict]]) -> dict:
    """Print a task's figures; returns them."""
    print(f"\n{name}")
    rows = {worker: messages[:-1] for worker, messages in found.items()}
    totals = {worker: [sum(row["seconds"].values()) for row in part] for worker, part in rows.items()}
    peaks = {worker: messages[-1]["peak_bytes"] for worker, messages in found.items()}
    for worker, part in rows.items():
        phases = {phase: statistics.median(row["seconds"][phase] for row in part) for phase in part[0]["seconds"]}
        spread = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in phases.items())
        print(f"  {worker:<5} {middle(totals[worker])} s ({spread}), peak {peaks[worker] / 2**20:.0f} MiB")
    ratio = statistics.median(b / a for a, b in zip(totals["ours"], totals["trl"], strict=True))
    memory = peaks["ours"] / peaks["trl"]
    rate = task.batch / statistics.median(totals["ours"])
    print(f"  {ratio:.2f} times TRL's episodes/s ({rate:.1f} episodes/s), {memory:.2f} of its peak memory")
    return {"task": name, "rounds": rows, "peak_bytes": peaks, "ratio": ratio, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", required=True, help="python of an environment with trl 1.12")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="tasks whose name contains this")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = [
        report(name, task, measure(task, arguments.peer, arguments.rounds))
        for name, task in TASKS.items()
        if arguments.only in name
    ]
    if arguments.out:
        arguments.out.write_text(json.dumps(results) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
