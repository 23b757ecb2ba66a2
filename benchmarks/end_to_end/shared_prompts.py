"""The reward model on K completions of a prompt: one pass that reads the prompt once, beside separate passes.

    OMP_NUM_THREADS=2 python -m benchmarks.end_to_end.shared_prompts [--rounds 5] [--out FILE.json]

Forward and backward of the loss over all pairs, 4 layers of width 256, K = 9, prompts of 256 tokens, responses of 64.
"one a completion": one row each. "two a pair": a row each for winner and loser of every pair, as trainers on pairs do.
Extra memory is the peak of a step in a process of its own, over what that held with the inputs alone.
"""

import random
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.core.memory import extra_bytes, in_process
from benchmarks.core.tables import command, median_ratio, write_json
from benchmarks.core.timing import cpu_seconds
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
    rng, pairs = random.Random(0), Comparison.pairs_from_ranks(range(K))

    def text(length: int) -> str:
        return " ".join(f"w{rng.randrange(WORDS)}" for _ in range(length))

    def one() -> Comparison:
        return Comparison(prompt=text(PROMPT), completions=tuple(text(RESPONSE - 1) for _ in range(K)), preferred=pairs)

    return [one() for _ in range(PROMPTS)]


def steps() -> dict[str, Callable[[], list[Tensor]]]:
    """Each returns the loss and the gradient of every parameter."""
    torch.manual_seed(0)
    limits = Limits(max_prompt_tokens=PROMPT, max_response_tokens=RESPONSE)
    encoder = Encoder(word_tokenizer([f"w{i}" for i in range(WORDS)]), limits)
    sizes = {"context": limits.total, "layers": 4, "width": 256, "heads": 4}
    policy = gpt2_policy(vocabulary=len(encoder.tokenizer), end_of_text=encoder.end_of_text, **sizes)
    model = RewardModel.from_policy(policy, torch.Generator().manual_seed(0))
    rows = comparisons()
    preferred, shared = preferred_pairs(rows), encoder.shared_prompts(rows)
    prompts = [row.prompt for row in rows for _ in row.completions]
    separate = encoder.pairs(prompts, [text for row in rows for text in row.completions])
    winners, losers = map(torch.tensor, zip(*sorted(rows[0].preferred), strict=True))
    first = torch.arange(PROMPTS)[:, None] * K
    twice = separate.select(torch.cat([(first + winners).flatten(), (first + losers).flatten()]))
    parameters = [p for p in model.parameters() if p.requires_grad]

    def with_gradients(loss: Tensor) -> list[Tensor]:
        return [loss.detach(), *torch.autograd.grad(loss, parameters)]

    def of_all_pairs(scores: Tensor) -> list[Tensor]:
        return with_gradients(comparison_loss(scores, preferred, PROMPTS).loss)

    def pairwise() -> list[Tensor]:
        won, lost = model(twice).chunk(2)
        return with_gradients(-F.logsigmoid(won - lost).mean())

    return {
        "shared": lambda: of_all_pairs(model.shared_prompt_scores(shared)),
        "one a completion": lambda: of_all_pairs(model(separate).view(PROMPTS, K)),
        "two a pair": pairwise,
    }


def extra(provider: str) -> int:
    """Memory of a provider's step in this process."""
    return extra_bytes(steps()[provider])


def main() -> None:
    arguments, providers, found = command(__doc__, rounds=5, out=Path), steps(), {}
    results = {name: torch.cat([x.flatten() for x in step()]) for name, step in providers.items()}
    for name, one in results.items():
        error = float((one - results["shared"]).abs().max() / one.abs().max())
        print(f"{name}: loss and gradients differ from shared by {error:.1e} of the largest gradient")
        if error > 1e-4:
            raise RuntimeError(f"{name} computes something else")
    times = cpu_seconds(providers, arguments.rounds)
    for name, seconds in times.items():
        ratio, memory = median_ratio(seconds, times["shared"]), in_process(extra, name)
        rate = PROMPTS / statistics.median(seconds)
        found[name] = {"seconds": seconds, "ratio": ratio, "extra_bytes": memory}
        print(f"{name:<17} {rate:7.2f} prompts/s, shared is {ratio:5.2f} times as fast; {memory / 2**20:.0f} MiB extra")
    if arguments.out:
        write_json(arguments.out, found)


if __name__ == "__main__":
    main()
