"""Sampled tokens against the cumulative distribution, and the corners of it."""

import math

import op_definitions as definitions
import pytest
import torch
from op_backends import on, place_id, rounds

from instructrl import ops
from instructrl.ops import sampling
from instructrl.ops.cases import CASES

CASES = [case for case in CASES if case.op == "sampling.sample_tokens" and not case.large]


@pytest.mark.parametrize(("case", "backend", "device", "dtype"), rounds(CASES), ids=place_id)
def test_token_is_the_first_whose_cumulative_probability_exceeds_the_uniform(case, backend, device, dtype):
    arguments = case.make(dtype)
    with ops.use_backend(backend):
        tokens = sampling.sample_tokens(**on(device, arguments)).cpu()
    uniforms, logits = arguments.pop("uniforms"), arguments.pop("logits")
    probabilities = definitions.probabilities(logits.double(), **arguments)
    exact = probabilities.cumsum(1)
    # How far a float32 cumulative distribution is off decides which uniforms may fall to a neighbour.
    rounded = definitions.probabilities(logits.float(), **arguments).cumsum(1)
    slack = (rounded - exact).abs().amax(1) if exact.numel() else exact.sum(1)
    slack = 2 * slack + torch.finfo(torch.float32).eps
    assert tokens.dtype == torch.int64
    assert tokens.shape == uniforms.shape
    for row, token in enumerate(tokens.tolist()):
        before, after = (float(exact[row, token - 1]) if token else 0.0), float(exact[row, token])
        assert before - slack[row] <= float(uniforms[row]) < after + slack[row]
        assert probabilities[row, token] > 0


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_uniforms_at_both_ends_never_leave_the_support(dtype):
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf]])
    ends = torch.tensor([0.0, 1 - torch.finfo(dtype).eps / 2], dtype=dtype)
    assert sampling.sample_tokens(logits.expand(2, 5), ends).tolist() == [1, 3]


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("top", [1 - 2**-24, 1 - 2**-53])
def test_rows_whose_probabilities_add_up_to_less_than_the_uniform(top):
    logits = torch.randn(50, 997, generator=torch.Generator().manual_seed(0))
    logits[:, 900:] = -math.inf
    tokens = sampling.sample_tokens(logits, torch.full((50,), top, dtype=torch.float64))
    assert int(tokens.max()) < 900
    assert int(tokens.min()) > 800


@pytest.mark.usefixtures("each_backend")
def test_a_row_of_nan_stays_inside_the_vocabulary():
    tokens = sampling.sample_tokens(torch.full((2, 5), math.nan), torch.tensor([0.0, 0.9]))
    assert bool(((tokens >= 0) & (tokens < 5)).all())


@pytest.mark.usefixtures("each_backend")
def test_frequencies_follow_the_probabilities():
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3])
    uniforms = (torch.arange(100) + 0.5) / 100
    tokens = sampling.sample_tokens(probabilities.log().expand(100, 4), uniforms)
    assert torch.bincount(tokens, minlength=4).tolist() == [10, 0, 60, 30]


@pytest.mark.usefixtures("each_backend")
def test_a_row_does_not_depend_on_the_others():
    generator = torch.Generator().manual_seed(0)
    logits, uniforms = torch.randn(9, 57, generator=generator), torch.rand(9, generator=generator)
    together = sampling.sample_tokens(logits, uniforms, temperature=0.5)
    alone = [int(sampling.sample_tokens(logits[i : i + 1], uniforms[i : i + 1], temperature=0.5)) for i in range(9)]
    assert together.tolist() == alone
