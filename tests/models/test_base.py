"""Roles on a base: one copy of its tensors whoever stands on it, and nothing that happens to a role reaches another."""

import copy

import pytest
import torch
from architectures import make_lm
from tiny import demonstrations, lively_policy, tiny_encoder, tiny_reward_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

from instructrl.models.adapters import add_adapter, has_adapter, merged, whole, without_idle_adapter
from instructrl.models.base import Role, another, named_weights, share
from instructrl.models.policy import Policy
from instructrl.models.roles import learner, on_shared_base
from instructrl.models.scoring import RewardModel, ValueFunction
from instructrl.models.settings import AdapterConfig
from instructrl.types import Sequences

# Conv1D, untied embeddings and a scale, a cap, a router that is a linear layer of its own kind, a buffer that is saved.
FAMILIES = ("gpt2", "cohere", "gemma2", "phimoe", "glm4_moe")
ADAPTER = AdapterConfig(rank=2)
ENCODER = tiny_encoder()


def rows() -> Sequences:
    return ENCODER.demonstrations(demonstrations(5))


def stir(role: nn.Module, scale: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter))


@pytest.fixture
def start() -> Policy:
    """A policy on a base whose adapter adds something."""
    policy = lively_policy(ENCODER)
    on_shared_base(policy, ADAPTER)
    policy = learner(policy, ADAPTER, 0)
    stir(policy)
    return policy


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_on_a_base_is_the_same_function(family):
    """An adapter adds nothing at first, merges to what it adds, and learns in each of its layers."""
    policy = Policy(make_lm(family))
    original = {name: x.clone() for name, x in policy.state_dict().items()}
    before, names = policy(rows()), dict(named_weights(policy))
    assert names.keys() == dict(policy.named_parameters()).keys()
    on_shared_base(policy, ADAPTER)
    assert not list(policy.parameters())
    assert [name for name, _ in named_weights(policy)] == [*names]
    assert torch.equal(policy(rows()), before)
    role = learner(policy, ADAPTER, 0)
    assert all("lora_" in name for name, _ in role.named_parameters())
    assert torch.equal(role(rows()), before)
    stir(role)
    adapted = role(rows())
    assert not torch.allclose(adapted, before, atol=1e-2)
    with merged(role) as plain, torch.no_grad():
        assert not has_adapter(plain)
        torch.testing.assert_close(plain(rows()), adapted, rtol=1e-3, atol=1e-4)
    made = whole(role)
    assert made.state_dict().keys() == original.keys()
    assert made.base is None
    for name, x in whole(policy).state_dict().items():
        assert torch.equal(x, original[name]), name
    adapted.square().sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in role.parameters())
    assert not any(x.requires_grad for x in policy.base.tensors)


def roles(start: Policy) -> dict[str, Role]:
    reward_model = tiny_reward_model(start)
    bare = Policy(start.base.language_model(""), start.num_ids, start.base)
    return {
        "policy": start,
        "reference": another(start).requires_grad_(False),
        "average": AveragedModel(start).module,
        "reward model": reward_model,
        "value function": ValueFunction.from_reward_model(reward_model),
        "base": bare,
    }


def outcome(role: Role) -> torch.Tensor:
    with torch.no_grad():
        return role(rows()).clone()


def test_all_roles_stand_on_one_base(start):
    found = roles(start)
    bases = [{id(x) for _, x in named_weights(role)} - {id(x) for x in role.parameters()} for role in found.values()]
    heads = {id(x) for x in start.base.heads}
    assert all(base | heads == {id(x) for x in start.base.tensors} for base in bases)
    own = [id(x) for role in found.values() for x in role.parameters()]
    assert len(own) == len(set(own))


def test_what_one_role_learns_reaches_no_other(start):
    found = roles(start)
    base = [x.clone() for x in start.base.tensors]
    for learning in ("policy", "average", "reward model", "value function"):
        before = {name: outcome(role) for name, role in found.items()}
        optimizer = torch.optim.SGD(found[learning].parameters(), lr=1.0)
        found[learning](rows()).square().sum().backward()
        optimizer.step()
        changed = {name for name, role in found.items() if not torch.equal(outcome(role), before[name])}
        assert changed == {learning}
    assert all(torch.equal(x, y) for x, y in zip(start.base.tensors, base, strict=True))


@pytest.mark.parametrize("where", [torch.bfloat16, "meta"], ids=str)
def test_casts_and_moves_of_one_role_reach_no_other(start, where):
    found = roles(start)
    before = {name: outcome(role) for name, role in found.items()}
    while found:
        found.popitem()[1].to(where)
        assert all(torch.equal(outcome(role), before[name]) for name, role in found.items())
    assert {(x.dtype, x.device.type) for x in start.base.tensors} == {(torch.float32, "cpu")}


