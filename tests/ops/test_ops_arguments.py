"""Arguments as other libraries have them: masks of numbers, labels of -100, counts, advantages of sequences."""

import numpy as np
import pytest
import torch
from op_backends import COMPILED, use
from torch.utils._python_dispatch import TorchDispatchMode

from instructrl.ops import advantages, likelihood, logprobs, ppo, ranking

B, T, D, V = 3, 4, 5, 7
GENERATOR = torch.Generator().manual_seed(5)
MASK = torch.tensor([[True, True, False, False], [True, False, True, True], [True, True, True, False]])
X, Y, Z, SCORES = (torch.randn(shape, generator=GENERATOR) for shape in ((B, T), (B, T), (B, T), (B,)))
LOGITS, HIDDEN, WEIGHT = (torch.randn(shape, generator=GENERATOR) for shape in ((B, T, V), (B, T, D), (V, D)))
IDS = torch.randint(0, V, (B, T), generator=GENERATOR)
PREFERRED = torch.rand((B, T, T), generator=GENERATOR) < 0.5

WITH_MASK = {
    "pairwise_ranking_loss": lambda mask: ranking.pairwise_ranking_loss(X, mask),
    "token_logprobs": lambda mask: logprobs.token_logprobs(LOGITS, IDS, mask=mask),
    "linear_token_logprobs": lambda mask: logprobs.linear_token_logprobs(HIDDEN, WEIGHT, IDS, mask=mask),
    "linear_nll_loss": lambda mask: likelihood.linear_nll_loss(HIDDEN, WEIGHT, IDS, mask),
    "generalized_advantages": lambda mask: advantages.generalized_advantages(X, Y, mask),
    "ppo_advantages": lambda mask: advantages.ppo_advantages(X, Y, Z, SCORES, mask, kl_coef=0.1),
    "masked_whiten": lambda mask: advantages.masked_whiten(X, mask),
    "clipped_policy_loss": lambda mask: ppo.clipped_policy_loss(X, Y, Z, mask),
    "clipped_value_loss": lambda mask: ppo.clipped_value_loss(X, Y, Z, mask),
    "ppo_loss": lambda mask: ppo.ppo_loss(X, Y, Z, X, Y, Z, mask),
    "linear_ppo_loss": lambda mask: ppo.linear_ppo_loss(HIDDEN, WEIGHT, IDS, X, Y, X, Y, Z, mask),
}


def tensors(found):
    if isinstance(found, torch.Tensor):
        return [found]
    return [x for part in (found.values() if isinstance(found, dict) else found) for x in tensors(part)]


@pytest.mark.parametrize("name", WITH_MASK)
def test_a_mask_of_numbers_is_the_mask(name):
    mask = PREFERRED if name == "pairwise_ranking_loss" else MASK
    expected = tensors(WITH_MASK[name](mask))
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.uint8):
        found = tensors(WITH_MASK[name](mask.to(dtype)))
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    for wrong in (0.5, float("nan"), -1.0):
        with pytest.raises(ValueError, match="found a number other than 0 and 1, accepted are bool"):
            WITH_MASK[name](torch.where(mask, 1.0, wrong))


class Dispatched(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func).split(".")[0] + "." + str(func).split(".")[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["pairwise_ranking_loss", "masked_whiten", "clipped_policy_loss", "ppo_loss"])
@pytest.mark.parametrize(("backend", "device"), [place for place in COMPILED if place[1] == "cpu"])
def test_a_mask_of_bool_costs_nothing(backend, device, name):
    mask = PREFERRED if name == "pairwise_ranking_loss" else MASK
    with use(backend), Dispatched() as dispatched:
        WITH_MASK[name](mask)
    # What is behind the op takes results apart.
    assert dispatched.names[0] == f"instructrl._{backend}_{name}"
    assert not {"aten.ne", "aten.eq", "aten.to", "aten._to_copy"} & set(dispatched.names)


IGNORED = torch.where(MASK, IDS, -100)
OF_LABELS = {
    "token_logprobs": lambda x, labels, mask: logprobs.token_logprobs(x[..., :V], labels, mask=mask),
    "token_logprobs_and_entropy": lambda x, labels, mask: logprobs.token_logprobs_and_entropy(
        x[..., :V], labels, mask=mask
    ),
    "linear_token_logprobs": lambda x, labels, mask: logprobs.linear_token_logprobs(
        x[..., :D], WEIGHT, labels, mask=mask
    ),
    "linear_nll_loss": lambda x, labels, mask: likelihood.linear_nll_loss(x[..., :D], WEIGHT, labels, mask),
}


