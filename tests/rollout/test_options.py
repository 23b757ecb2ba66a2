"""Likelihoods of given answers: those of separate sequences, whatever is read together."""

import random

import pytest
import torch
from chats import BACKENDS
from models.architectures import make_lm
from tiny import lively_policy, tiny_encoder, words
from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import encode_text
from instructrl.models.policy import Policy
from instructrl.rollout.options import option_logprobs, option_tokens

# One for each way in which prompts are shared, and for each kind of logits.
FAMILIES = ("gpt2", "llama", "mistral", "gemma2", "gemma3_text", "cohere", "bloom", "opt", "falcon", "gpt_neox", "mpt")


def asked(count: int, seed: int = 0) -> tuple[list[str], list[tuple[str, ...]]]:
    rng = random.Random(seed)
    prompts = [words(rng) if i else "" for i in range(count)]
    return prompts, [tuple(words(rng) for _ in range(rng.randint(1, 5))) for _ in prompts]


@torch.no_grad()
def one_by_one(policy: Policy, encoder, prompt: str, option: str) -> float:
    """By the network's own logits in float64, one sequence at a time."""
    start, answer = encoder.prompt(prompt), encoder.response(option, prompt=prompt, finished=False)
    logits = policy.lm(torch.tensor([[*start, *answer]])).logits[0].double()[:, : policy.num_ids]
    logprobs = logits.log_softmax(-1)
    return sum(float(logprobs[len(start) - 1 + t, token]) for t, token in enumerate(answer))


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_separate_sequences_for_every_kind_of_network(family):
    encoder = tiny_encoder()
    policy = Policy(make_lm(family), len(encoder.tokenizer)).eval()
    prompts, options = asked(12)
    found = option_logprobs(policy, encoder, prompts, options)
    for prompt, texts, row in zip(prompts, options, found, strict=True):
        wanted = [one_by_one(policy, encoder, prompt, text) for text in texts]
        assert row.totals == pytest.approx(wanted, abs=2e-5 * max(map(abs, wanted)))
        assert row.num_tokens == tuple(len(text.split()) for text in texts)


def test_options_of_the_same_tokens_are_exactly_as_likely_and_no_option_sees_another():
    encoder = tiny_encoder()
    policy = lively_policy(encoder)
    (pair,) = option_logprobs(policy, encoder, [""], [("w1 w2 w3", "w1 w2 w3")])
    assert pair.totals[0] == pair.totals[1] < 0
    (alone,) = option_logprobs(policy, encoder, ["w4"], [("w1 w2 w3",)])
    (beside,) = option_logprobs(policy, encoder, ["w4"], [("w7 w8", "w1 w2 w3", "w1")])
    assert beside.totals[1] == pytest.approx(alone.totals[0], rel=1e-5)


def test_an_option_without_tokens_has_nothing_to_be_likely_of():
    encoder = tiny_encoder()
    policy = lively_policy(encoder)
    found = option_logprobs(policy, encoder, ["w4 w5", "w6"], [("", "w1"), ("w2", "")])
    assert [row.num_tokens for row in found] == [(0, 1), (1, 0)]
    assert found[0].totals[0] == found[1].totals[1] == found[0].means[0] == 0
    assert found[0].totals[1] == pytest.approx(one_by_one(policy, encoder, "w4 w5", "w1"), rel=1e-5)


def test_nothing_asked_is_nothing_found():
    encoder = tiny_encoder()
    assert option_logprobs(lively_policy(encoder), encoder, [], []) == []


def _space_before_each_text() -> Tokenizer:
    """As those of the first Llamas: a normaliser puts it there."""
    backend = BACKENDS["replaced spaces"]()
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return backend


@pytest.mark.parametrize("make", [*BACKENDS.values(), _space_before_each_text])
@pytest.mark.parametrize(
    ("prompt", "option"),
    [("Name:", " blue"), ("Name:\n", "The sky is blue"), ("", "The sky"), (98 * "sky " + "is:", " red"), ("a", "b")],
)
def test_an_option_has_no_tokens_that_the_whole_text_would_not_have(make, prompt, option):
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=make(), eos_token="</s>"), Limits())
    start, whole = (encode_text(encoder.tokenizer, text) for text in (prompt, prompt + option))
    assert whole[: len(start)] == start  # no token goes from one into the other
    assert option_tokens(encoder, prompt, option) == whole[len(start) :]


def test_an_option_that_shares_a_token_with_its_prompt_has_those_of_itself():
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=BACKENDS["byte level"](), eos_token="</s>"), Limits())
    alone = encode_text(encoder.tokenizer, "y")
    assert encode_text(encoder.tokenizer, "The sky") != encode_text(encoder.tokenizer, "The sk") + alone
    assert option_tokens(encoder, "The sk", "y") == alone
