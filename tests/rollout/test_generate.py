"""Sampling: what a response is, and what may not change it."""

import random
from dataclasses import replace

import pytest
import torch
from tiny import lively_policy, tiny_encoder, words

from instructrl.models.policy import Policy
from instructrl.rollout.generate import Sampling, generate, sample_rollout, sample_texts
from instructrl.rollout.randomness import keyed_uniforms
from instructrl.types import Rollout

LIMIT = 8
SAMPLING = Sampling(seed=11, max_response_tokens=LIMIT, batch_size=5)


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder(max_response_tokens=LIMIT)


@pytest.fixture(scope="module")
def policy(encoder) -> Policy:
    return lively_policy(encoder)


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    rng = random.Random(2)
    return [words(rng, 1, 12) for _ in range(15)]


@pytest.fixture(scope="module")
def rollout(policy, encoder, prompts) -> Rollout:
    return sample_rollout(policy, encoder, prompts, SAMPLING)


def responses(rollout: Rollout) -> list[list[int]]:
    sequences = rollout.sequences
    return [row[mask].tolist() for row, mask in zip(sequences.response, sequences.response_mask, strict=True)]


@torch.no_grad()
def naive(policy: Policy, prompt: list[int], uniforms: list[float], end: int, temperature: float = 1.0) -> list[int]:
    """One row, the whole forward pass again for every token, probabilities added up in float64."""
    response: list[int] = []
    for uniform in uniforms:
        logits = policy.lm(torch.tensor([prompt + response])).logits[0, -1].double() / temperature
        cumulative = torch.softmax(logits, dim=0).cumsum(0)
        response.append(int((cumulative <= uniform).sum()))
        if response[-1] == end:
            break
    return response


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_are_those_of_a_loop_without_cache(policy, encoder, prompts, temperature):
    sampling = replace(SAMPLING, temperature=temperature)
    found = responses(sample_rollout(policy, encoder, prompts, sampling, first_episode=40))
    uniforms = keyed_uniforms(SAMPLING.seed, torch.arange(40, 40 + len(prompts)), LIMIT).tolist()
    expected = [
        naive(policy, encoder.prompt(prompt), uniform, encoder.end_of_text, temperature)
        for prompt, uniform in zip(prompts, uniforms, strict=True)
    ]
    assert found == expected


def test_the_fixture_has_rows_of_both_kinds(rollout):
    assert 0 < int(rollout.finished.sum()) < len(rollout.finished)
    assert len({len(row) for row in responses(rollout)}) > 3


def test_end_of_text_belongs_to_the_response_and_ends_it(rollout, encoder):
    sequences, end = rollout.sequences, encoder.end_of_text
    lengths = sequences.response_mask.sum(dim=1)
    for row, finished in zip(responses(rollout), rollout.finished.tolist(), strict=True):
        assert end not in row[:-1]
        assert (row[-1] == end) == finished
        assert finished or len(row) == LIMIT
    assert sequences.response.shape[1] == int(lengths.max())
    positions = torch.arange(sequences.response.shape[1])
    assert torch.equal(sequences.response_mask, positions < lengths[:, None])


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_the_batch_size_changes_no_sample(policy, encoder, prompts, rollout, batch_size):
    found = sample_rollout(policy, encoder, prompts, replace(SAMPLING, batch_size=batch_size))
    assert responses(found) == responses(rollout)
    assert torch.equal(found.finished, rollout.finished)
    assert torch.equal(found.sequences.prompt, rollout.sequences.prompt)
    assert torch.equal(found.sequences.prompt_mask, rollout.sequences.prompt_mask)


def test_the_order_of_the_rows_changes_no_sample(policy, encoder, prompts, rollout):
    prompt, mask = encoder.prompts(prompts)
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0))
    found = generate(policy, prompt[order], mask[order], order, encoder, SAMPLING)
    assert responses(found) == [responses(rollout)[i] for i in order]
    assert torch.equal(found.finished, rollout.finished[order])


def test_a_row_alone_is_the_row_among_others(policy, encoder, prompts, rollout):
    for i in (0, 9, 14):
        alone = sample_rollout(policy, encoder, prompts[i : i + 1], SAMPLING, first_episode=i)
        assert responses(alone) == responses(rollout)[i : i + 1]


def test_prompts_come_back_in_their_order(encoder, prompts, rollout):
    sequences = rollout.sequences
    found = [row[mask].tolist() for row, mask in zip(sequences.prompt, sequences.prompt_mask, strict=True)]
    assert found == [encoder.prompt(prompt) for prompt in prompts]


def test_a_shorter_limit_cuts_the_same_responses(policy, encoder, prompts, rollout):
    found = sample_rollout(policy, encoder, prompts, replace(SAMPLING, max_response_tokens=3))
    full = responses(rollout)
    assert responses(found) == [row[:3] for row in full]
    assert found.finished.tolist() == [row[:3][-1] == encoder.end_of_text for row in full]


def test_seed_and_episode_change_the_samples(policy, encoder, prompts, rollout):
    other_seed = sample_rollout(policy, encoder, prompts, replace(SAMPLING, seed=12))
    other_episodes = sample_rollout(policy, encoder, prompts, SAMPLING, first_episode=1000)
    assert responses(other_seed) != responses(rollout)
    assert responses(other_episodes) != responses(rollout)
    twice = responses(sample_rollout(policy, encoder, prompts[:1] * 8, SAMPLING))
    assert len(set(map(tuple, twice))) > 1


def test_a_low_temperature_takes_the_likeliest_token(policy, encoder, prompts):
    found = responses(sample_rollout(policy, encoder, prompts[:6], replace(SAMPLING, temperature=1e-4)))
    for prompt, row in zip(prompts, found, strict=False):
        ids = torch.tensor([encoder.prompt(prompt) + row])
        best = policy.lm(ids).logits[0, -len(row) - 1 : -1].argmax(dim=1)
        assert row == best.tolist()


def test_texts_leave_out_the_end_of_text(policy, encoder, prompts, rollout):
    samples = sample_texts(policy, encoder, prompts, SAMPLING)
    ids = [[i for i in row if i != encoder.end_of_text] for row in responses(rollout)]
    assert [encoder.response(text, finished=False) for text in samples.texts] == ids
    assert samples.finished == rollout.finished.tolist()


def test_sampling_leaves_torchs_global_generator_alone(policy, encoder, prompts):
    before = torch.random.get_rng_state()
    sample_rollout(policy, encoder, prompts[:2], SAMPLING)
    assert torch.equal(torch.random.get_rng_state(), before)
