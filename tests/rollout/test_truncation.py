"""Which tokens are sampled from, beside transformers' own, and where texts stop."""

import random
from dataclasses import replace

import pytest
import torch
from tiny import lively_policy, tiny_encoder, words
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from instructrl.ops.logit_settings import LogitSettings
from instructrl.rollout.generate import Sampling, sample_rollout, sample_texts
from instructrl.rollout.settings import Truncation
from instructrl.rollout.truncation import allowed_tokens, cut_at

PLAIN = LogitSettings()
ENCODER = tiny_encoder(max_response_tokens=8)
POLICY = lively_policy(ENCODER)
SAMPLING = Sampling(seed=3, max_response_tokens=8, batch_size=4)


def test_by_hand():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()

    def kept(**settings):
        return allowed_tokens(logits, 1.0, PLAIN, Truncation(**settings))[0].nonzero().flatten().tolist()

    assert kept(top_k=2) == [0, 1]
    assert kept(top_k=9) == [0, 1, 2, 3]
    assert kept(top_p=0.39) == [0]
    assert kept(top_p=0.65) == [0, 1]
    assert kept(top_p=0.75) == [0, 1, 2]
    assert kept(min_p=0.4) == [0, 1, 2]
    # 0.4 of 0.7 is 0.571: the first two have all of it, the first alone half.
    assert kept(top_k=2, top_p=0.5) == [0]
    assert kept(top_k=2, top_p=0.6) == [0, 1]
    assert kept(top_p=1e-9) == [0]


@pytest.mark.parametrize(
    "settings", [{"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 20, "top_p": 0.9, "min_p": 0.05}]
)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_it_is_transformers_choice(settings, temperature):
    logits = 2.0 * torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    kinds = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    warpers += [kinds[name](value) for name, value in settings.items()]
    expected = warpers(torch.zeros(200, 1, dtype=torch.int64), logits) > -torch.inf
    assert torch.equal(allowed_tokens(logits, temperature, PLAIN, Truncation(**settings)), expected)


def test_the_cap_comes_first():
    logits = torch.tensor([[3.0, 2.0, 0.0]])
    assert allowed_tokens(logits, 1.0, PLAIN, Truncation(min_p=0.4))[0].tolist() == [True, False, False]
    capped = LogitSettings(softcap=1.0)  # 0.995, 0.964 and 0
    assert allowed_tokens(logits, 1.0, capped, Truncation(min_p=0.4))[0].tolist() == [True, True, False]


def prompts():
    rng = random.Random(2)
    return [words(rng, 1, 12) for _ in range(9)]


def test_a_temperature_of_zero_is_the_likeliest_token():
    greedy = sample_rollout(POLICY, ENCODER, prompts(), replace(SAMPLING, temperature=0.0)).sequences
    one = replace(SAMPLING, truncation=Truncation(top_k=1))
    assert torch.equal(sample_rollout(POLICY, ENCODER, prompts(), one).sequences.response, greedy.response)
    row = greedy.select(torch.tensor([0])).trim()
    logits = POLICY.lm(row.tokens).logits[0, row.prompt.shape[1] - 1 : -1]
    assert logits.argmax(-1).tolist() == row.response[0].tolist()


def test_samples_are_among_those_allowed_and_the_same_in_any_batch():
    truncation = Truncation(top_p=0.5)
    sampling = replace(SAMPLING, truncation=truncation)
    found = sample_rollout(POLICY, ENCODER, prompts(), sampling).sequences
    again = sample_rollout(POLICY, ENCODER, prompts(), replace(sampling, batch_size=1)).sequences
    assert torch.equal(found.response, again.response)
    assert not torch.equal(found.response, sample_rollout(POLICY, ENCODER, prompts(), SAMPLING).sequences.response)
    for i in range(len(found.prompt)):
        row = found.select(torch.tensor([i])).trim()
        logits = POLICY.lm(row.tokens).logits[0, row.prompt.shape[1] - 1 : -1]
        allowed = allowed_tokens(logits, 1.0, PLAIN, truncation)
        assert bool(allowed[torch.arange(len(logits)), row.response[0]].all())


def test_a_response_ends_where_it_says_a_stop_string():
    whole = sample_texts(POLICY, ENCODER, prompts(), SAMPLING)
    stop = (whole.texts[0].split()[2],)
    found = sample_texts(POLICY, ENCODER, prompts(), replace(SAMPLING, truncation=Truncation(stop=stop)))
    says = [stop[0] in text for text in whole.texts]
    assert any(says)
    assert not all(says)
    assert found.texts == [text.partition(stop[0])[0] for text in whole.texts]
    assert found.finished == [said or ended for said, ended in zip(says, whole.finished, strict=True)]


def test_a_text_is_cut_at_the_first_of_several():
    assert cut_at("one two three", ("three", "two")) == "one "
    assert cut_at("one", ("two",)) == "one"
    assert cut_at("stop", ("stop",)) == ""
