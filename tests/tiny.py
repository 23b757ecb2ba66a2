"""Networks, texts and tokenizers small enough for every test."""

import random

import torch

from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import word_tokenizer
from instructrl.models.policy import Policy, gpt2_policy
from instructrl.models.scoring import RewardModel
from instructrl.types import Comparison, Demonstration

NUM_WORDS = 30
BLOCK = 17


def tiny_encoder(max_prompt_tokens: int = 12, max_response_tokens: int = 8) -> Encoder:
    tokenizer = word_tokenizer([f"w{i}" for i in range(NUM_WORDS)])
    limits = Limits(max_prompt_tokens=max_prompt_tokens, max_response_tokens=max_response_tokens)
    return Encoder(tokenizer, limits)


def tiny_policy(encoder: Encoder, seed: int = 0, unnamed: int = 0) -> Policy:
    """unnamed: embeddings that no token has."""
    torch.manual_seed(seed)
    ids = len(encoder.tokenizer)
    size = ids + unnamed
    policy = gpt2_policy(vocabulary=size, context=32, layers=2, width=32, heads=2, end_of_text=encoder.end_of_text)
    return Policy(policy.lm, ids).eval()


def tiny_reward_model(policy: Policy, seed: int = 0) -> RewardModel:
    return RewardModel.from_policy(policy, torch.Generator().manual_seed(seed)).eval()


def words(rng: random.Random, low: int = 1, high: int = 6) -> str:
    return " ".join(f"w{rng.randrange(NUM_WORDS)}" for _ in range(rng.randint(low, high)))


def demonstrations(count: int, seed: int = 0) -> list[Demonstration]:
    rng = random.Random(seed)
    return [Demonstration(prompt=words(rng), completion=words(rng)) for _ in range(count)]


def comparisons(count: int, seed: int = 0) -> list[Comparison]:
    """Rankings with ties, K from 2 to 5, in which the completion with more "w1" wins."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        completions = tuple(words(rng) + " w1" * rng.randint(0, 2) for _ in range(rng.randint(2, 5)))
        ranks = [-text.split().count("w1") for text in completions]
        rows.append(
            Comparison(prompt=words(rng), completions=completions, preferred=Comparison.pairs_from_ranks(ranks))
        )
    return rows


def blocks(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, NUM_WORDS, (count, BLOCK), generator=torch.Generator().manual_seed(seed))


def lively_policy(encoder: Encoder, seed: int = 0, unnamed: int = 0) -> Policy:
    """A policy whose distribution depends on what it has read; an untrained one is nearly uniform."""
    policy = tiny_policy(encoder, seed, unnamed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return policy
