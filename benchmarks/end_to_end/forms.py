"""PPO with all weights and with adapters on one tiny task, over seeds: whether both learn alike.

    python -m benchmarks.end_to_end.forms [--seeds 4] [--iterations 20] [--out FILE.json]

A small GPT-2 with weights so large that every word matters, for adapters cannot move an embedding; and a reward of 1
for every "w1" in a response of up to 8 words. Each form has a rate of its own, as adapters need a higher one; nothing
else differs. The last scores are means over five iterations; the mean over all of them says how fast it was.
"""

import io
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.core.tables import command, markdown, write_json
from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import word_tokenizer
from instructrl.models.policy import gpt2_policy
from instructrl.models.roles import learner, on_shared_base
from instructrl.models.settings import AdapterConfig, PassConfig, Precision
from instructrl.trainers.log import RunLog
from instructrl.trainers.ppo import PPOTrainer
from instructrl.trainers.settings import AdamConfig, PPOConfig

LAST = 5
# Form -> adapter, weights, rate.
FORMS: dict[str, tuple[AdapterConfig, Precision, float]] = {
    "all weights": (AdapterConfig(), "float32", 2e-3),
    "all weights, in bfloat16": (AdapterConfig(), "bfloat16", 2e-3),
    "adapters, rank 8": (AdapterConfig(rank=8), "float32", 1e-2),
}


def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [float(text.split().count("w1")) for text in responses]


def scores(form: str, seed: int, iterations: int) -> list[float]:
    """Of the iterations, the mean of their responses."""
    adapter, weights, rate = FORMS[form]
    torch.manual_seed(seed)
    tokenizer = word_tokenizer([f"w{i}" for i in range(30)])
    encoder = Encoder(tokenizer, Limits(max_prompt_tokens=8, max_response_tokens=8))
    sizes = {"context": 32, "layers": 2, "width": 64, "heads": 2}
    start = gpt2_policy(vocabulary=len(tokenizer), end_of_text=encoder.end_of_text, **sizes).eval()
    with torch.no_grad():
        for parameter in start.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.3)
    on_shared_base(start, adapter)
    adam = AdamConfig(lr=rate)
    config = PPOConfig(
        num_episodes=64 * iterations,
        rollout_batch=64,
        minibatch=32,
        policy_adam=adam,
        value_adam=adam,
        warmup_iterations=0,
        kl_coef=0.02,
        passes=PassConfig(weights=weights),
    )
    prompts = [f"w{i} w{(7 * i) % 30}" for i in range(30)]
    found: list[float] = []
    log = RunLog(None, Console(file=io.StringIO()))
    policy = learner(start, adapter, seed)
    trainer = PPOTrainer(policy, None, prompts, encoder, config, seed=seed, reward=reward)
    log.metrics = lambda phase, step, metrics: found.append(metrics["score"])  # pyright: ignore[reportAttributeAccessIssue]
    trainer.run(log)
    return found


def main() -> None:
    arguments = command(__doc__, seeds=4, iterations=20, out=Path)
    torch.set_num_threads(1)
    begun, found = time.perf_counter(), {form: [] for form in FORMS}
    for seed in range(arguments.seeds):
        for form, runs in found.items():
            runs.append(scores(form, seed, arguments.iterations))
            print(form, f"seed {seed}: {_last(runs[-1]):.2f}, {time.perf_counter() - begun:.0f} s", flush=True)
    print(
        markdown(
            ("form", "first score", "last scores, by seed", "their mean", "mean of all, over seeds"),
            map(_row, found.items()),
        )
    )
    if arguments.out:
        write_json(arguments.out, {"torch": torch.__version__, "scores": found}, indent=1)


def _last(run: Sequence[float]) -> float:
    return statistics.mean(run[-LAST:])


def _row(item: tuple[str, list[list[float]]]) -> list[str]:
    form, runs = item
    last = [_last(run) for run in runs]
    first = statistics.mean(run[0] for run in runs)
    cells = [_with_deviation(found) for found in (last, [statistics.mean(run) for run in runs])]
    return [form, f"{first:.2f}", " ".join(f"{x:.2f}" for x in last), *cells]


def _with_deviation(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} +- {deviation:.2f}"


if __name__ == "__main__":
    main()
