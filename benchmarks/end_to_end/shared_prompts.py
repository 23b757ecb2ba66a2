"""The reward model on K completions of a prompt: one pass that reads the prompt once, beside separate passes.

    OMP_NUM_THREADS=2 python -m benchmarks.end_to_end.shared_prompts [--rounds 5] [--out FILE.json]

Forward and backward of the loss over all pairs, 4 layers of width 256, K = 9, prompts of 256 tokens, responses of 64.
"one a completion": one row each. "two a pair": a row each for winner and loser of every pair, as trainers on pairs do.
Peak memory is that of a process of its own, over that of one that only makes the inputs.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.end_to_end import task
from instructrl.data.encoding import Encoder, preferred_pairs
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import word_tokenizer
from instructrl.models.policy import gpt2_policy
from instructrl.models.scoring import RewardModel
from instructrl.objectives.reward_modeling import comparison_loss
from instructrl.types import Comparison

K, PROMPT, RESPONSE, PROMPTS = 9, 256, 64, 2
WORDS = 1000


def comparisons() -> list[Comparison]:
    rng = random.Random(0)

    def text(length: int) -> str:
        return " ".join(f"w{rng.randrange(WORDS)}" for _ in range(length))

    pairs = Comparison.pairs_from_ranks(range(K))
    return [
        Comparison(prompt=text(PROMPT), completions=tuple(text(RESPONSE - 1) for _ in range(K)), preferred=pairs)
        for _ in range(PROMPTS)
    ]


def steps() -> dict[str, Callable[[], list[Tensor]]]:
    """Each returns the loss and the gradient of every parameter."""
    torch.manual_seed(0)
    limits = Limits(max_prompt_tokens=PROMPT, max_response_tokens=RESPONSE)
    encoder = Encoder(word_tokenizer([f"w{i}" for i in range(WORDS)]), limits)
    size = len(encoder.tokenizer)
    policy = gpt2_policy(
        vocabulary=size, context=limits.total, layers=4, width=256, heads=4, end_of_text=encoder.end_of_text
    )
    model = RewardModel.from_policy(policy, torch.Generator().manual_seed(0))
    rows = comparisons()
    preferred, shared = preferred_pairs(rows), encoder.shared_prompts(rows)
    prompts = [row.prompt for row in rows for _ in row.completions]
    separate = encoder.pairs(prompts, [text for row in rows for text in row.completions])
    winners, losers = zip(*sorted(rows[0].preferred), strict=True)
    first = torch.arange(PROMPTS)[:, None] * K
    sides = torch.cat([(first + torch.tensor(winners)).flatten(), (first + torch.tensor(losers)).flatten()])
    twice = separate.select(sides)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def with_gradients(loss: Tensor) -> list[Tensor]:
        return [loss.detach(), *torch.autograd.grad(loss, parameters)]

    def pairwise() -> list[Tensor]:
        won, lost = model(twice).chunk(2)
        return with_gradients(-F.logsigmoid(won - lost).mean())

    return {
        "shared": lambda: with_gradients(comparison_loss(model.shared_prompt_scores(shared), preferred, PROMPTS).loss),
        "one a completion": lambda: with_gradients(
            comparison_loss(model(separate).view(PROMPTS, K), preferred, PROMPTS).loss
        ),
        "two a pair": pairwise,
    }


def peak(provider: str) -> int:
    command = [sys.executable, "-m", "benchmarks.end_to_end.shared_prompts", "--peak", provider]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    providers = steps()
    if arguments.peak is not None:
        if arguments.peak:
            providers[arguments.peak]()
        print(task.peak_bytes())
        return
    results = {name: torch.cat([x.flatten() for x in step()]) for name, step in providers.items()}
    for name, found in results.items():
        error = float((found - results["shared"]).abs().max() / found.abs().max())
        print(f"{name}: loss and gradients differ from shared by {error:.1e} of the largest gradient")
        if error > 1e-4:
            raise RuntimeError(f"{name} computes something else")
    times: dict[str, list[float]] = {name: [] for name in providers}
    for _ in range(arguments.rounds):
        for name, step in providers.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    alone = peak("")
    found = {}
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, times["shared"], strict=True))
        extra = peak(name) - alone
        rate = PROMPTS / statistics.median(seconds)
        found[name] = {"seconds": seconds, "ratio": ratio, "extra_bytes": extra}
        print(f"{name:<17} {rate:7.2f} prompts/s, shared is {ratio:5.2f} times as fast; {extra / 2**20:.0f} MiB extra")
    if arguments.out:
        arguments.out.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
