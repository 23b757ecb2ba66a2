"""Scale and soft cap of logits, ids that are not allowed, and statistics: numbers worked out by hand, and limits."""

import math

import pytest
import torch
from op_accuracy import assert_no_less_accurate

from instructrl.ops import candidates, likelihood, logprobs, sampling, statistics
from instructrl.ops.logit_settings import LogitSettings

pytestmark = pytest.mark.usefixtures("each_backend")

HALF = math.atanh(0.5)


def test_a_capped_row_by_hand():
    # z = cap * tanh(atanh(1/2)) = cap / 2 = log 3 beside 0: probabilities 3/4 and 1/4. By the chain rule the slopes are
    # those of the softmax times scale * (1 - tanh^2): 3/4 for the first logit, 1 for the second.
    cap, scale = 2 * math.log(3), 0.5
    settings = LogitSettings(scale=scale, softcap=cap)
    logits = torch.tensor([[cap * HALF / scale, 0.0]], dtype=torch.float64).float().requires_grad_()
    tokens = torch.tensor([0])
    found, entropy = logprobs.token_logprobs_and_entropy(logits, tokens, logit_settings=settings)
    torch.testing.assert_close(found, torch.tensor([math.log(3 / 4)]))
    torch.testing.assert_close(entropy, torch.tensor([math.log(4) - 0.75 * math.log(3)]))
    expected = torch.tensor([[1 / 4 * 3 / 4 * scale, -1 / 4 * scale]])
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], expected)


def test_a_cap_that_nothing_reaches_and_a_scale_of_the_temperature():
    g = torch.Generator().manual_seed(0)
    logits, tokens = torch.randn(5, 40, generator=g), torch.randint(0, 40, (5,), generator=g)
    plain = logprobs.token_logprobs(logits, tokens)
    truth = torch.log_softmax(logits.double(), 1).gather(1, tokens.unsqueeze(1)).squeeze(1)
    high = logprobs.token_logprobs(logits, tokens, logit_settings=LogitSettings(softcap=1e5))
    # At z of 3 the cap takes 1e-9 off, which float32 does not see.
    yardstick = torch.log_softmax(1e5 * torch.tanh(logits / 1e5), 1).gather(1, tokens.unsqueeze(1)).squeeze(1)
    assert_no_less_accurate(high, yardstick, truth)
    halved = logprobs.token_logprobs(logits, tokens, logit_settings=LogitSettings(scale=0.5))
    torch.testing.assert_close(halved, logprobs.token_logprobs(logits, tokens, temperature=2.0))
    as_they_are = logprobs.token_logprobs(logits, tokens, logit_settings=LogitSettings())
    assert torch.equal(as_they_are, plain)


def test_a_chosen_id_of_minus_infinity_has_no_gradient_through_a_cap():
    logits = torch.tensor([[0.5, -math.inf, 1.0]], requires_grad=True)
    found = logprobs.token_logprobs(logits, torch.tensor([1]), logit_settings=LogitSettings(softcap=2.0))
    assert found.tolist() == [-math.inf]
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    # d z / d logits = 1 - (z / cap)^2, and -softmax(z) of the two that are possible.
    half = (2.0 * torch.tanh(torch.tensor([0.5, 1.0], dtype=torch.float64) / 2.0)) / 2.0
    expected = -torch.softmax(2.0 * half, 0) * (1.0 - half.square())
    torch.testing.assert_close(
        gradient, torch.stack([expected[0], torch.zeros_like(half[0]), expected[1]])[None].float()
    )


@pytest.mark.parametrize("settings", [LogitSettings(), LogitSettings(softcap=2.0)], ids=["plain", "capped"])
def test_what_is_not_allowed_is_as_if_it_were_not_there(settings):
    logits = torch.tensor([[0.3, 9.0, -0.5, 1.0], [2.0, -1.0, 0.1, 0.4]], requires_grad=True)
    allowed, tokens = torch.tensor([True, False, True, True]), torch.tensor([0, 3])
    found = logprobs.token_logprobs_and_entropy(logits, tokens, allowed=allowed, logit_settings=settings)
    shorter = logits.detach()[:, allowed].requires_grad_()
    expected = logprobs.token_logprobs_and_entropy(shorter, tokens - (tokens > 1).int(), logit_settings=settings)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    gradient = torch.autograd.grad(sum(x.sum() for x in found), logits)[0]
    torch.testing.assert_close(gradient[:, allowed], torch.autograd.grad(sum(x.sum() for x in expected), shorter)[0])
    assert torch.equal(gradient[:, 1], torch.zeros(2))


