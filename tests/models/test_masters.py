"""Weights in bfloat16 and their masters: what is halved, what stays, and that nothing of a master is lost."""

import copy
import functools
from collections.abc import Sequence

import pytest
import torch
from architectures import make_lm
from tiny import demonstrations, lively_policy, tiny_encoder, tiny_reward_model
from transformers import AutoModelForCausalLM

from instructrl.models.masters import has_masters, in_float32, keep_masters, learned, restore, round_masters
from instructrl.models.passes import applied, settled
from instructrl.models.policy import Policy
from instructrl.models.settings import PassConfig
from instructrl.models.spread import exact, spread
from instructrl.types import Sequences

ENCODER = tiny_encoder()
HALVES = PassConfig(weights="bfloat16")
# Tied and untied, absolute and rotary positions, experts, and families that keep some weights in float32.
FAMILIES = ("gpt2", "llama", "gemma2", "ernie4_5_moe", "flint", "gpt_oss")


def num_bytes(network: torch.nn.Module) -> int:
    """Of distinct tensors."""
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in network.parameters()}
    return sum(storages.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_what_transformers_loads_in_bfloat16(family, tmp_path):
    lm = make_lm(family)
    lm.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    policy = Policy(lm)
    buffers = {name: x.clone() for name, x in policy.named_buffers()}
    spread(policy, HALVES)
    own = dict(policy.lm.named_parameters())
    for name, x in theirs.named_parameters():
        assert own[name].dtype == x.dtype, name
        assert torch.equal(own[name], x), name
    for name, x in policy.named_buffers():  # the frequencies of rotary embeddings
        assert x.dtype == buffers[name].dtype
        assert torch.equal(x, buffers[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_passes_in_bfloat16_are_about_those_of_autocast_and_every_master_has_a_gradient(family):
    policy = Policy(make_lm(family))
    other = copy.deepcopy(policy)
    rows = ENCODER.demonstrations(demonstrations(4))
    ids = policy.num_ids
    rows = type(rows)(
        prompt=rows.prompt % ids,
        prompt_mask=rows.prompt_mask,
        response=rows.response % ids,
        response_mask=rows.response_mask,
    )
    with torch.no_grad():
        truth = other(rows)
    spread(policy, HALVES, head_inputs=rows)
    with applied(HALVES, [policy]):
        found = policy(rows)
        found.sum().backward()
    with applied(PassConfig(weights="float32", precision="bfloat16"), [other]), torch.no_grad():
        autocast = other(rows)
    assert found.dtype == torch.float32
    assert float((found - truth).detach().norm()) <= 4 * float((autocast - truth).norm())
    expected = [x.grad is not None for x in _after_backward(other, rows)]
    assert [x.grad is not None for x in learned(policy)] == expected
    assert all(x.grad is None for x in policy.parameters() if x.dtype == torch.bfloat16)
    assert all(x.grad.dtype == torch.float32 for x in learned(policy) if x.grad is not None)


def _after_backward(policy: Policy, rows):
    policy(rows).sum().backward()
    return list(policy.parameters())


def test_networks_hold_half():
    policy = lively_policy(ENCODER)
    whole = num_bytes(policy)
    assert whole == 4 * sum(x.numel() for x in policy.parameters())
    reference = copy.deepcopy(policy)
    spread(reference, HALVES)
    spread(policy, HALVES, head_inputs=Sequences.smallest())
    assert num_bytes(policy) == num_bytes(reference) == whole // 2
    assert num_bytes(in_float32(policy)) == whole
    reward_model = tiny_reward_model(lively_policy(ENCODER))
    whole, head = num_bytes(reward_model), reward_model.network.score.weight
    spread(reward_model, HALVES)
    assert num_bytes(reward_model) == (whole + head.nbytes) // 2
    assert head.dtype == torch.float32


def test_gradients_of_several_passes_are_added_in_float32():
    policy = lively_policy(ENCODER)
    spread(policy, HALVES, head_inputs=Sequences.smallest())
    parts = [ENCODER.demonstrations(demonstrations(2, seed)) for seed in range(8)]
    alone: list[list[torch.Tensor]] = []
    with applied(HALVES, [policy]):
        for part in parts:
            policy(part).sum().backward()
            alone.append([_gradient(x) for x in learned(policy)])
            for x in learned(policy):
                x.grad = None
        for part in parts:
            policy(part).sum().backward()
    sums = [_sum(rows) for rows in zip(*alone, strict=True)]
    assert all(torch.equal(_gradient(x), total) for x, total in zip(learned(policy), sums, strict=True))
    low = [_sum([x.bfloat16() for x in rows]) for rows in zip(*alone, strict=True)]
    assert not any(torch.equal(x.float(), total) for x, total in zip(low, sums, strict=True))


def _gradient(x: torch.Tensor) -> torch.Tensor:
    assert x.grad is not None
    return x.grad


def _sum(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return functools.reduce(torch.add, parts)


def test_a_weight_is_the_nearest_to_its_master():
    policy = lively_policy(ENCODER)
    spread(policy, HALVES, head_inputs=Sequences.smallest())
    with torch.no_grad():
        for x in learned(policy):
            x.add_(1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    round_masters(policy)
    for weight, master in zip(policy.parameters(), learned(policy), strict=True):
        up, down = (torch.nextafter(weight.detach(), torch.full_like(weight, to)) for to in (torch.inf, -torch.inf))
        own = (weight.float() - master).abs()
        assert bool((own <= (up.float() - master).abs()).all() & (own <= (down.float() - master).abs()).all())


def test_the_float32_form_shares_masters_and_buffers_and_nothing_is_lost_on_the_way_back():
    policy = lively_policy(ENCODER)
    before = [x.detach().clone() for x in policy.parameters()]
    reward_model = tiny_reward_model(policy)
    for network in (policy, reward_model):
        spread(network, HALVES, forward=Sequences.smallest())
        form = in_float32(network)
        assert [id(x) for x in form.parameters()] == [id(x) for x in learned(network)]
        assert {id(x) for x in form.buffers()} == {id(x) for x in network.buffers()}
        with exact(network) as found:
            assert all(x.dtype == torch.float32 for x in found.parameters())
        assert not has_masters(copy.deepcopy(network))
    restore(policy)
    assert not has_masters(policy)
    assert all(torch.equal(x, y) for x, y in zip(policy.parameters(), before, strict=True))
    policy(ENCODER.demonstrations(demonstrations(2))).sum().backward()
    assert all(x.grad is not None for x in policy.parameters())


def test_saved_is_the_master(tmp_path):
    policy = lively_policy(ENCODER)
    before = {name: x.detach().clone() for name, x in policy.named_parameters()}
    spread(policy, HALVES, head_inputs=Sequences.smallest())
    policy.save(tmp_path, ENCODER.tokenizer)
    loaded = Policy.load(tmp_path)
    assert loaded.lm.config.dtype == torch.float32
    for name, x in loaded.named_parameters():
        assert torch.equal(x, before[name])


@pytest.mark.parametrize(
    ("device", "given", "expected"),
    [
        ("cpu", None, "float32"),
        ("cuda", None, "bfloat16"),
        ("cpu", "bfloat16", "bfloat16"),
        ("cuda", "float32", "float32"),
    ],
)
def test_the_device_decides_where_nothing_is_said(device, given, expected):
    assert settled(PassConfig(weights=given), torch.device(device)).weights == expected


def test_weights_that_do_not_learn_have_no_master():
    policy = lively_policy(ENCODER)
    keep_masters(policy)
    spread(policy, HALVES)
    assert not has_masters(policy)
    assert all(x.dtype == torch.bfloat16 for x in policy.parameters())


def test_a_network_that_does_not_run_so_is_refused_in_one_line():
    policy = lively_policy(ENCODER)

    def fail(module, inputs, output):
        raise RuntimeError("float and\nbfloat16")

    policy.lm.base_model.register_forward_hook(fail)
    with pytest.raises(ValueError, match=r"^passes.weights: found bfloat16, .* accepted is float32$"):
        spread(policy, HALVES, head_inputs=Sequences.smallest())
