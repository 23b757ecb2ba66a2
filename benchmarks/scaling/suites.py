"""Items a second of a suite beside the sampling that it stands on, and what shared prompts and examples save.

    python -m benchmarks.scaling.suites [--items 1000] [--rounds 3] [--out FILE]

A GPT-2 of 2 layers and 128 wide with random weights; prompts of 64 tokens, answers of 32, two threads. Four things take
turns: a suite of written answers; the same prompts by `sample_texts` alone, which is the rate that the suite should
have; the same again with 320 examples' tokens before each prompt; and the likelihoods of four options of 16 tokens.
"""

import random
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.core.tables import command, markdown, spread, write_json
from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import word_tokenizer
from instructrl.evaluation.suites.protocol import Item, Measure, Task
from instructrl.models.policy import gpt2_policy
from instructrl.rollout.generate import Sampling, sample_texts
from instructrl.runs.suites import ReadSuite, put_through

THREADS, WORDS, PROMPT, ANSWER, EXAMPLES = 2, 5000, 64, 32, 320


def texts(count: int, words: int, seed: int, before: str = "") -> list[str]:
    rng = random.Random(seed)
    return [before + " ".join(f"w{rng.randrange(WORDS)}" for _ in range(words)) for _ in range(count)]


def counted(items, answers) -> list[Measure]:
    return [Measure(metric="answers", value=len(answers), low=None, high=None, num_items=len(items))]


def task(contexts: list[str], options: list[tuple[str, ...]] | None = None) -> Task:
    given = options or [()] * len(contexts)
    items = tuple(Item(context=text, options=row) for text, row in zip(contexts, given, strict=True))
    return Task(suite="words", items=items, measures=counted, max_tokens=ANSWER, stop=())


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    given = command(__doc__, items=1000, rounds=3, out=Path)
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    encoder = Encoder(word_tokenizer([f"w{i}" for i in range(WORDS)]), Limits())
    shape = {"vocabulary": len(encoder.tokenizer), "context": 1024, "layers": 2, "width": 128, "heads": 2}
    policy = gpt2_policy(**shape, end_of_text=encoder.end_of_text).eval()
    contexts = texts(given.items, PROMPT, 0)
    options = [tuple(texts(4, 16, i + 1)) for i in range(given.items)]
    (examples,) = texts(1, EXAMPLES, -1)
    sampling = Sampling(seed=0, temperature=0, max_response_tokens=ANSWER)

    def through(asked: Task) -> float:
        with tempfile.TemporaryDirectory() as folder:
            return seconds(lambda: put_through(policy, encoder, [ReadSuite.own("words", asked)], folder))

    forms = {
        "suite, written answers": lambda: through(task(contexts)),
        "the same by sample_texts": lambda: seconds(lambda: sample_texts(policy, encoder, contexts, sampling)),
        "suite, examples before each prompt": lambda: through(task([f"{examples} {text}" for text in contexts])),
        "suite, likelihoods of four options": lambda: through(task(contexts, options)),
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(given.rounds):
        for name, form in forms.items():
            times[name].append(form())
    rows = [
        [name, spread(found), f"{given.items / sorted(found)[len(found) // 2]:.0f}"] for name, found in times.items()
    ]
    print(markdown(["", "seconds", "items a second"], rows))
    if given.out is not None:
        write_json(given.out, {"items": given.items, "threads": THREADS, "seconds": times})


if __name__ == "__main__":
    main()
