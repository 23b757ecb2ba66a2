"""The task that every trainer gets: one folder with models, tokenizer and prompts.

Imports nothing of ours, so that it runs in a peer's own environment.
"""

import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

END_OF_TEXT, PADDING = "<|endoftext|>", "<|padding|>"
SFT_STEPS = 4
"""Optimiser steps of a turn of SFT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What both sides are given. Lengths in tokens; the vocabulary is GPT-2's in size.

    mean_response_tokens: None: no response ends before the limit; else the end of text is drawn with the probability
    that gives this mean. device: "cpu" or "cuda". bfloat16: matrix products by autocast, weights stay float32.
    """

    layers: int = 4
    width: int = 256
    heads: int = 4
    vocabulary: int = 50257
    prompt_tokens: int = 64
    response_tokens: int = 48
    mean_response_tokens: float | None = None
    batch: int = 64
    minibatch: int = 16
    epochs: int = 4
    learning_rate: float = 3e-6
    kl_coef: float = 0.05
    num_prompts: int = 512
    # standard deviation of the weights of the reward model's head
    score_scale: float = 0.02
    device: str = "cpu"
    bfloat16: bool = False


def write(task: Task, folder: Path) -> None:
    """Models, tokenizer and prompts of the task."""
    torch.manual_seed(0)
    end, padding = task.vocabulary - 1, task.vocabulary - 2
    words = {f"w{i}": i for i in range(task.vocabulary - 2)} | {PADDING: padding, END_OF_TEXT: end}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=PADDING))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {"eos_token": END_OF_TEXT, "pad_token": PADDING, "padding_side": "left"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder / "policy")
    sizes = {"n_layer": task.layers, "n_embd": task.width, "n_head": task.heads, "vocab_size": task.vocabulary}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"), 0.0)
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": padding}
    context = task.prompt_tokens + task.response_tokens
    config = GPT2Config(**sizes, n_positions=context, **dropout, **ids, num_labels=1)
    policy = GPT2LMHeadModel(config)
    if task.mean_response_tokens is not None:
        _end_at_random(policy, task)
    policy.save_pretrained(folder / "policy")
    reward_model = GPT2ForSequenceClassification(config)
    torch.nn.init.normal_(reward_model.score.weight, std=task.score_scale)
    reward_model.save_pretrained(folder / "reward_model")
    prompts = _texts(task, random.Random(0), [task.prompt_tokens] * task.num_prompts)
    (folder / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    (folder / "task.json").write_text(json.dumps(asdict(task)), encoding="utf-8")


def read(folder: Path) -> tuple[Task, list[str]]:
    """The task and its prompts."""
    task = Task(**json.loads((folder / "task.json").read_text(encoding="utf-8")))
    return task, json.loads((folder / "prompts.json").read_text(encoding="utf-8"))


def _texts(task: Task, rng: random.Random, lengths: list[int]) -> list[str]:
    return [" ".join(f"w{rng.randrange(task.vocabulary - 2)}" for _ in range(length)) for length in lengths]


def completions(task: Task) -> list[str]:
    """A demonstration for each prompt: all of full length with the end of text, or of lengths drawn evenly."""
    rng, longest = random.Random(1), task.response_tokens - 1
    drawn = task.mean_response_tokens is not None
    return _texts(task, rng, [rng.randint(1, longest) if drawn else longest for _ in range(task.num_prompts)])


def asked(steps: Mapping[str, Callable[..., Callable[[], Any]]]) -> Callable[[], Any]:
    """What a worker was started for: `ppo|sft FOLDER [SEED]`."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    step, folder, seed = [*sys.argv[1:], "0"][:3]
    return steps[step](*read(Path(folder)), Path(folder), int(seed))


@torch.no_grad()
def _end_at_random(policy: GPT2LMHeadModel, task: Task) -> None:
    """Give the end of text a logit that hardly depends on what was read: along the final layer norm's bias."""
    odds, embedding, last = _ending_probability(task), policy.transformer.wte.weight, policy.transformer.ln_f
    embedding[:, 0], last.weight[0], last.bias[0] = 0.0, 0.0, 10.0
    # All other logits have the variance of the embedding times the width.
    others = math.log(task.vocabulary - 1) + 0.5 * float(embedding.var()) * task.width
    embedding[-1] = 0.0
    embedding[-1, 0] = (others + math.log(odds / (1 - odds))) / 10.0


def _ending_probability(task: Task) -> float:
    """p with `(1 - (1 - p)^limit) / p` = the mean of a geometric length that is cut at the limit."""
    low, high = 1e-6, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = (1 - (1 - middle) ** task.response_tokens) / middle
        low, high = (low, middle) if mean < task.mean_response_tokens else (middle, high)
    return low


class Clock:
    """Seconds by phase; `start` ends the phase before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._since = "", 0.0

    def start(self, name: str) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._name:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = name, now

    def take(self) -> dict[str, float]:
        """End the phase that is running; all phases since the last call."""
        self.start("")
        found, self.seconds = self.seconds, {}
        return found