@pytest.mark.parametrize("name", OF_LABELS)
def test_labels_of_minus_100_do_not_count_where_no_mask_is_given(each_backend, name):
    poisoned = torch.where(MASK.unsqueeze(-1), LOGITS, float("nan"))

    def found(labels, mask):
        x = poisoned.clone().requires_grad_()
        results = tensors(OF_LABELS[name](x, labels, mask))
        sum(result.sum() for result in results).backward()
        return [*results, x.grad]

    expected = found(IDS, MASK)
    for labels in (IGNORED, IGNORED.int()):
        assert all(torch.equal(*pair) for pair in zip(found(labels, None), expected, strict=True))
    assert expected[-1].isfinite().all()
    with pytest.raises(ValueError, match="an id out of range where the mask is True"):
        found(IGNORED, torch.ones_like(MASK))
    with pytest.raises(ValueError, match="an id out of range where the mask is True"):
        found(torch.where(MASK, IDS, -1), None)


def test_the_likelihood_without_a_mask_counts_every_label():
    every = torch.ones_like(MASK)
    expected = likelihood.linear_nll_loss(HIDDEN, WEIGHT, IDS, every)
    assert torch.equal(likelihood.linear_nll_loss(HIDDEN, WEIGHT, IDS), expected)


def test_compiled_calls_take_the_same_arguments():
    def both(labels, mask):
        per_token = logprobs.token_logprobs(LOGITS, labels)
        return per_token, ppo.clipped_policy_loss(per_token, X, SCORES, mask, num_tokens=8.0).loss

    compiled = torch.compile(both, fullgraph=True, backend="eager")
    for labels in (IGNORED, IDS):
        found = compiled(labels, MASK.float())
        assert all(torch.equal(*pair) for pair in zip(found, both(labels, MASK), strict=True))
    with pytest.raises(RuntimeError, match="found a number other than 0 and 1"):
        compiled(IDS, MASK * 0.5)


@pytest.mark.parametrize("count", [5.0, np.int64(5), np.float32(5.0), np.array(5)], ids=repr)
def test_a_whole_number_is_a_count(count):
    expected = ppo.clipped_value_loss(X, Y, Z, MASK, num_tokens=5).loss
    assert torch.equal(ppo.clipped_value_loss(X, Y, Z, MASK, num_tokens=count).loss, expected)
    expected = logprobs.linear_token_logprobs(HIDDEN, WEIGHT, IDS, max_workspace_bytes=125)
    assert torch.equal(logprobs.linear_token_logprobs(HIDDEN, WEIGHT, IDS, max_workspace_bytes=count * 25), expected)


@pytest.mark.parametrize("wrong", [5.5, float("inf"), float("nan"), np.bool_(True), np.array([5]), True], ids=repr)
def test_what_is_no_count(wrong):
    with pytest.raises(ValueError, match=r"num_tokens: found .* accepted is a whole number >= 0"):
        ppo.clipped_value_loss(X, Y, Z, MASK, num_tokens=wrong)


@pytest.mark.parametrize("make", [torch.tensor, np.float32, np.array], ids=lambda make: make.__name__)
def test_discounts_of_no_dimension(make):
    gamma, lam = make(0.5), make(0.75)
    expected = advantages.generalized_advantages(X, Y, MASK, gamma=0.5, lam=0.75)
    found = advantages.generalized_advantages(X, Y, MASK, gamma=gamma, lam=lam)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape", [(B,), (B, 1)])
def test_advantages_of_sequences(each_backend, shape):
    by_token = SCORES.unsqueeze(1).repeat(1, T)
    calls = (
        lambda x: ppo.clipped_policy_loss(X, Y, x, MASK),
        lambda x: ppo.ppo_loss(X, Y, x, X, Y, Z, MASK),
        lambda x: ppo.linear_ppo_loss(HIDDEN, WEIGHT, IDS, X, x, X, Y, Z, MASK),
    )
    for call in calls:
        assert torch.equal(call(SCORES.view(shape)).loss, call(by_token).loss)
