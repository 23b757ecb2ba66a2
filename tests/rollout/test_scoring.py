"""Likelihoods and scores of many texts: their values, and that their order comes back."""

import random

import pytest
import torch
from tiny import blocks, comparisons, demonstrations, tiny_encoder, tiny_policy, tiny_reward_model, words

from instructrl.data.encoding import blocks_as_sequences
from instructrl.rollout.scoring import comparison_scores, in_batches, mean_loss, score_texts

EPS = torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder()


@pytest.fixture(scope="module")
def policy(encoder):
    return tiny_policy(encoder)


@pytest.fixture(scope="module")
def reward_model(policy):
    reward_model = tiny_reward_model(policy, seed=1)
    reward_model.bias.fill_(-0.5)
    return reward_model


def assert_close(found, expected) -> None:
    """Equal up to the order of some hundred additions."""
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    assert float((found - expected).abs().max()) <= 200 * EPS * max(1.0, float(expected.abs().max()))


def test_batches_are_joined_in_order():
    parts = blocks_as_sequences(blocks(7))
    sizes = []

    def total(part):
        sizes.append(part.num_rows)
        return part.response.sum(dim=1)

    assert torch.equal(in_batches(total, parts, 3), parts.response.sum(dim=1))
    assert sizes == [3, 3, 1]


@torch.no_grad()
def test_mean_loss_is_that_of_the_logits(policy, encoder):
    """Per token over all parts together, not per part; transformers' own loss over the same blocks."""
    rows = demonstrations(5)
    data, text = blocks(4), encoder.demonstrations(rows)
    total, count = 4 * 16 * policy.lm(input_ids=data, labels=data).loss.double(), 4 * 16
    for row in rows:
        prompt, response = encoder.prompt(row.prompt), encoder.response(row.completion)
        logprobs = torch.log_softmax(policy.lm(torch.tensor([prompt + response])).logits[0].double(), dim=-1)
        total -= sum(logprobs[len(prompt) - 1 + t, token] for t, token in enumerate(response))
        count += len(response)
    assert_close(mean_loss(policy, [blocks_as_sequences(data), text], batch_size=3), total / count)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 4, 128])
def test_scores_come_back_in_order(reward_model, encoder, batch_size):
    rng = random.Random(0)
    prompts, texts = [words(rng) for _ in range(13)], [words(rng) for _ in range(13)]
    finished = [rng.random() < 0.5 for _ in range(13)]
    rows = zip(prompts, texts, finished, strict=True)
    expected = torch.cat([reward_model(encoder.pairs([p], [t], [f])) for p, t, f in rows])
    assert_close(score_texts(reward_model, encoder, prompts, texts, finished, batch_size), expected)
    assert float(expected.std()) > 1000 * EPS


@torch.no_grad()
def test_the_end_of_text_is_scored_only_where_it_was_said(reward_model, encoder):
    ended, cut = (float(score_texts(reward_model, encoder, ["w1"], ["w2 w3"], [flag])) for flag in (True, False))
    assert ended == float(score_texts(reward_model, encoder, ["w1"], ["w2 w3"]))
    assert ended != cut


def test_comparison_scores_are_grouped_by_prompt(reward_model, encoder):
    rows = comparisons(9)
    found = comparison_scores(reward_model, encoder, rows)
    assert [len(scores) for scores in found] == [len(row.completions) for row in rows]
    for row, scores in zip(rows, found, strict=True):
        alone = score_texts(reward_model, encoder, [row.prompt] * len(row.completions), row.completions)
        assert_close(scores, alone)
