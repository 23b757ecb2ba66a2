"""Training end to end beside TRL: the same models, data, batches, epochs and dtype, a turn of each at a time.

    python -m benchmarks.end_to_end.compare ppo --peer PYTHON_WITH_TRL_1.12 [--rounds 5] [--out FILE.json]
    python -m benchmarks.end_to_end.compare sft --peer PYTHON_WITH_TRL
    python -m benchmarks.end_to_end.compare ppo --peer PYTHON_WITH_TRL_1.12 --device cuda [--only small]

A turn is one PPO iteration, or four SFT steps. Figures are medians over rounds, after one round that is not counted,
with the middle half of the rounds in brackets; ratios are medians of the rounds' own. Peak memory is that of the whole
process, on a GPU that of its tensors. On a GPU networks have the shapes of GPT-2 small and of a GPT-3 of 1.3B weights,
matrix products are in bfloat16 by autocast, and FLOPs, by `arithmetic.py`, are those of tokens without padding.
"""

import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.core.tables import command, median_ratio, spread, write_json
from benchmarks.core.turns import Worker
from benchmarks.end_to_end import task as given
from benchmarks.end_to_end.arithmetic import DEVICES, flops_per_episode

TASKS = {"full length": given.Task(), "random length": given.Task(mean_response_tokens=24.0)}
ON_GPU = given.Task(prompt_tokens=256, response_tokens=256, device="cuda", bfloat16=True)
GPU_TASKS = {
    "small": replace(ON_GPU, layers=12, width=768, heads=12),
    "1.3B": replace(ON_GPU, layers=24, width=2048, heads=16),
}


def commands(step: str, folder: str, peer: str) -> dict[str, list[str]]:
    """By whose trainer it is. peer: python of an environment with trl."""
    pythons = {"ours": (sys.executable, "our"), "trl": (peer, "trl")}
    return {
        name: [python, "-m", f"benchmarks.end_to_end.{which}_worker", step, folder]
        for name, (python, which) in pythons.items()
    }


def measure(step: str, task: given.Task, peer: str, rounds: int) -> dict[str, list[dict]]:
    """What each worker says, by worker: an entry a round, and the last one with its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        given.write(task, Path(folder))
        workers = {name: Worker(command) for name, command in commands(step, folder, peer).items()}
        for worker in workers.values():
            worker.turn()
        found: dict[str, list[dict]] = {name: [] for name in workers}
        for _ in range(rounds):
            for name, worker in workers.items():
                found[name].append(worker.turn())
        for name, worker in workers.items():
            found[name].append(worker.end())
    return found


def report(name: str, sequences: int, found: dict[str, list[dict]]) -> dict:
    """Print a task's figures; returns them. sequences: in a turn."""
    print(f"\n{name}")
    rows = {worker: messages[:-1] for worker, messages in found.items()}
    totals = {worker: [sum(row["seconds"].values()) for row in part] for worker, part in rows.items()}
    peaks = {worker: messages[-1]["peak_bytes"] for worker, messages in found.items()}
    for worker, part in rows.items():
        phases = {phase: statistics.median(row["seconds"][phase] for row in part) for phase in part[0]["seconds"]}
        parts = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in phases.items())
        total = spread(totals[worker], ".2f")
        print(f"  {worker:<5} {total} s ({parts}), peak {peaks[worker] / 2**20:.0f} MiB")
    ratio = median_ratio(totals["trl"], totals["ours"])
    memory = peaks["ours"] / peaks["trl"]
    rate = sequences / statistics.median(totals["ours"])
    print(f"  {ratio:.2f} times TRL's rate ({rate:.1f} sequences/s), {memory:.2f} of its peak memory", flush=True)
    return {"task": name, "rounds": rows, "peak_bytes": peaks, "ratio": ratio, "memory": memory}


def task_flops(task: given.Task) -> float:
    """Of one PPO iteration in which no response ends early; scorers have no language-model head."""
    scorer = 12 * task.layers * task.width**2
    policy = scorer + task.vocabulary * task.width
    tokens = task.prompt_tokens + task.response_tokens
    return task.batch * sum(flops_per_episode(policy, scorer, tokens, task.epochs).values())


def report_rates(task: given.Task, result: dict) -> dict:
    """Print tokens a second and the share of the GPU's bfloat16 peak, by worker; the result with both."""
    tokens = task.batch * (task.prompt_tokens + task.response_tokens)
    rates = {}
    for worker, rounds in result["rounds"].items():
        seconds = statistics.median(sum(row["seconds"].values()) for row in rounds)
        share = task_flops(task) / seconds / DEVICES[0].flops_per_s
        rates[worker] = {"tokens_per_s": tokens / seconds, "share_of_peak": share}
        peak = f"{DEVICES[0].flops_per_s / 1e12:.0f} TFLOP/s, an H100's or H200's"
        print(f"  {worker:<5} {tokens / seconds:.0f} tokens/s, {100 * share:.1f}% of {peak}", flush=True)
    return {**result, "rates": rates}


def main() -> None:
    arguments = command(__doc__, step_=("ppo", "sft"), peer=True, device=("cpu", "cuda"), rounds=5, only="", out=Path)
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    sequences = {"ppo": given.Task().batch, "sft": given.SFT_STEPS * given.Task().minibatch}[arguments.step]
    if arguments.device == "cuda" and arguments.step != "ppo":
        raise SystemExit("--device: found cuda with sft, accepted is ppo")
    results = []
    for name, task in (TASKS if arguments.device == "cpu" else GPU_TASKS).items():
        if arguments.only in name:
            results.append(report(name, sequences, measure(arguments.step, task, arguments.peer, arguments.rounds)))
            if arguments.device == "cuda":
                results[-1] = report_rates(task, results[-1])
    if arguments.out:
        write_json(arguments.out, results)


if __name__ == "__main__":
    main()