def test_of_whole_weights_another_role_is_a_copy_of_everything():
    policy = lively_policy(ENCODER)
    mine, other = dict(named_weights(policy)), dict(named_weights(another(policy)))
    assert not {id(x) for x in mine.values()} & {id(x) for x in other.values()}
    assert all(torch.equal(x, other[name]) for name, x in mine.items())


def test_a_frozen_reward_model_shares_neither_adapter_nor_head_with_the_value_function(start):
    reward_model = tiny_reward_model(start).requires_grad_(False)
    value = ValueFunction.from_reward_model(reward_model)
    assert all(parameter.requires_grad for parameter in value.parameters())
    stir(value)
    assert not torch.equal(value.network.score.weight, reward_model.network.score.weight)


def test_the_same_content_is_one_base_across_classes():
    policy = lively_policy(ENCODER)
    reward_model = tiny_reward_model(copy.deepcopy(policy))
    other = copy.deepcopy(policy)
    for role in (policy, reward_model, other):
        on_shared_base(role, ADAPTER)
    assert policy.base is reward_model.base is other.base
    assert {id(x) for _, x in named_weights(policy)} == {id(x) for _, x in named_weights(other)}
    assert [name for name, _ in reward_model.named_parameters()] == ["network.score.weight"]
    changed = lively_policy(ENCODER, seed=1)
    on_shared_base(changed, ADAPTER)
    assert changed.base is not policy.base


def test_a_base_in_half_precision_has_adapters_in_full():
    policy = lively_policy(ENCODER)
    exact = outcome(policy)
    on_shared_base(policy, AdapterConfig(rank=2, base_dtype="bfloat16"))
    role = learner(policy, ADAPTER, 0)
    assert {x.dtype for x in role.base.tensors} == {torch.bfloat16}
    assert {x.dtype for x in role.parameters()} == {torch.float32}
    assert tiny_reward_model(role).network.score.weight.dtype == torch.float32
    assert outcome(role).dtype == torch.float32
    torch.testing.assert_close(outcome(role), exact, rtol=0.05, atol=0.3)


def test_the_base_goes_when_nobody_stands_on_it():
    policy = lively_policy(ENCODER)
    on_shared_base(policy, ADAPTER)
    digest = policy.base.digest
    del policy
    again = lively_policy(ENCODER)
    again.base = share(again.lm)
    assert again.base.digest == digest
    assert {id(x) for x in again.base.heads} <= {id(x) for _, x in named_weights(again.lm)}


def test_an_adapter_that_adds_nothing_is_left_away(start):
    assert has_adapter(without_idle_adapter(another(start)))
    fresh = Policy(start.base.language_model(""), start.num_ids, start.base)
    add_adapter(fresh.lm, ADAPTER, 0)
    before = outcome(fresh)
    assert not has_adapter(without_idle_adapter(fresh))
    assert torch.equal(outcome(fresh), before)


def test_the_seed_says_how_an_adapter_starts(start):
    def new(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(7)
        role = Policy(start.base.language_model(""), start.num_ids, start.base)
        add_adapter(role.lm, ADAPTER, seed)
        assert torch.initial_seed() == 7
        return list(role.parameters())

    assert all(torch.equal(x, y) for x, y in zip(new(1), new(1), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(new(1), new(2), strict=True))


@pytest.mark.parametrize(
    ("targets", "there"),
    [(("q_proj",), "c_attn, c_proj, c_fc"), (("c_attn", "lm_head"), "c_attn, c_proj, c_fc"), (("wte",), "c_attn")],
)
def test_targets_that_are_no_linear_layers_of_the_base_are_refused(start, targets, there):
    role = Policy(start.base.language_model(""), start.num_ids, start.base)
    with pytest.raises(ValueError, match=rf"adapter.targets: found .*{targets[-1]}.* accepted are .*: {there}"):
        add_adapter(role.lm, AdapterConfig(rank=2, targets=targets), 0)


def test_a_package_that_peft_refuses_is_one_line(monkeypatch):
    def refuse(*_):
        raise ImportError("Found an incompatible version of torchao")

    monkeypatch.setattr("peft.inject_adapter_in_model", refuse)
    with pytest.raises(RuntimeError, match=r"^adapter: peft does not work beside what is installed: Found an incomp"):
        add_adapter(make_lm("gpt2"), AdapterConfig(rank=2), 0)


def test_a_reward_model_with_whole_weights_can_be_a_base():
    reward_model: RewardModel = tiny_reward_model(lively_policy(ENCODER))
    before = outcome(reward_model)
    on_shared_base(reward_model, ADAPTER)
    role = learner(reward_model, ADAPTER, 0)
    assert torch.equal(outcome(role), before)
    value = ValueFunction.from_reward_model(role)
    assert has_adapter(value)
    stir(value)
    assert torch.equal(outcome(role), before)
