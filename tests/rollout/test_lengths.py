"""Rows of similar length share a pass, without the columns that nobody needs."""

import torch
from tiny import tiny_encoder, tiny_policy

from instructrl.rollout.scoring import in_batches
from instructrl.types import Experience

ENCODER = tiny_encoder()
EPS = torch.finfo(torch.float32).eps
PROMPTS = ["w1 w2 w3 w4 w5 w6", "w1", "w2 w3", "w4 w5 w6 w7"]
RESPONSES = ["w1", "w2 w3 w4 w5", "", "w6 w7"]


def sequences():
    return ENCODER.pairs(PROMPTS, RESPONSES)


def test_rows_by_length_are_all_rows_once_and_the_shortest_first():
    rows = sequences().rows_by_length()
    lengths = sequences().mask.sum(dim=1)[rows]
    assert sorted(rows.tolist()) == [0, 1, 2, 3]
    assert lengths.tolist() == sorted(lengths.tolist())


def test_trimming_drops_padding_and_nothing_else():
    part = sequences().select(torch.tensor([1, 2]))
    trimmed = part.trim()
    assert trimmed.prompt.shape == (2, 2)
    assert trimmed.response.shape == (2, 5)
    for name in ("prompt", "response"):
        mask, kept = getattr(part, f"{name}_mask"), getattr(trimmed, f"{name}_mask")
        assert torch.equal(getattr(part, name)[mask], getattr(trimmed, name)[kept])


def test_an_empty_side_keeps_a_column():
    nothing = sequences().select(torch.tensor([2]))
    assert nothing.trim().response.shape == (1, 1)


def test_experience_is_trimmed_with_its_sequences():
    whole = sequences()
    values = {name: torch.randn(4, 5) for name in ("logprobs", "ref_logprobs", "values", "advantages", "returns")}
    experience = Experience(sequences=whole, scores=torch.randn(4), **values)
    rows = torch.tensor([0, 2])
    trimmed = experience.select(rows).trim()
    assert trimmed.sequences.response.shape == (2, 2)
    for name, value in values.items():
        assert torch.equal(getattr(trimmed, name), value[rows, :2])
    assert torch.equal(trimmed.scores, experience.scores[rows])


@torch.no_grad()
def test_results_come_back_in_the_order_of_the_rows_and_as_wide_as_the_responses():
    policy, shapes = tiny_policy(ENCODER), []

    def logprobs(part):
        shapes.append(part.tokens.shape)
        return policy(part)

    whole = policy(sequences())
    found = in_batches(logprobs, sequences(), 2)
    assert found.shape == whole.shape
    assert float((found - whole).abs().max()) <= 50 * EPS * float(whole.abs().max())
    # Two and five tokens of the second and third row side by side, six and three of the others.
    assert shapes == [(2, 2 + 5), (2, 6 + 3)]
    counts = in_batches(lambda part: part.mask.sum(dim=1), sequences(), 3)
    assert torch.equal(counts, sequences().mask.sum(dim=1))
