"""Training end to end beside TRL: the same models, data, batches, epochs and dtype, a turn of each at a time.

    python -m benchmarks.end_to_end.compare ppo --peer PYTHON_WITH_TRL_1.12 [--rounds 5] [--out FILE.json]
    python -m benchmarks.end_to_end.compare sft --peer PYTHON_WITH_TRL
    python -m benchmarks.end_to_end.compare ppo --peer PYTHON_WITH_TRL_1.12 --device cuda [--only small]
    python -m benchmarks.end_to_end.compare learning --peer PYTHON_WITH_TRL_1.12 [--rounds 40] [--seeds 3]

A turn is one PPO iteration, or four SFT steps. Figures are medians over rounds, after one round that is not counted,
with the middle half of the rounds in brackets; ratios are medians of the rounds' own. Peak memory is that of the whole
process, on a GPU that of its tensors. On a GPU networks have the shapes of GPT-2 small and of a GPT-3 of 1.3B weights,
matrix products are in bfloat16 by autocast, and FLOPs, by `arithmetic.py`, are those of tokens without padding.

learning: whether both learn the same: networks of 2 layers learn to please a reward model that was drawn at random, the
same number of iterations; seeds differ in what is sampled.
"""

import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.core.tables import command, median_ratio, spread, write_json
from benchmarks.core.turns import Worker
from benchmarks.end_to_end import task as given
from benchmarks.end_to_end.arithmetic import DEVICES, flops_per_episode

ON_GPU = given.Task(prompt_tokens=256, response_tokens=256, device="cuda", bfloat16=True)
TASKS = {
    "cpu": {"full length": given.Task(), "random length": given.Task(mean_response_tokens=24.0)},
    "cuda": {
        "small": replace(ON_GPU, layers=12, width=768, heads=12),
        "1.3B": replace(ON_GPU, layers=24, width=2048, heads=16),
    },
}
LEARNED = given.Task(
    layers=2, width=64, vocabulary=200, prompt_tokens=8, response_tokens=16, learning_rate=3e-4, score_scale=1.0
)
LAST = 10
PEAK = DEVICES["H100 80 GB"].flops_per_s


def commands(step: str, folder: str, peer: str) -> dict[str, list[str]]:
    """By whose trainer it is. peer: python of an environment with trl."""
    pythons = {"ours": (sys.executable, "our"), "trl": (peer, "trl")}
    module = "benchmarks.end_to_end.{}_worker"
    return {name: [python, "-m", module.format(whose), step, folder] for name, (python, whose) in pythons.items()}


def measure(step: str, task: given.Task, peer: str, rounds: int, seed: int = 0) -> dict[str, list[dict]]:
    """What each worker says, by worker: an entry a round, and the last one with its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        given.write(task, Path(folder))
        workers = {name: Worker([*words, str(seed)]) for name, words in commands(step, folder, peer).items()}
        found: dict[str, list[dict]] = {name: [] for name in workers}
        for _ in range(rounds):
            for name, worker in workers.items():
                found[name].append(worker.turn())
        return {name: [*found[name], worker.end()] for name, worker in workers.items()}


def report(name: str, sequences: int, found: dict[str, list[dict]]) -> dict[str, Any]:
    """Print a task's figures; returns them. sequences: in a turn."""
    print(f"\n{name}")
    rows = {worker: messages[1:-1] for worker, messages in found.items()}
    totals = {worker: [sum(row["seconds"].values()) for row in part] for worker, part in rows.items()}
    peaks = {worker: messages[-1]["peak_bytes"] for worker, messages in found.items()}
    for worker, part in rows.items():
        phases = {phase: statistics.median(row["seconds"][phase] for row in part) for phase in part[0]["seconds"]}
        parts = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in phases.items())
        print(f"  {worker:<5} {spread(totals[worker], '.2f')} s ({parts}), peak {peaks[worker] / 2**20:.0f} MiB")
    ratio, memory = median_ratio(totals["trl"], totals["ours"]), peaks["ours"] / peaks["trl"]
    rate = sequences / statistics.median(totals["ours"])
    print(f"  {ratio:.2f} times TRL's rate ({rate:.1f} sequences/s), {memory:.2f} of its peak memory", flush=True)
    return {"task": name, "rounds": rows, "peak_bytes": peaks, "ratio": ratio, "memory": memory}


def task_flops(task: given.Task) -> float:
    """Of one PPO iteration in which no response ends early; scorers have no language-model head."""
    scorer = 12 * task.layers * task.width**2
    policy = scorer + task.vocabulary * task.width
    tokens = task.prompt_tokens + task.response_tokens
    return task.batch * sum(flops_per_episode(policy, scorer, tokens, task.epochs).values())


def report_rates(task: given.Task, result: dict[str, Any]) -> dict[str, Any]:
    """Print tokens a second and the share of the GPU's bfloat16 peak, by worker; the result with both."""
    tokens, rates = task.batch * (task.prompt_tokens + task.response_tokens), {}
    for worker, rounds in result["rounds"].items():
        seconds = statistics.median(sum(row["seconds"].values()) for row in rounds)
        share = task_flops(task) / seconds / PEAK
        rates[worker] = {"tokens_per_s": tokens / seconds, "share_of_peak": share}
        peak = f"{PEAK / 1e12:.0f} TFLOP/s, an H100's or H200's"
        print(f"  {worker:<5} {tokens / seconds:.0f} tokens/s, {100 * share:.1f}% of {peak}", flush=True)
    return {**result, "rates": rates}


def learning(peer: str, rounds: int, seeds: int) -> dict[str, list[list[dict]]]:
    """By trainer, the rounds of each seed; prints the scores at the start and at the end."""
    found = [measure("ppo", LEARNED, peer, rounds, seed) for seed in range(seeds)]
    results = {name: [one[name][:-1] for one in found] for name in found[0]}
    for name, runs in results.items():
        first = statistics.mean(run[0]["score"] for run in runs)
        last, kl = ([statistics.mean(row[x] for row in run[-LAST:]) for run in runs] for x in ("score", "kl"))
        deviation = statistics.stdev(last) if len(last) > 1 else 0.0
        print(
            f"{name:<5} score {first:+.2f} at the start, {statistics.mean(last):+.2f} +- {deviation:.2f} over the last "
            f"{LAST} iterations (mean and deviation over seeds), kl {statistics.mean(kl):.2f}"
        )
    return results


def compared(step: str, device: str, peer: str, rounds: int, only: str) -> list[dict[str, Any]]:
    results = []
    for name, task in TASKS[device].items():
        if only in name:
            sequences = task.batch if step == "ppo" else given.SFT_STEPS * task.minibatch
            results.append(report(name, sequences, measure(step, task, peer, rounds + 1)))
            if device == "cuda":
                results[-1] = report_rates(task, results[-1])
    return results


def main() -> None:
    steps, devices = ("ppo", "sft", "learning"), ("cpu", "cuda")
    asked = command(__doc__, step_=steps, peer=True, device=devices, rounds=int, seeds=3, only="", out=Path)
    if asked.device == "cuda" and asked.step != "ppo":
        raise SystemExit(f"--device: found cuda with {asked.step}, accepted is ppo")
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    if asked.step == "learning":
        results: Any = learning(asked.peer, asked.rounds or 40, asked.seeds)
    else:
        results = compared(asked.step, asked.device, asked.peer, asked.rounds or 5, asked.only)
    if asked.out:
        write_json(asked.out, results)


if __name__ == "__main__":
    main()
