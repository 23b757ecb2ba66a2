"""Time and peak memory of a PPO iteration on a model, with all of its weights and with adapters.

    python -m benchmarks.scaling.iteration --model FOLDER [--rounds 3] [--forms FORM ...] [--peer PYTHON] [--out FILE]

16 prompts of 40 to 115 tokens, responses of up to 32, minibatches of 8, two threads. A process of its own loads the
model, makes every role and does two iterations, of which the second counts; the forms take turns, a process each, and
start anew in each round. A peak is the most that was ever resident: Python, torch and loading are in it. What the roles
hold is the sum over distinct tensors: weights, averages, moments and gradients. PYTHON is an interpreter with AgileRL,
whose `LLMPPO` then takes turns too, on the same prompts (`agilerl_iteration.py`); its rewards are random numbers, so
there is no reward model in its time.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.core.memory import peak_bytes
from benchmarks.core.tables import command, markdown, spread, write_json
from instructrl import profiling
from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import load_tokenizer
from instructrl.models.base import named_weights
from instructrl.models.heap import give_back_large
from instructrl.models.passes import applied
from instructrl.models.roles import learner, load_policy
from instructrl.models.scoring import RewardModel
from instructrl.models.settings import AdapterConfig, PassConfig
from instructrl.rollout.randomness import keyed_generator
from instructrl.trainers.ppo import PPOTrainer
from instructrl.trainers.settings import PPOConfig

RANK, THREADS = 16, 2
PROMPT_TOKENS, RESPONSE_TOKENS, BATCH, MINIBATCH = (40, 115), 32, 16, 8
WHOLE, ADAPTERS = AdapterConfig(), AdapterConfig(rank=RANK)
FORMS = {
    "all weights": (WHOLE, False),
    "all weights, checkpointed activations": (WHOLE, True),
    "adapters": (ADAPTERS, False),
    "adapters, checkpointed activations": (ADAPTERS, True),
    "adapters, base in bfloat16": (AdapterConfig(rank=RANK, base_dtype="bfloat16"), False),
}
PEER = {"AgileRL": False, "AgileRL, checkpointed activations": True}
_PEER_PROGRAM = Path(__file__).with_name("agilerl_iteration.py")


def prompts_of(encoder: Encoder) -> list[str]:
    """Words, so many that prompts have the lengths that are given, evenly spaced."""
    rng, (low, high) = random.Random(0), PROMPT_TOKENS
    words = sorted(word for word in encoder.tokenizer.get_vocab() if word.isascii() and word.isalpha())
    texts = []
    for length in (low + (high - low) * i // (BATCH - 1) for i in range(BATCH)):
        text = rng.choice(words)
        while len(encoder.prompt(longer := f"{text} {rng.choice(words)}")) <= length:
            text = longer
        texts.append(text)
    return texts


def encoder_of(model: str) -> Encoder:
    """With room for the prompt that is one token too long."""
    limits = Limits(max_prompt_tokens=PROMPT_TOKENS[1] + 64, max_response_tokens=RESPONSE_TOKENS)
    return Encoder(load_tokenizer(model), limits)


def trainer_of(model: str, adapter: AdapterConfig, passes: PassConfig) -> PPOTrainer:
    """A reward model with a random head stands for one that was trained."""
    encoder = encoder_of(model)
    start = load_policy(model, encoder.tokenizer, adapter)
    give_back_large(start)  # as the commands do
    made = RewardModel.from_policy(start, keyed_generator(0))
    policy, reward_model = (start, made) if adapter.rank is None else (learner(start, adapter), learner(made, adapter))
    config = PPOConfig(
        num_episodes=BATCH * 100, rollout_batch=BATCH, minibatch=MINIBATCH, microbatch=MINIBATCH, passes=passes
    )
    return PPOTrainer(policy, reward_model, prompts_of(encoder), encoder, config)


def _tensors(trainer: PPOTrainer) -> Iterator[Tensor]:
    networks = (trainer.policy, trainer.reference, trainer.reward_model, trainer.value_function, trainer.average.module)
    for network in networks:
        if network is not None:
            yield from (x for _, x in named_weights(network))
    for update in (trainer.policy_update, trainer.value_update):
        yield from update.parameters
        for state in update.optimizer.state.values():
            yield from (x for x in state.values() if x.dim())  # and not the counters of steps


def held_bytes(trainer: PPOTrainer) -> int:
    """Of distinct tensors of weights, averages and moments, and of the gradients that there are before a step."""
    tensors = {x.data_ptr(): x.nbytes for x in _tensors(trainer)}
    gradients = [x.nbytes for update in (trainer.policy_update, trainer.value_update) for x in update.parameters]
    return sum(tensors.values()) + sum(gradients)


def work(model: str, form: str) -> dict[str, Any]:
    """In a process of its own."""
    torch.set_num_threads(THREADS)
    adapter, saving = FORMS[form]
    passes = PassConfig(weights="float32", checkpoint_activations=saving)
    trainer = trainer_of(model, adapter, passes)
    found: dict[str, Any] = {"loaded_bytes": peak_bytes()}
    for _ in range(2):
        start, cpu = time.perf_counter(), time.process_time()
        with profiling.collect() as profile, applied(passes, [trainer.policy, trainer.value_function]):
            metrics, _ = trainer.train_step()
        found["seconds"] = time.perf_counter() - start
        found["cpu_seconds"] = time.process_time() - cpu
    found |= {"peak_bytes": peak_bytes(), "held_bytes": held_bytes(trainer), "phases": dict(profile.seconds)}
    base = trainer.policy.base
    own = list(trainer.policy.lm.parameters()) if base is None else base.tensors
    found["base_bytes"] = sum(x.nbytes for x in own)
    return {**found, "metrics": metrics}


def programs(model: str, peer: Path | None) -> dict[str, tuple[list[str], str]]:
    """By form, a command that prints a line of JSON after "@", and what it reads."""
    ours = [sys.executable, "-m", "benchmarks.scaling.iteration", "--model", model, "--form"]
    found = {form: ([*ours, form], "") for form in FORMS}
    if peer is not None:
        encoder = encoder_of(model)
        ids = json.dumps([list(encoder.prompt(text)) for text in prompts_of(encoder)])
        sizes = [str(x) for x in (RANK, RESPONSE_TOKENS, MINIBATCH)]
        for form, saving in PEER.items():
            found[form] = ([str(peer), str(_PEER_PROGRAM), model, *sizes, str(int(saving))], ids)
    return found


def main() -> None:
    arguments = command(__doc__, model=True, rounds=3, forms=[*FORMS, *PEER], form="", peer=Path, out=Path)
    if arguments.form:
        print("@" + json.dumps(work(arguments.model, arguments.form)))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    commands = {k: v for k, v in programs(arguments.model, arguments.peer).items() if k in arguments.forms}
    found: dict[str, list[dict[str, Any]]] = {form: [] for form in commands}
    for _ in range(arguments.rounds):
        for form, (program, read) in commands.items():
            done = subprocess.run(program, input=read, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise RuntimeError(f"{form}: ended with {done.returncode}: {done.stderr[-2000:]}")
            rows = found[form]
            rows.append(json.loads(done.stdout.rpartition("@")[2]))
            print(form, f"{rows[-1]['seconds']:.1f} s, {rows[-1]['peak_bytes'] / 2**30:.2f} GiB", flush=True)
    print(markdown(("form", "seconds", "GiB at the peak", "GiB held", "times the base"), map(_row, found.items())))
    if arguments.out:
        versions = {"torch": torch.__version__, "threads": THREADS, "cpu": torch.backends.cpu.get_cpu_capability()}
        write_json(arguments.out, {"versions": versions, "rank": RANK, "forms": found}, indent=1)


def _row(item: tuple[str, list[dict[str, Any]]]) -> list[str]:
    form, rows = item
    cells = [spread([row["seconds"] for row in rows], ".1f"), f"{max(row['peak_bytes'] for row in rows) / 2**30:.2f}"]
    if "held_bytes" not in rows[0]:
        return [form, *cells, "", ""]
    held = statistics.median(row["held_bytes"] for row in rows)
    return [form, *cells, f"{held / 2**30:.2f}", f"{held / rows[0]['base_bytes']:.2f}"]


if __name__ == "__main__":
    main()
