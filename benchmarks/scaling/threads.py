"""The miniature's steps by number of threads and way of waiting, with both cores free and with one of them busy.

    python -m benchmarks.scaling.threads [--rounds 3] [--out FILE.json]

Milliseconds of the phases of an iteration of PPO-ptx with the miniature's model (256 episodes of 60 + 32 tokens, four
optimiser steps), of ten steps of its pretraining (8 blocks of 128), and of twenty products of 64x128 by 128x128. Each
way of waiting is a process of its own, since libgomp reads it once; on the busy core runs a loop of another program.
Medians of rounds, but means of many products in each: what a preempted thread costs is rare and large. As root, all of
this takes precedence of what else the machine does.
"""

import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

from benchmarks.core.tables import command, markdown, write_json
from benchmarks.core.turns import Worker, say, turns
from instructrl import threads
from instructrl.runs.settings import MINIATURE

WAYS = {
    "libgomp's own": {},
    "asleep": {"OMP_WAIT_POLICY": "passive"},
    f"{threads.SPINS:,} looks": {"GOMP_SPINCOUNT": str(threads.SPINS)},
}
THREADS = ("1", "2", "by work")
PROMPT, VOCABULARY = 60, 1000
PHASES = {"generate": ("generate",), "score": ("logprobs", "values", "score"), "update": ("update", "pretraining")}
Seconds = dict[str, float]


def steps(recipe=MINIATURE.recipe, shape=MINIATURE.model) -> Callable[[], Seconds]:
    """A function that does all of it once and returns seconds by phase."""
    import torch

    from instructrl import profiling
    from instructrl.data.encoding import Encoder, blocks_as_sequences
    from instructrl.data.tokenizers import word_tokenizer
    from instructrl.models.policy import gpt2_policy
    from instructrl.models.scoring import RewardModel
    from instructrl.trainers.likelihood import accumulate_likelihood_gradient
    from instructrl.trainers.ppo import PPOTrainer

    words = [f"w{number}" for number in range(VOCABULARY)]
    encoder = Encoder(word_tokenizer(words), recipe.limits)
    torch.manual_seed(0)
    policy = gpt2_policy(vocabulary=len(encoder.tokenizer), end_of_text=encoder.end_of_text, **asdict(shape))
    reward = RewardModel.from_policy(policy, torch.Generator().manual_seed(0))
    rng = random.Random(0)
    prompts = [" ".join(rng.choices(words, k=PROMPT)) for _ in range(2048)]
    blocks = torch.randint(1, VOCABULARY, (512, recipe.block_tokens))
    trainer = PPOTrainer(policy, reward, prompts, encoder, recipe.ppo_ptx, seed=0, blocks=blocks)
    few = [(1.0, blocks_as_sequences(blocks[: recipe.pretraining.batch_size]))]
    a, b = torch.randn(64, 128), torch.randn(128, 128)

    def timed(work: Callable[[], object], times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            work()
        return time.perf_counter() - start

    def run() -> Seconds:
        with profiling.collect() as profile:
            trainer.train_step()
        trainer.step = 0
        seconds = {name: sum(profile.seconds[part] for part in parts) for name, parts in PHASES.items()}
        seconds["pretrain"] = timed(lambda: accumulate_likelihood_gradient(policy, few, 64), 10)
        return {**seconds, "all": sum(seconds.values()), "products": timed(lambda: a @ b, 1000) / 50}

    return run


def serve() -> None:
    """One measurement for each number of threads that a turn names."""
    import torch

    run, most = steps(), torch.get_num_threads()
    run()
    for name in turns():
        torch.set_num_threads(int(name) if name.isdecimal() else most)
        with nullcontext() if name.isdecimal() else threads.by_work():
            say(run())
    say({})


def precede(process: int) -> None:
    """Give the session of a process precedence of others, where the system lets us."""
    if os.geteuid() == 0 and (group := Path(f"/proc/{process}/autogroup")).exists():
        group.write_text("-20")


@contextmanager
def busy(core: int) -> Iterator[int]:
    """Gives the process that keeps it busy."""
    work = f"import os\nos.sched_setaffinity(0, [{core}])\nwhile True: pass"
    loop = subprocess.Popen([sys.executable, "-c", work], start_new_session=True)
    precede(loop.pid)
    try:
        yield loop.pid
    finally:
        loop.kill()
        loop.wait()


def measure(variables: Mapping[str, str], rounds: int, core: int) -> dict[str, list[Seconds]]:
    """ "THREADS, free or busy" -> the rounds."""
    plain = {name: text for name, text in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
    process = [sys.executable, "-m", "benchmarks.scaling.threads", "--serve"]
    server = Worker(process, env={**plain, **variables}, start_new_session=True)
    precede(server.process.pid)
    found: dict[str, list[Seconds]] = {f"{name}, {state}": [] for name in THREADS for state in ("free", "busy")}
    for _ in range(rounds):
        for key, seconds in found.items():
            name, _, state = key.rpartition(", ")
            with busy(core) if state == "busy" else nullcontext():
                seconds.append(server.turn(name))
    server.end()
    return found


def main() -> None:
    arguments = command(__doc__, rounds=3, out=Path, serve=False)
    if arguments.serve:
        serve()
        return
    cores = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, cores)
    medians = {}
    for way, variables in WAYS.items():
        for key, rows in measure(variables, arguments.rounds, cores[-1]).items():
            medians[f"{way}, {key}"] = {name: 1000 * statistics.median(row[name] for row in rows) for name in rows[0]}
    names = list(next(iter(medians.values())))
    rows = [[key, *(f"{row[name]:,.1f}" for name in names)] for key, row in medians.items()]
    print(markdown(("ms", *names), rows), end="")
    if arguments.out:
        write_json(arguments.out, medians, indent=1)


if __name__ == "__main__":
    main()