@pytest.mark.parametrize("settings", [LogitSettings(), LogitSettings(softcap=2.0)], ids=["plain", "capped"])
def test_a_token_that_is_not_allowed(settings):
    logits = torch.zeros(1, 3, requires_grad=True)
    allowed = torch.tensor([True, True, False])
    options = {"allowed": allowed, "logit_settings": settings}
    found = logprobs.token_logprobs(logits, torch.tensor([2]), **options)
    assert found.tolist() == [-math.inf]
    # The normaliser's gradient is there, the token's own logit has none.
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], torch.tensor([[-0.5, -0.5, 0.0]]))
    ids = torch.tensor([[2, 0]])
    torch.testing.assert_close(
        candidates.candidate_logprobs(logits, ids, **options), torch.tensor([[-math.inf, -math.log(2)]])
    )
    assert not statistics.token_statistics(logits, torch.tensor([2]), **options).is_largest.any()


def test_a_bias_of_minus_infinity_is_the_mask_of_a_linear_op():
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(4, 3, generator=g), torch.randn(5, 3, generator=g)
    bias, tokens = torch.tensor([0.0, -math.inf, 0.5, 0.0, 0.1]), torch.tensor([0, 2, 3, 4])
    settings = LogitSettings(softcap=3.0)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    options = {"bias": bias, "logit_settings": settings}
    loss = likelihood.linear_nll_loss(hidden, weight, tokens, **options)
    kept = [0, 2, 3, 4]
    shorter = logprobs.linear_token_logprobs(
        hidden, weight[kept], torch.tensor([0, 1, 2, 3]), bias=bias[kept], logit_settings=settings
    )
    torch.testing.assert_close(loss, -shorter.mean())
    found = torch.autograd.grad(loss, leaves, retain_graph=True)
    for ours, theirs in zip(found, torch.autograd.grad(-shorter.mean(), leaves), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not found[1][1].any()
    assert found[2][1] == 0


def test_nothing_of_what_is_not_allowed_is_sampled():
    uniforms = (torch.arange(100) + 0.5) / 100
    logits, allowed = torch.tensor([[50.0, 0.0, 0.0, 50.0]]).expand(100, 4), torch.tensor([False, True, True, False])
    tokens = sampling.sample_tokens(logits, uniforms, allowed=allowed)
    assert torch.bincount(tokens, minlength=4).tolist() == [0, 50, 50, 0]
    rows = torch.zeros(100, 4, dtype=torch.bool).scatter_(1, (torch.arange(100) % 4).unsqueeze(1), True)
    assert torch.equal(sampling.sample_tokens(logits, uniforms, allowed=rows), torch.arange(100) % 4)


def test_statistics_by_hand():
    # Probabilities 1/2, 1/4, 1/4, and an id that is excluded; sum of squares 1/4 + 2/16; mean of log 2, 0, 0.
    logits = torch.tensor([[math.log(2), 0.0, -math.inf, 0.0]]).expand(3, 4)
    tokens, mask = torch.tensor([0, 1, 0]), torch.tensor([True, True, False])
    found = statistics.token_statistics(logits, tokens, mask=mask)
    torch.testing.assert_close(found.logprobs, torch.tensor([math.log(1 / 2), math.log(1 / 4), 0.0]))
    torch.testing.assert_close(found.entropy, torch.tensor([1.5 * math.log(2), 1.5 * math.log(2), 0.0]))
    assert found.is_largest.tolist() == [True, False, False]
    torch.testing.assert_close(found.mean_logit, torch.tensor([math.log(2) / 3, math.log(2) / 3, 0.0]))
    torch.testing.assert_close(found.sum_of_squares, torch.tensor([3 / 8, 3 / 8, 0.0]))
    # Of two largest logits either agrees.
    ties = statistics.token_statistics(torch.tensor([[1.0, 1.0, 0.0]] * 2), torch.tensor([0, 1]))
    assert ties.is_largest.tolist() == [True, True]


@pytest.mark.parametrize("settings", [LogitSettings(), LogitSettings(scale=2.0, softcap=5.0)], ids=["plain", "capped"])
def test_a_gradient_over_the_logits_is_the_one_beside_them(settings):
    g = torch.Generator().manual_seed(0)
    logits, tokens = 4 * torch.randn(6, 40, generator=g), torch.randint(0, 30, (6,), generator=g)
    tokens[2] = 35  # which is not allowed
    options = {"allowed": torch.arange(40) < 30, "logit_settings": settings}
    found = []
    for inplace in (False, True):
        leaf = logits.clone().requires_grad_()
        rows = leaf * 1.0
        results = logprobs.token_logprobs_and_entropy(rows, tokens, inplace_backward=inplace, **options)
        total = torch.where(torch.arange(6) == 2, 0.0, results[0]).sum() + results[1].sum() + results[0][2]
        found.append(torch.autograd.grad(total, leaf)[0])
    torch.testing.assert_close(*found)
    assert not found[1][:, 30:].any()
